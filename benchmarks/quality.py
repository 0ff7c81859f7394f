"""How fast sample quality improves: our default recipe and diffusers' example script.

    python benchmarks/quality.py --minutes 10

Both train a network of the same size on the same 5,000 digits for the same minutes, in turns of a
few seconds on the whole processor. Ours is training/configs/mnist.yaml; theirs is the script as
benchmarks/trainers/transcribed.py has it, at the best of three learning rates and of two ways to
make the DDIM steps: what ends with the least distance of fewer samples. The averaged weights of
moments on the way are kept, and make images by 50 DDIM steps from the same noise when all training
is over, so that only training needs a quiet machine. Their distance to real digits is Fréchet's, in
features of a classifier that is trained here (benchmarks/judge.py) and has not seen those digits.
Prints a table, draws quality.png and writes quality.json.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.judge import FEATURES, moments, train_judge
from benchmarks.trainers.ours import RECIPE, our_config, our_pipeline, our_run
from benchmarks.trainers.transcribed import their_pipeline, theirs
from benchmarks.trainers.turns import Start, train_in_turns
from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.dataset import use_one_core
from ddpm_sa.data.load import open_images
from ddpm_sa.metrics.distances import frechet_distance
from training.config import TrainConfig

MOMENTS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the minutes, when samples are taken
# The sampler of diffusers' script, and ours
SAMPLING: dict[str, dict[str, Any]] = {
    "": {},
    ", sampled as ours": {"timestep_spacing": "trailing", "clip_sample": False},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare.

    Attributes:
        minutes: Training time of each run.
        num_images: Samples for each distance of the two curves.
        to_choose: Samples for the distance that chooses the script's learning rate and sampling.
        learning_rates: Of the transcribed script, whose default is 1e-4; the best should lie
            within.
        epochs: How long the classifier learns.
        threads: Of torch; None is its own choice.
        output_dir: Where quality.png and quality.json go.
    """

    minutes: float = 10.0
    num_images: int = 2000
    to_choose: int = 250
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    epochs: int = 15
    threads: int | None = None
    output_dir: str = "out"

    def __post_init__(self) -> None:
        fewest = min(self.num_images, self.to_choose)
        if self.minutes <= 0 or fewest <= FEATURES or not self.learning_rates:
            raise ValueError(
                f"give minutes above 0, a learning rate or more, and more than {FEATURES} images, "
                "since the classifier has so many features"
            )


def main() -> None:
    settings = parse(Settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    print(
        f"{settings.minutes:g} minutes each, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {settings.num_images} samples, 50 DDIM steps, seed 0\n"
    )
    config = recipe_of(10**6)
    images = open_images(config.data)
    digits = images.tensors(np.arange(images.length), np.zeros(images.length, bool))
    script = {f"diffusers' script, lr {rate:g}": rate for rate in settings.learning_rates}
    starts: dict[str, Start] = {"ours": lambda steps: our_run(recipe_of(steps))}
    starts |= {name: partial(theirs, digits, rate) for name, rate in script.items()}
    runs = train_in_turns(starts, settings.minutes, MOMENTS)
    for name, run in runs.items():
        print(f"{name}: {run.updates} updates, lr falls to 0 at {run.planned}", flush=True)

    distances = judge(settings.epochs)
    made = {"ours": (runs["ours"], partial(our_pipeline, config))} | {
        name + how: (runs[name], partial(their_pipeline, **options))
        for name in script
        for how, options in SAMPLING.items()
    }
    candidates = [name for name in made if name != "ours"]
    last = [make(run.kept[-1]) for run, make in (made[name] for name in candidates)]
    ends = dict(zip(candidates, distances(last, settings.to_choose), strict=True))
    for name, end in ends.items():
        print(f"{name}: distance of {settings.to_choose} samples at the end {end:.3g}", flush=True)
    best = min(ends, key=lambda name: ends[name])
    minutes = [at * settings.minutes for at in MOMENTS]
    print("\n| | updates | " + " | ".join(f"{at:.3g} min" for at in minutes) + " |")
    print("|---|---|" + "---|" * len(MOMENTS))
    curves: dict[str, list[float]] = {}
    for name in ("ours", best):
        run, make = made[name]
        curves[name] = distances([make(weights) for weights in run.kept], settings.num_images)
        cells = " | ".join(f"{value:.3g}" for value in curves[name])
        print(f"| {name} | {run.updates} | {cells} |", flush=True)

    needed = minutes_to(curves["ours"], minutes, curves[best][-1])
    print(f"\n{ratio_in_words(needed, settings.minutes, best, curves[best][-1])}")
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": dataclasses.asdict(settings),
        "minutes": minutes,
        "distances": curves,
        "ends": ends,
        "updates": {name: [run.updates, run.planned] for name, run in runs.items()},
    }
    (folder / "quality.json").write_text(json.dumps(record, indent=2) + "\n")
    figure(minutes, curves).savefig(folder / "quality.png", dpi=150)


