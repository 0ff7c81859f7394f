"""Overhead of a training step over the network alone.

    python benchmarks/loop.py

The bare step is forward pass, backward pass and optimiser, on a batch at hand. Ours makes each
batch (in a thread), adds noise, clips the gradient, checks and gathers the losses, averages the
weights and logs, as training/train.py does. The two alternate in one process, a block of steps
each, so that drift in the machine's speed affects both alike.
"""

import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.load import open_images
from training.config import TrainConfig
from training.distributed.accelerator import make_accelerator, make_layout, resolve_settings
from training.draws import Draws
from training.ema import Averages
from training.loop import learning_rate, make_batch, make_batches, train_steps
from training.network import build_network
from training.objective import make_loss, make_optimizer, prepare
from training.reporting.log import RunLog
from training.scheduler import make_scheduler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to time.

    Attributes:
        train: A configuration of training/train.py.
        rounds: Blocks of each kind, without the first, which is discarded.
        block: Steps per block.
        threads: Of torch; None is its own choice.
    """

    train: str = "training/configs/mnist.yaml"
    rounds: int = 15
    block: int = 10
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")


def main() -> None:
    settings = parse(Settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    steps = (settings.rounds + 1) * settings.block
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", settings.train, "--output_dir", folder, "--tracker", "none"]
        config = parse(TrainConfig, [*words, "--steps", str(steps + 1)])
        kinds = {"bare": bare_steps(config), "ours": our_steps(config)}
        seconds = in_turns(kinds, settings.rounds, settings.block)
        for steps_of_kind in kinds.values():
            steps_of_kind.close()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    overheads = [ours / bare - 1 for bare, ours in zip(*seconds.values(), strict=True)]
    quartiles = statistics.quantiles(overheads, n=4)
    print(
        f"{settings.train}, batch {config.batch_size}, {settings.rounds} blocks of "
        f"{settings.block} steps; torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name, took in medians.items():
        print(f"{name:10}{took * 1e3:9.1f} ms per step")
    print(
        f"overhead  {quartiles[1]:9.1%} (median of the rounds; half of them between "
        f"{quartiles[0]:.1%} and {quartiles[2]:.1%})"
    )
    for name, took in parts(config).items():
        print(f"  {name:22}{took * 1e3:7.2f} ms")


def our_steps(config: TrainConfig) -> Generator[None]:
    """The loop of training/train.py."""
    config, layout = resolve_settings(config), make_layout(config)
    images, scheduler = open_images(config.data), make_scheduler(config)
    network = build_network(config.model, images, config.seed)
    accelerator = make_accelerator(config, layout)
    prepared, optimizer = prepare(accelerator, network, config)
    averages = Averages(network, config.ema)
    batches = make_batches(config, images, layout, 0)
    loss, lr = (
        make_loss(scheduler, config.objective, images.format),
        partial(learning_rate, config.optim.for_steps(config.steps)),
    )
    clip = config.optim.grad_clip
    with RunLog(accelerator, config, {}, 0) as log:
        for progress in train_steps(accelerator, prepared, optimizer, loss, batches, lr, clip):
            averages.update(progress.step - 1)
            log.update(progress)
            yield


def bare_steps(config: TrainConfig) -> Generator[None]:
    """Forward, backward and optimiser, on one batch again and again."""
    config, layout = resolve_settings(config), make_layout(config)
    images = open_images(config.data)
    network = build_network(config.model, images, config.seed)
    accelerator = make_accelerator(config, layout)
    prepared, optimizer = prepare(accelerator, network, config)
    (batch,) = make_batch(images, Draws.from_config(config, images.length), layout, 0).micro_batches
    batch = batch.to(accelerator.device)
    t = batch.t.to(accelerator.device)
    while True:
        with accelerator.autocast():
            output = batch.condition.evaluate(prepared, batch.x_0, t).sample
        (output.float() - batch.eps).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def parts(config: TrainConfig, times: int = 20) -> dict[str, float]:
    """Measure the parts of the overhead separately: the median seconds of each."""
    config, layout = resolve_settings(config), make_layout(config)
    images = open_images(config.data)
    network = build_network(config.model, images, config.seed)
    draws, averages = Draws.from_config(config, images.length), Averages(network, config.ema)
    (micro,) = make_batch(images, draws, layout, 0).micro_batches
    schedule_loss = make_loss(make_scheduler(config), config.objective, images.format)
    optimizer = make_optimizer(network, config.optim)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parameters = list(network.parameters())
    numbers = itertools.count()
    runs: dict[str, Callable[[], object]] = {
        "batch (in its thread)": lambda: make_batch(images, draws, layout, next(numbers)),
        "noising and error": lambda: schedule_loss(_Echo(), micro),
        "clipping": lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
        "averages": lambda: averages.update(0),
        "optimiser (counted bare)": optimizer.step,
    }
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(times):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            took[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in took.items()}


class _Echo(nn.Module):
    """A network that costs nothing."""

    def forward(self, x: torch.Tensor, t: object) -> object:
        return SimpleNamespace(sample=x)


def in_turns(kinds: dict[str, Generator[None]], rounds: int, block: int) -> dict[str, list[float]]:
    """Measure seconds per step in each block, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_number in range(rounds + 1):
        for name, steps in kinds.items():
            began = time.perf_counter()
            for _ in range(block):
                next(steps)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:
                seconds[name].append((time.perf_counter() - began) / block)
    return seconds


if __name__ == "__main__":
    run_program(main)
