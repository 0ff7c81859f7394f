"""Whether a run fits into memory, and the micro-batch that does."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch

from ddpm_sa.distributed import by_process_0, join
from ddpm_sa.errors import UserError
from ddpm_sa.memory.available import format_bytes, least_available_memory
from ddpm_sa.memory.peak import largest_that_fits
from ddpm_sa.models.unet import UNet
from training.config import TrainConfig
from training.draws import Layout
from training.memory.forecast import DRAW, FLOAT, NEARLY_FULL, Memory, forecast

# `auto` leaves 30 %: where it was compared on a CPU, the forecast was 70 to 105 % of what was used.
AUTO = 0.7


def check_counts(config: TrainConfig, layout: Layout) -> None:
    """Check that what is loaded at once fits into the machine, before any image is opened.

    Raises:
        ValueError: If it does not, with the setting and the largest value that fits.
    """
    available = least_available_memory(torch.device("cpu"))
    height, width = config.data.height_width
    pixels = height * width * (config.data.channels or 1)
    # Image and noise, of this batch and of the next; a grid of samples, and its picture.
    loaded, shown = 4 * FLOAT * pixels, 2 * FLOAT * pixels
    if loaded > available:
        raise UserError(
            f"data.size={config.data.size}: one image with its noise takes "
            f"{format_bytes(loaded)}, more than the {format_bytes(available)} of memory available "
            "to each process; use a smaller data.size"
        )
    each = {
        "batch_size": (config.batch_size, loaded / layout.processes + DRAW),
        "num_samples": (config.num_samples, shown),
        "num_validation": (config.num_validation, DRAW),
    }
    for name, (count, size) in each.items():
        if count * size > available:
            raise UserError(
                f"{name}={count} needs {format_bytes(count * size)} on each process, more than "
                f"the {format_bytes(available)} of memory available; use at most "
                f"{math.floor(available / size)}"
            )


def fit(
    config: TrainConfig, layout: Layout, build: Callable[[], UNet], previous: int | None = None
) -> tuple[TrainConfig, Layout, Memory]:
    """Compare what the run needs with what there is, and resolve `micro_batch_size=auto`.

    Process 0 decides for all, by the least that any of them has.

    Args:
        config, layout: Of the run; with `auto`, the layout of a whole share.
        build: Builds the network.
        previous: The micro-batch of the run that is resumed; `auto` keeps it if it fits, since
            another changes the last bits of the sums.

    Returns:
        The configuration and layout with the micro-batch, and the forecast.

    Raises:
        ValueError: If the run does not fit, with what does.
    """
    device = join().device
    assert device is not None
    available = least_available_memory(device)

    def decide() -> tuple[int | None, Memory]:
        measure = cache(partial(forecast, config, layout, build, available, device))
        micro = config.micro_batch_size
        if micro == "auto":
            kept = replace(layout, micro_batch_size=previous).micro if previous else None
            micro = choose_micro_batch(layout.share, available, measure, kept)
        at_once = replace(layout, micro_batch_size=micro).micro
        memory = measure(at_once)
        _check(config, layout.share, at_once, memory, measure)
        return micro, memory

    micro, memory = by_process_0(decide, "the network cannot be read")
    return (
        replace(config, micro_batch_size=micro),
        replace(layout, micro_batch_size=micro),
        memory,
    )


def choose_micro_batch(
    share: int, available: int, measure: Callable[[int], Memory], previous: int | None = None
) -> int:
    """The largest divisor of a process's share of the batch that leaves 30 % of the memory; or 1.

    Args:
        share: Images per process and batch.
        available: Bytes that the device has.
        measure: Forecasts the memory of a micro-batch.
        previous: A divisor that is preferred if it is not warned of, so that a run goes on as it
            was although a little less memory is free.
    """
    if previous is not None and measure(previous).total <= NEARLY_FULL * available:
        return previous
    return (
        largest_that_fits(divisors(share), AUTO * available, lambda micro: measure(micro).total)
        or 1
    )


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _check(
    config: TrainConfig, share: int, micro: int, memory: Memory, measure: Callable[[int], Memory]
) -> None:
    """Refuse a run that does not fit. A compiled one may take less, so it is only warned of."""
    if memory.total <= memory.available or config.compile:
        return
    available = f"more than the {format_bytes(memory.available)} available to each process"
    smaller = [d for d in divisors(share) if d <= micro]
    fits = largest_that_fits(smaller, memory.available, lambda micro: measure(micro).total)
    if fits is not None:
        raise UserError(
            f"a micro-batch of {micro} images needs about {format_bytes(memory.total)} of memory, "
            f"{available}; use --micro_batch_size {fits}, the largest that fits, or auto. It "
            "changes the accumulation alone, not the training"
        )
    least = measure(1)
    ways = [
        "" if config.model.gradient_checkpointing else "--model.gradient_checkpointing true",
        "a smaller data.size",
        "" if config.model.init_from else "fewer channels (block_out_channels in --model.unet)",
        "" if config.sharding == "fsdp" else "--sharding fsdp on several GPUs",
        "a smaller batch_size" if least.images > least.available / 4 else "",
    ]
    raise UserError(
        f"even one image at a time needs about {format_bytes(least.total)} of memory, {available}; "
        f"use {', or '.join(filter(None, ways))}"
    )
