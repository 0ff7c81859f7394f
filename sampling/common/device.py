"""Which device a program of sampling/ computes on."""

import torch
from accelerate import PartialState


def device_named(name: str | None) -> torch.device:
    """The device of this name; the accelerator if there is one, or the CPU, if there is no name.

    Raises:
        ValueError: If it cannot be used.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name!r} cannot be used: {error}".splitlines()[0]) from error


def device_of(here: PartialState, name: str | None) -> torch.device:
    """`device_named`, or where processes share the work and no name is given, this one's own."""
    shared = name is None and here.num_processes > 1
    return here.device if shared and here.device else device_named(name)
