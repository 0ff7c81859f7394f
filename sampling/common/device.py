"""The device that a sampling program runs on."""

import torch
from accelerate import PartialState

from ddpm_sa.errors import UserError


def resolve_device(name: str | None) -> torch.device:
    """Return the named device; without a name, the accelerator if there is one, else the CPU.

    Raises:
        ValueError: If the device cannot be used.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name!r} cannot be used: {error}".splitlines()[0]) from error


def process_device(state: PartialState, name: str | None) -> torch.device:
    """`resolve_device`; without a name, each of several processes gets its own device."""
    shared = name is None and state.num_processes > 1
    return state.device if shared and state.device else resolve_device(name)
