"""How fast each deterministic scheduler converges to the exact solution with more steps.

    python benchmarks/convergence.py --figure docs/convergence.png

The data are normal, so the best network is known exactly, and so is the image that x_T leads to:
E[x_0 | x_t] = m + a c² (x_t - a m) / (a² c² + s²); and (x_t - a m) / sqrt(a² c² + s²) is constant.
Four deviations c stand side by side. Prints the error (root mean square over pixels) and the slope
of its logarithm over that of the steps, the order of the scheduler. "even" steps lie evenly in log
SNR, as those of heun and kdpm2 do as they come, and end at the noise of t = 0: the last step, to
none, has an error of its own.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ddpm_sa.cli import parse, run_program
from ddpm_sa.samplers.denoise import Evaluate, View, denoise, scales
from ddpm_sa.samplers.method import Method
from ddpm_sa.samplers.schedulers import Option

BetaSchedule = Literal["linear", "squaredcos_cap_v2"]
MEAN = 0.3
DEVIATIONS = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64).reshape(4, 1)
STEPS = (20, 40, 80, 160)
EVEN: dict[str, Option] = {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"}
WAYS: dict[str, tuple[str, dict[str, Option]]] = {
    "ddim": ("ddim", {}),
    "euler": ("euler", {}),
    "dpmsolver++": ("dpmsolver++", {}),
    "dpmsolver++singlestep": ("dpmsolver++singlestep", {}),
    "unipc": ("unipc", {}),
    "deis": ("deis", {}),
    "heun": ("heun", {}),
    "kdpm2": ("kdpm2", {}),
    "lms": ("lms", {}),
    "pndm": ("pndm", {}),
    "ipndm": ("ipndm", {}),
    "dpmsolver++, order 1, even": ("dpmsolver++", EVEN | {"solver_order": 1}),
    "dpmsolver++, even": ("dpmsolver++", EVEN),
    "dpmsolver++singlestep, even": ("dpmsolver++singlestep", EVEN),
    "unipc, even": ("unipc", EVEN),
    "heun, even in t": ("heun", {"use_exponential_sigmas": False}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure.

    Attributes:
        beta_schedule: Of the training.
        figure: A .png file for the figure; none is drawn if not given.
    """

    beta_schedule: BetaSchedule = "linear"
    figure: str | None = None


def main() -> None:
    settings = parse(Settings)
    print("| scheduler | " + " | ".join(f"{n} steps" for n in STEPS) + " | slope |")
    print("|---" * (len(STEPS) + 2) + "|")
    table = {}
    for label, (name, options) in WAYS.items():
        table[label] = errors(name, options, STEPS, settings.beta_schedule)
        numbers = " | ".join(f"{error:.1e}" for error in table[label])
        print(f"| {label} | {numbers} | {slope(STEPS, table[label]):.2f} |")
    if settings.figure:
        draw(table, Path(settings.figure))


def errors(
    name: str,
    options: dict[str, Option],
    steps: Sequence[int],
    beta_schedule: BetaSchedule = "linear",
) -> list[float]:
    """The error of a scheduler at each number of steps."""
    return [_error(name, options, count, beta_schedule) for count in steps]


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The order of convergence: minus the slope of log error over log steps, by least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def best(evaluate: Evaluate, view: View) -> Tensor:
    """The exact eps, (1, 1, 4, N), a row for each deviation; a `ddpm_sa.samplers.denoise.Guide`."""
    x_t, a, s = view.x_t.double(), view.a.double(), view.s.double()
    x_0 = MEAN + a * DEVIATIONS**2 / _variance(a, s) * (x_t - a * MEAN)
    return ((x_t - a * x_0) / s).float()


def _variance(a: Tensor, s: Tensor) -> Tensor:
    return a**2 * DEVIATIONS**2 + s**2


def _error(name: str, options: dict[str, Option], steps: int, beta_schedule: BetaSchedule) -> float:
    base = DDPMScheduler(clip_sample=False, beta_schedule=beta_schedule)
    method = Method(scheduler=name, steps=steps, scheduler_options=options)
    x_T = torch.linspace(-2.5, 2.5, 51).expand(1, 1, 4, 51)
    made = method.make_scheduler(base)
    walk = list(denoise(lambda *_: None, made, x_T, lambda _: torch.zeros_like(x_T), guide=best))
    a, s = scales(method.make_scheduler(base), 0, made.timesteps[0])
    constant = (walk[0].x_t.double() - a * MEAN) / _variance(a, s).sqrt()
    # These schedulers end at the noise level of t = 0, not at zero noise.
    if name in ("deis", "pndm") or options.get("final_sigmas_type") == "sigma_min":
        a = made.alphas_cumprod[0].double().sqrt()
    else:
        a = torch.ones((), dtype=torch.float64)
    exact = a * MEAN + constant * _variance(a, (1 - a**2).sqrt()).sqrt()
    return (walk[-1].x_next - exact).square().mean().sqrt().item()


def draw(table: dict[str, list[float]], path: Path) -> None:
    """Draw errors over steps in log-log, with the slopes of orders 1 and 2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    chosen = ("ddim", "euler", "dpmsolver++", "dpmsolver++, even", "heun", "kdpm2", "lms")
    for label in chosen:
        axes.loglog(STEPS, table[label], marker="o", label=label)
    first = np.array(STEPS) / STEPS[0]
    axes.loglog(STEPS, 0.15 / first, "k--", linewidth=1, label="slope 1")
    axes.loglog(STEPS, 0.006 / first**2, "k:", linewidth=1, label="slope 2")
    axes.set_xticks(STEPS, [str(n) for n in STEPS])
    axes.minorticks_off()
    axes.set_xlabel("steps (heun and kdpm2 evaluate the network twice in each)")
    axes.set_ylabel("error, root mean square")
    axes.set_title("Normal data and their exact best network: error of the image")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    run_program(main)
