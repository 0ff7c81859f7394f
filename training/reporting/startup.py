"""The report at the start of a run: data, network, batches, memory, and likely mistakes."""

import os

import torch

from ddpm_sa.data.dataset import Images
from ddpm_sa.errors import UserError
from ddpm_sa.models.attention_slots import attention_layers
from ddpm_sa.models.sizing import AUTO
from ddpm_sa.models.unet import UNet
from training.config import OptimConfig, TrainConfig
from training.draws import Layout
from training.memory.forecast import Memory
from training.network import height_and_width

FEW_IMAGES, SMALL_BATCH = 500, 16
# Names of sources whose images change their meaning when mirrored.
MIRRORED = ("mnist", "digit", "svhn")
# The cost and memory of attention grow with the fourth power of the height.
LARGE_GRID = 64


def startup_report(
    config: TrainConfig,
    layout: Layout,
    images: Images,
    network: UNet,
    memory: Memory,
    start: int,
) -> str:
    """Describe in a few lines what will be trained, and warn about likely mistakes."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    attention = ", ".join(attention_places(network)) or "no level"
    per_epoch = images.length / config.batch_size
    optim = config.optim.for_steps(config.steps)
    notes = []
    if config.sharding == "fsdp" and layout.processes == 1:
        notes.append(
            "warning     sharding=fsdp has only one process, so the network is not sharded"
        )
    if layout.micro < min(layout.micro_batch_size or 1, layout.share) / 2:
        notes.append(
            f"warning     micro-batches of {layout.micro} are slow; {layout.share} images have no "
            f"larger divisor up to micro_batch_size={config.micro_batch_size}: choose another "
            "batch_size"
        )
    lines = [
        *images.describe(config.data.source),
        f"network     {parameters:,} parameters, attention at {attention}",
        f"levels      {describe_levels(config, images, network)}",
        f"processes   {layout.processes} on {network.device}, precision {config.mixed_precision}"
        + (f", sharding {config.sharding}" if config.sharding != "none" else ""),
        f"batch       {config.batch_size} = {layout.processes} processes x {layout.accumulation} "
        f"accumulated x {layout.micro} images",
        f"memory      {memory}; on each process",
        f"steps       {start} to {config.steps}, {per_epoch:.1f} per epoch, "
        f"{config.steps / per_epoch:.1f} epochs",
        f"lr          {describe_learning_rate(optim)}",
        f"intervals   {describe_intervals(config, images.validation is not None)}",
        *notes,
        *(f"warning     {warning}" for warning in memory.warnings),
        *(f"warning     {warning}" for warning in find_warnings(config, images, network)),
    ]
    return "\n".join(lines)


def attention_places(network: UNet) -> dict[str, tuple[int, int]]:
    """Where attention is, such as "down 16x16", and the height and width of its grid."""
    height, width = height_and_width(network.config["sample_size"])
    try:
        layers = attention_layers(network)
    except UserError:  # the network has no attention
        return {}
    places = {}
    for name, layer in layers.items():
        grid = (height // layer.reduction, width // layer.reduction)
        places[f"{name.partition('_')[0]} {grid[0]}x{grid[1]}"] = grid
    return places


def describe_levels(config: TrainConfig, images: Images, network: UNet) -> str:
    """Describe the size and width of each level, and what they follow from."""
    height, width = height_and_width(network.config["sample_size"])
    channels = network.config["block_out_channels"]
    sizes = [f"{height >> level}x{width >> level}" for level in range(len(channels))]
    words = f"{', '.join(sizes)} with {', '.join(map(str, channels))} channels"
    if (height, width) != tuple(images.format.size):
        words += f"; images are extended to {height}x{width}, which can be halved"
    if config.model.init_from is None and config.model.preset == AUTO:
        words += "; from the size of the images (model.preset=auto)"
    return words


def describe_learning_rate(config: OptimConfig) -> str:
    """Describe the learning rate schedule, of settings from `OptimConfig.for_steps`."""
    words = f"{config.lr:g}"
    if config.warmup_steps:
        words = f"from 0 to {config.lr:g} at step {config.warmup_steps}"
    if config.decay_steps is None:
        return f"{words}, then constant" if config.warmup_steps else f"{words}, constant"
    return f"{words}, then falling to 0 at step {config.decay_steps}"


def describe_intervals(config: TrainConfig, held_out: bool) -> str:
    """Describe the intervals of logging, sampling, validation and saving."""
    every = {"a record": config.log_every, "samples": config.sample_every}
    if held_out:
        every["validation"] = config.validate_every
    every["a checkpoint"] = config.save_every
    words = [
        f"{name} every {steps} steps" if steps else f"no {name}" for name, steps in every.items()
    ]
    return ", ".join(words) + ("" if held_out else "; no validation (data.validation)")


def find_warnings(config: TrainConfig, images: Images, network: UNet) -> list[str]:
    """Warn about likely mistakes."""
    messages = list(images.notes)
    if config.data.flip and any(word in config.data.source.lower() for word in MIRRORED):
        messages.append(
            "data.flip=true mirrors digits, which changes what they mean; give --data.flip false"
        )
    if images.length < FEW_IMAGES:
        messages.append(f"only {images.length} training images: the network will memorise them")
    if config.batch_size < SMALL_BATCH:
        messages.append(f"batch_size={config.batch_size} is small: gradients will be noisy")
    if config.optim.warmup_steps >= config.steps:
        messages.append(
            f"the learning rate is still rising when the run ends: optim.warmup_steps="
            f"{config.optim.warmup_steps}, steps={config.steps}; give a smaller "
            f"--optim.warmup_steps, such as {config.steps // 20}"
        )
    last = config.optim.for_steps(config.steps).decay_steps
    if isinstance(last, int) and last < config.steps:
        messages.append(
            f"the learning rate reaches 0 at step {last}; later updates change nothing; give "
            "--optim.decay_steps steps"
        )
    for place, (height, width) in attention_places(network).items():
        if height * width >= LARGE_GRID**2:
            messages.append(
                f"attention at {place} compares each of {height * width:,} pixels with all others, "
                "which is slow and takes much memory; model.attention_resolutions sets where it is"
            )
    if network.device.type == "cpu" and (idle := warn_idle_processors()):
        messages.append(idle)
    return messages


def warn_idle_processors() -> str | None:
    """Warn if the processes on this machine leave some of its processors unused."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads, processors = processes * torch.get_num_threads(), os.cpu_count() or 1
    if threads >= processors:
        return None
    # accelerate launch and torchrun give each process one thread by default.
    return (
        f"only {threads} of {processors} processors are used; set OMP_NUM_THREADS="
        f"{processors // processes} before the command to use all"
    )
