"""Whether a run fits into memory, and the micro-batch that does.

The forecast is of one training step whose tensors have shapes but no data. Its parts are exact but
for what kernels and allocators take for themselves, of which there is an estimate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from ddpm_sa.distributed import by_process_0, join
from ddpm_sa.errors import UserError
from ddpm_sa.memory.available import format_bytes, least_available_memory
from ddpm_sa.memory.peak import counted_without_computing, largest_that_fits
from ddpm_sa.models.unet import UNet
from training.config import TrainConfig
from training.draws import Layout
from training.network import height_and_width
from training.objective import make_optimizer

NEARLY_FULL = 0.85
# `auto` leaves a fifth: the forecast was up to 18 % too low where it was compared.
AUTO = 0.8
FLOAT = 4  # bytes of a float32
# Of each image of the global batch: int64 position, index and timestep, the flags, and the loss.
DRAW = 48


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory that one process needs for training, in bytes.

    Attributes:
        weights, averages, optimizer: In float32.
        gradients: In float32; with DDP, also its buckets.
        activations: The most that a micro-batch's forward and backward pass, or the update, take
            besides, with the kernels' scratch space.
        images: The images and noise of this batch and of the next; on a GPU 0, since they are in
            the machine's memory.
        available: What the device has left before the run.
    """

    weights: int
    averages: int
    optimizer: int
    gradients: int
    activations: int
    images: int
    available: int

    @property
    def total(self) -> int:
        """What the run needs."""
        return (
            self.weights
            + self.averages
            + self.optimizer
            + self.gradients
            + self.activations
            + self.images
        )

    @property
    def warnings(self) -> list[str]:
        """A warning if there is little to spare."""
        if self.total <= NEARLY_FULL * self.available:
            return []
        return [
            f"the run needs about {format_bytes(self.total)} of the "
            f"{format_bytes(self.available)} of memory available to each process; if that proves "
            "too little, continue with --resume auto --micro_batch_size auto"
        ]

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "averages": self.averages,
            "optimiser": self.optimizer,
            "gradients": self.gradients,
            "activations": self.activations,
            "images": self.images,
        }
        words = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        return f"about {format_bytes(self.total)} of {format_bytes(self.available)}: {words}"


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
    shared = device.type == "cpu"

    def decide() -> tuple[int | None, Memory]:
        measure = cache(partial(forecast, config, layout, build, available, shared))
        micro = config.micro_batch_size
        if micro == "auto":
            micro = choose_micro_batch(layout.share, available, measure, previous)
        memory = measure(micro or layout.share)
        _check(config, layout.share, micro or layout.share, memory, measure)
        return micro, memory

    micro, memory = by_process_0(decide)
    return (
        replace(config, micro_batch_size=micro),
        replace(layout, micro_batch_size=micro),
        memory,
    )


def forecast(
    config: TrainConfig,
    layout: Layout,
    build: Callable[[], UNet],
    available: int,
    shared: bool,
    micro: int,
) -> Memory:
    """Forecast the memory of each process.

    With sharding each keeps its part, and the full main average for evaluation.

    Args:
        config, layout: Of the run.
        build: Builds the network.
        available: Bytes that the device has.
        shared: Whether the images of the next updates are in the same memory, as on a CPU.
        micro: Images of a micro-batch.
    """
    # Weights from a file are read as they are; their network is made again without them.
    saved = build().config if config.model.init_from is not None else None
    half = config.mixed_precision in ("bf16", "fp16")
    with counted_without_computing() as peak:
        network = build() if saved is None else UNet(**saved)
        if config.model.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        network.train()
        parameters = list(network.parameters())
        weights = sum(parameter.nbytes for parameter in parameters)
        for parameter in parameters:  # accumulated from the micro-batches before
            parameter.grad = torch.zeros_like(parameter)
        kept = peak.now
        peak.restart()
        _forward_and_backward(network, micro, half)
        step = peak.peak - kept
        optimizer = make_optimizer(network, config.optim)
        peak.restart()
        optimizer.step()
        moments = sum(
            value.nbytes for state in optimizer.state.values() for value in state.values()
        )
        update = peak.peak - kept - moments
    sharded = config.sharding == "fsdp" and layout.processes > 1
    parts = layout.processes if sharded else 1
    copies = 2 if layout.processes > 1 and not sharded else 1  # DDP's buckets
    channels, grid = network.config["in_channels"], height_and_width(network.config["sample_size"])
    batch = layout.share * channels * math.prod(grid) * FLOAT * 4
    return Memory(
        weights=weights // parts,
        averages=weights // parts * (1 + len(config.ema.more)) + (weights if sharded else 0),
        optimizer=moments // parts,
        gradients=copies * weights // parts,
        activations=max(step, update) + peak.scratch,
        images=batch + DRAW * config.batch_size if shared else 0,
        available=available,
    )


def _forward_and_backward(network: UNet, micro: int, half: bool) -> None:
    config = network.config
    shape = (micro, config["in_channels"], *height_and_width(config["sample_size"]))
    x_t = torch.zeros(shape)
    t = torch.zeros(micro, dtype=torch.long)
    labels = None if config["num_class_embeds"] is None else t
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = network(x_t, t, labels).sample
    output.float().square().mean().backward()


def choose_micro_batch(
    share: int, available: int, measure: Callable[[int], Memory], previous: int | None = None
) -> int:
    """The largest divisor of a process's share of the batch that fits with room to spare; or 1.

    Args:
        share: Images per process and batch.
        available: Bytes that the device has.
        measure: Forecasts the memory of a micro-batch.
        previous: Preferred if it divides the share and fits.
    """
    limit = AUTO * available
    if previous is not None and share % previous == 0 and measure(previous).total <= limit:
        return previous
    return largest_that_fits(divisors(share), limit, lambda micro: measure(micro).total) or 1


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
