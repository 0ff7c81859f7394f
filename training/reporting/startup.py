"""What a run says before its first step: what will be trained, on what, how, and what looks odd."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm_sa.data.dataset import Images
from ddpm_sa.models.unet import UNet
from training.config import OptimConfig, TrainConfig
from training.draws import Layout
from training.network import attention_layers, sides
from training.objective import fine_tuning_notes

MIB = 2**20
FEW_IMAGES, SMALL_BATCH = 500, 16
# Sources whose images mean something else when mirrored.
MIRRORED = ("mnist", "digit", "svhn")
# Attention's cost and memory grow with the fourth power of the height.
LARGE_GRID = 64


@dataclass(frozen=True)
class Memory:
    """Bytes that one process keeps, weights and all, while it trains.

    Attributes:
        weights, averages, optimizer, gradients: In float32.
        activations: What the backward pass needs of a micro-batch; None: not known.
    """

    weights: int
    averages: int
    optimizer: int
    gradients: int
    activations: int | None

    def __str__(self) -> str:
        parts = [
            f"{name} {_size(value)}"
            for name, value in (
                ("weights", self.weights),
                ("averages", self.averages),
                ("optimiser", self.optimizer),
                ("gradients", self.gradients),
                ("activations", self.activations),
            )
            if value is not None
        ]
        known = self.weights + self.averages + self.optimizer + self.gradients
        without = ", activations not counted" if self.activations is None else ""
        return f"about {_size(known + (self.activations or 0))}: {', '.join(parts)}{without}"


def report(config: TrainConfig, layout: Layout, images: Images, network: UNet, start: int) -> str:
    """What is about to happen, in a few lines."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    attention = ", ".join(attention_layers(network)) or "no place"
    per_epoch = images.length / config.batch_size
    notes = fine_tuning_notes(config)
    if config.sharding == "fsdp" and layout.processes == 1:
        notes.append("warning     sharding=fsdp has no second process to spread the network over")
    lines = [
        *images.describe(config.data.source),
        f"network     {parameters:,} parameters, attention at {attention}",
        f"processes   {layout.processes} on {network.device}, precision {config.mixed_precision}"
        + (f", sharding {config.sharding}" if config.sharding != "none" else ""),
        f"batch       {config.batch_size} = {layout.processes} processes x {layout.accumulation} "
        f"accumulated x {layout.micro} images",
        f"memory      {expected_memory(config, layout, network)}; on each process",
        f"steps       {start} to {config.steps}, {per_epoch:.1f} an epoch, "
        f"{config.steps / per_epoch:.1f} epochs",
        f"lr          {learning_rate_in_words(config.optim)}",
        f"looking     {looks_in_words(config, images.validation is not None)}",
        *notes,
        *(f"warning     {warning}" for warning in warnings(config, images, network)),
    ]
    return "\n".join(lines)


def learning_rate_in_words(config: OptimConfig) -> str:
    """The curve of the learning rate."""
    words = f"{config.lr:g}"
    if config.warmup_steps:
        words = f"from 0 to {config.lr:g} at step {config.warmup_steps}"
    if config.decay_steps is None:
        return f"{words}, then constant" if config.warmup_steps else f"{words}, constant"
    return f"{words}, then falling to 0 at step {config.decay_steps}"


def looks_in_words(config: TrainConfig, held_out: bool) -> str:
    """How often the run is looked at and kept."""
    every = {"a record": config.log_every, "samples": config.sample_every}
    if held_out:
        every["validation"] = config.validate_every
    every["a checkpoint"] = config.save_every
    words = [
        f"{what} every {steps} steps" if steps else f"no {what}" for what, steps in every.items()
    ]
    return ", ".join(words) + ("" if held_out else "; no validation (data.validation)")


def expected_memory(config: TrainConfig, layout: Layout, network: UNet) -> Memory:
    """What each process will keep; Adam keeps two means.

    Of a network that is spread each keeps its part, and the main average whole, to look at.
    """
    weights = sum(parameter.nbytes for parameter in network.parameters())
    spread = config.sharding == "fsdp" and layout.processes > 1
    part = weights // layout.processes if spread else weights
    return Memory(
        weights=part,
        averages=part * (1 + len(config.ema.more)) + (weights if spread else 0),
        optimizer=2 * part,
        gradients=part,
        # What is computed again is not kept.
        activations=None
        if config.model.gradient_checkpointing
        else saved_activations(network, layout.micro, config.mixed_precision in ("bf16", "fp16")),
    )


def saved_activations(network: UNet, batch_size: int, half: bool) -> int:
    """Bytes that autograd keeps of a forward pass for its backward pass, without running it."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        # The tensor is held, so that no other takes its storage's address.
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    config = network.config
    with FakeTensorMode():
        twin = UNet(**config).train()
        x = torch.zeros(batch_size, config["in_channels"], *sides(config["sample_size"]))
        t = torch.zeros(batch_size, dtype=torch.long)
        labels = None if config["num_class_embeds"] is None else t
        own = {parameter.untyped_storage()._cdata for parameter in twin.parameters()}
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
            twin(x, t, labels)
    return sum(size for address, (size, _) in kept.items() if address not in own)


def warnings(config: TrainConfig, images: Images, network: UNet) -> list[str]:
    """What a user may not have meant."""
    found = list(images.notes)
    if config.data.flip and any(word in config.data.source.lower() for word in MIRRORED):
        found.append("data.flip mirrors digits, which then mean nothing")
    if images.length < FEW_IMAGES:
        found.append(f"{images.length} images are few: they may be learned by heart")
    if config.batch_size < SMALL_BATCH:
        found.append(f"batch_size={config.batch_size} is small: its gradient is mostly noise")
    last = config.optim.decay_steps
    if last is not None and last < config.steps:
        found.append(
            f"nothing is learned from step {last} on, where the learning rate is 0; give "
            f"--optim.decay_steps {config.steps}"
        )
    for place in attention_layers(network):
        height, width = map(int, place.split()[1].split("x"))
        if height * width >= LARGE_GRID**2:
            found.append(
                f"attention at {place} compares each of {height * width:,} pixels with each: slow, "
                "and much memory; model.attention_resolutions says where it goes"
            )
    if network.device.type == "cpu" and (idle := idle_processors()):
        found.append(idle)
    return found


def idle_processors() -> str | None:
    """What is to be said if a machine's processes leave some of its processors unused."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads, processors = processes * torch.get_num_threads(), os.cpu_count() or 1
    if threads >= processors:
        return None
    # accelerate launch and torchrun give each process one, unless told.
    return (
        f"{threads} of {processors} processors are used; set OMP_NUM_THREADS="
        f"{processors // processes} before the command to use all"
    )


def _size(count: int) -> str:
    return f"{count / MIB:,.0f} MiB" if count < 10_000 * MIB else f"{count / MIB / 1024:,.0f} GiB"
