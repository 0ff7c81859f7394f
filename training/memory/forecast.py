"""The memory that a run needs.

The forecast is of one training step whose tensors have shapes but no data. Its parts are exact but
for what kernels and allocators take for themselves, of which there is an estimate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddpm_sa.memory.available import format_bytes
from ddpm_sa.memory.peak import counted_without_computing
from ddpm_sa.models.unet import UNet
from training.config import TrainConfig
from training.draws import Layout
from training.network import height_and_width
from training.objective import make_optimizer

NEARLY_FULL = 0.85
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


def forecast(
    config: TrainConfig,
    layout: Layout,
    build: Callable[[], UNet],
    available: int,
    device: torch.device,
    micro: int,
) -> Memory:
    """Forecast the memory of each process.

    With sharding each keeps its part, and the full main average for evaluation.

    Args:
        config, layout: Of the run.
        build: Builds the network.
        available: Bytes that the device has.
        device: Where the run trains; not used, so that a GPU can be asked about without one.
        micro: Images of a micro-batch.
    """
    # Weights from a file are read as they are; their network is made again without them.
    saved = build().config if config.model.init_from is not None else None
    half = config.mixed_precision in ("bf16", "fp16")
    with counted_without_computing() as peak:
        network = build() if saved is None else UNet(**saved)
        if config.model.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if config.mixed_precision == "fp16" and device.type == "cuda":
            _normalise_in_float32(network)
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
        images=batch + DRAW * config.batch_size if device.type == "cpu" else 0,
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


def _normalise_in_float32(network: UNet) -> None:
    """Have the CPU's autocast, under which steps are counted, do as CUDA's does."""
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
