"""Train with GroupNorm in float32 and in bfloat16, from the same seeds, and compare the losses.

    python benchmarks/norm_precision.py --steps 300 --seeds 3

Everything else is in bfloat16 by autocast. "float32" is what CUDA's autocast does: the input is
cast, and so are the activation and the result. "bfloat16" is what `models.normalization` does on a
GPU. Batches, timesteps and noise of a seed are the same both ways; different seeds show the noise.
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks.trainers.ours import RECIPE, our_config
from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.load import open_images
from ddpm_sa.models import normalization
from ddpm_sa.settings.ranges import Count, Several
from training.distributed.accelerator import make_accelerator, make_layout
from training.loop import learning_rate, make_batches, train_steps
from training.network import build_network
from training.objective import make_loss, prepare
from training.scheduler import make_scheduler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to train.

    Attributes:
        steps: Updates of each training; the loss is the mean over the last third.
        seeds: Number of seeds.
    """

    steps: Count = 300
    seeds: Several = 3


def in_float32(
    x: Tensor, groups: int, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """GroupNorm as CUDA's autocast has it."""
    return torch.nn.functional.group_norm(x.float(), groups, weight, bias, eps)


WAYS: dict[str, Callable[..., Tensor]] = {
    "float32": in_float32,
    "bfloat16": normalization.normalize_in_own_type,
}


def main() -> None:
    settings = parse(Settings)
    print("| seed | " + " | ".join(WAYS) + " | difference |\n|---|---|---|---|")
    losses: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(settings.seeds):
        for name, normalize in WAYS.items():
            with mock.patch.object(normalization, "normalize", normalize):
                losses[name].append(final_loss(settings, seed))
        one, other = (losses[name][-1] for name in WAYS)
        print(f"| {seed} | {one:.5f} | {other:.5f} | {other - one:+.5f} |", flush=True)
    means = [statistics.mean(losses[name]) for name in WAYS]
    spread = [statistics.stdev(losses[name]) for name in WAYS]
    print(f"| mean | {means[0]:.5f} | {means[1]:.5f} | {means[1] - means[0]:+.5f} |")
    print(f"| standard deviation | {spread[0]:.5f} | {spread[1]:.5f} | |")


def final_loss(settings: Settings, seed: int) -> float:
    """Train, and return the mean loss of the last third of the updates."""
    words = ["--config", RECIPE, "--mixed_precision", "bf16", "--compile", "false"]
    config = our_config([*words, "--seed", str(seed), "--steps", str(settings.steps)])
    layout, images = make_layout(config), open_images(config.data)
    network = build_network(config.model, images, config.seed)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator(config, layout)
    prepared, optimizer = prepare(accelerator, network, config)
    loss = make_loss(make_scheduler(config), config.objective, images.format)
    batches = make_batches(config, images, layout, 0)
    lr = partial(learning_rate, config.optim.for_steps(config.steps))
    steps = train_steps(accelerator, prepared, optimizer, loss, batches, lr, config.optim.grad_clip)
    losses = [progress.loss for progress in steps]
    return statistics.mean(losses[-max(1, len(losses) // 3) :])


if __name__ == "__main__":
    run_program(main)