def judge(epochs: int) -> Callable[[Sequence[Pipeline], int], list[float]]:
    """Make a function that scores pipelines: distances of their samples to held-out digits."""
    classifier, unseen, _ = train_judge(epochs, held_out=2500)
    target = moments(classifier, unseen)

    def distance(num_images: int, pipeline: Pipeline) -> float:
        pipeline.set_progress_bar_config(disable=True)
        made: Any = pipeline(num_images, steps=50, batch_size=64, output_type="pt", seed=0).images
        return frechet_distance(moments(classifier, made * 2 - 1), target)

    def distances(pipelines: Sequence[Pipeline], num_images: int) -> list[float]:
        # Two pipelines on one core each sample 1.5 times as fast as one pipeline on two cores.
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=use_one_core) as pool:
            return list(pool.map(partial(distance, num_images), pipelines))

    return distances


def recipe_of(steps: int) -> TrainConfig:
    """Our recipe for this number of updates; the learning rate falls to 0 at the last."""
    config = our_config(["--config", RECIPE])
    optim = dataclasses.replace(
        config.optim,
        warmup_steps=min(config.optim.warmup_steps, steps // 10),
        decay_steps=steps,
    )
    return dataclasses.replace(config, steps=steps, optim=optim)


def minutes_to(curve: list[float], minutes: list[float], distance: float) -> float | None:
    """The first time at which a curve reaches a distance, interpolated in log-log; None if never.

    If it was there at its first point, that point's minutes.
    """
    for index, value in enumerate(curve):
        if value > distance:
            continue
        if index == 0:
            return minutes[0]
        x, y = np.log(minutes[index - 1 : index + 1]), np.log(curve[index - 1 : index + 1])
        return float(np.exp(np.interp(np.log(distance), y[::-1], x[::-1])))
    return None


def ratio_in_words(needed: float | None, minutes: float, best: str, distance: float) -> str:
    if needed is None:
        return f"ours did not come down to {distance:.3g}, where {best} ended"
    return (
        f"{best} ended at {distance:.3g} after {minutes:g} minutes; ours was there after "
        f"{needed:.3g}, {needed / minutes:.2f} of them"
        + (" or less" if needed <= minutes * MOMENTS[0] else "")
    )


def figure(minutes: list[float], curves: dict[str, list[float]]) -> Figure:
    drawn = Figure(figsize=(5, 3.5), layout="constrained")
    axis = drawn.subplots()
    for (name, curve), colour, marker in zip(
        curves.items(), ("#0072B2", "#D55E00"), "os", strict=True
    ):
        axis.plot(minutes, curve, marker=marker, color=colour, label=name)
    axis.set(xscale="log", yscale="log", xlabel="minutes of training")
    axis.set_ylabel("Fréchet distance to unseen digits\n(features of a digit classifier)")
    axis.set_xticks(minutes, [f"{at:.3g}" for at in minutes])
    axis.xaxis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
    drawn.legend(frameon=False, loc="outside upper left")
    return drawn


if __name__ == "__main__":
    run_program(main)
