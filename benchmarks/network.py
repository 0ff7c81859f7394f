"""Time the paper's CIFAR-10 network: ours and diffusers' UNet2DModel, with the same weights.

    python benchmarks/network.py

All cases take turns in one process, so that a machine whose speed drifts is unfair to none; the
table shows medians. A training step is forward pass, loss and backward pass. Compiling both
networks takes minutes; `--compile false` leaves it out.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_sa import UNet, preset
from ddpm_sa.cli import parse, run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to time.

    Attributes:
        preset: Which network.
        batch_size: Images at once.
        rounds: Times that each case is timed, after one round that is not counted.
        compile: Whether to time the compiled networks too.
        device: cpu or cuda.
    """

    preset: str = "cifar10"
    batch_size: int = 8
    rounds: int = 7
    compile: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Case:
    """One network in one way of running it."""

    name: str
    network: nn.Module
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(x.contiguous(memory_format=layout), t).sample

    def evaluation(self, x: Tensor, t: Tensor) -> None:
        with torch.no_grad():
            self.evaluate(x, t)

    def training_step(self, x: Tensor, t: Tensor) -> None:
        (self.evaluate(x, t).float() - x).square().mean().backward()
        self.network.zero_grad()


def main() -> None:
    settings = parse(Settings)
    torch.manual_seed(0)
    config: dict[str, Any] = preset(settings.preset).unet | {"dropout": 0.0}
    cases = make_cases(config, settings)
    x = torch.randn(settings.batch_size, config["in_channels"], *[config["sample_size"]] * 2).to(
        settings.device
    )
    t = torch.randint(1000, (settings.batch_size,), device=settings.device)
    print(
        f"{settings.preset}, batch {settings.batch_size}, median of {settings.rounds}; "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, {settings.device}, "
        f"{torch.get_num_threads()} threads"
    )
    table("one evaluation", cases, Case.evaluation, x, t, settings.rounds)
    table("one training step", cases, Case.training_step, x, t, settings.rounds)


def make_cases(config: dict[str, Any], settings: Settings) -> list[Case]:
    """Both networks in each way of running; a compiled one has its own copy of the parameters."""
    first = UNet(**config)

    def make(ours: bool, channels_last: bool = False, compiled: bool = False) -> nn.Module:
        with torch.device(settings.device):
            network = UNet(**config) if ours else UNet2DModel(**config)
        network.load_state_dict(first.state_dict())
        if channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if compiled:
            network.compile(dynamic=False)
        return network

    cases = []
    for name, ours in (("diffusers", False), ("ddpm_sa", True)):
        plain, last = make(ours), make(ours, channels_last=True)
        cases += [
            Case(f"{name}, fp32", plain),
            Case(f"{name}, bf16", plain, torch.bfloat16),
            Case(f"{name}, bf16 channels_last", last, torch.bfloat16, True),
        ]
        if settings.compile:
            best = make(ours, channels_last=True, compiled=True)
            cases.append(Case(f"{name}, bf16 channels_last compiled", best, torch.bfloat16, True))
    return cases


def table(
    title: str,
    cases: list[Case],
    run: Callable[[Case, Tensor, Tensor], None],
    x: Tensor,
    t: Tensor,
    rounds: int,
) -> None:
    """Time all cases and a matrix product, interleaved, and print a row for each."""
    with FlopCounterMode(display=False) as counter:
        run(cases[0], x, t)
    work = counter.get_total_flops()  # of UNet2DModel; ours does the same with fewer
    runs: dict[str, Callable[[], object]] = {
        case.name: lambda case=case: run(case, x, t) for case in cases
    }
    # Large enough to keep the device busy
    size, products = 8192 if x.device.type == "cuda" else 2048, "matrix product"
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(size, size, device=x.device).to(dtype)
        runs[f"{products} {dtype}"] = lambda matrix=matrix: matrix @ matrix
    seconds = {name: statistics.median(times) for name, times in in_turns(runs, rounds).items()}

    limits = {
        dtype: 2 * size**3 / seconds[f"{products} {dtype}"]
        for dtype in (torch.float32, torch.bfloat16)
    }
    base = seconds[cases[0].name]
    print(f"\n{title:42}{'ms':>8}{'images/s':>10}{'speed':>8}{'of limit':>10}")
    for case in cases:
        took = seconds[case.name]
        share = work / took / limits[case.dtype]
        print(
            f"{case.name:42}{took * 1e3:8.1f}{len(x) / took:10.1f}{base / took:7.2f}x{share:10.0%}"
        )
    print(
        f"limit: a {size} x {size} matrix product, "
        + ", ".join(f"{limit / 1e9:.0f} GFLOP/s in {dtype}" for dtype, limit in limits.items())
        + f"; UNet2DModel's work is {work / 1e9:.0f} GFLOP"
    )


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each run, in all rounds but the first, which warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    run_program(main)
