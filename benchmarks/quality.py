"""How soon digits are good: our default recipe beside diffusers' example script.

    python benchmarks/quality.py --minutes 10

Both train a network of the same size on the same 5,000 digits for the same minutes, one after the
other on the whole processor. Ours is training/configs/mnist.yaml; theirs is the script as
benchmarks/transcribed.py has it, at the best of three learning rates. At moments on the way the
averaged weights make images by 50 DDIM steps from the same noise. Their distance to real digits is
Fréchet's, in features of a classifier that is trained here (benchmarks/digits.py) and has not seen
those digits. Prints a table, draws quality.png and writes quality.json.
"""

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from benchmarks.digits import train_judge
from benchmarks.samplers import features
from benchmarks.transcribed import Run, Weights, copied, their_pipeline, theirs
from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.opening import open_images
from ddpm_sa.metrics.distances import frechet_distance
from ddpm_sa.metrics.moments import Moments
from training.config import TrainConfig
from training.ema import Averages
from training.launch import make_accelerator, make_layout, settle
from training.loop import learning_rate, make_batches, train_steps
from training.network import build_network
from training.recipe import make_loss, make_scheduler, prepare

RECIPE = "training/configs/mnist.yaml"
MOMENTS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the minutes, when samples are taken
TRIAL_STEPS = 10  # to see how many fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare.

    Attributes:
        minutes: Training time of each run.
        num_images: Samples for each distance.
        learning_rates: Of the transcribed script; 1e-4 is its default.
        epochs: How long the classifier learns.
        threads: Of torch; None is its own choice.
        output_dir: Where quality.png and quality.json go.
    """

    minutes: float = 10.0
    num_images: int = 2000
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    epochs: int = 15
    threads: int | None = None
    output_dir: str = "out"

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.num_images < 65 or not self.learning_rates:
            raise ValueError(
                "give minutes above 0, a learning rate or more, and 65 images or more, since the "
                "classifier has 64 features"
            )


def main() -> None:
    settings = parse(Settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", RECIPE, "--output_dir", folder, "--tracker", "none"]
        config = parse(TrainConfig, [*words, "--time_limit", "1e6"])
    judge, unseen, _ = train_judge(settings.epochs, held_out=2500)
    target = Moments.of(features(judge, unseen))

    def distance(make: Callable[[Weights], Pipeline], weights: Weights) -> float:
        pipeline = make(weights)
        pipeline.set_progress_bar_config(disable=True)
        made: Any = pipeline(
            settings.num_images, steps=50, batch_size=64, output_type="pt", seed=0
        ).images
        return frechet_distance(Moments.of(features(judge, made * 2 - 1)), target)

    print(
        f"{settings.minutes:g} minutes each, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {settings.num_images} samples, 50 DDIM steps, seed 0\n"
    )
    minutes = [at * settings.minutes for at in MOMENTS]
    print("| | updates | " + " | ".join(f"{at:.3g} min" for at in minutes) + " |")
    print("|---|---|" + "---|" * len(MOMENTS))
    images = open_images(config.data)
    digits = images.tensors(np.arange(images.length), np.zeros(images.length, bool))
    curves: dict[str, list[float]] = {}
    runs: dict[str, tuple[Callable[[int], Run], Callable[[Weights], Pipeline]]] = {
        "ours": (partial(ours, config), partial(our_pipeline, config))
    }
    for rate in settings.learning_rates:
        runs[f"diffusers' script, lr {rate:g}"] = (partial(theirs, digits, rate), their_pipeline)
    for name, (start, make) in runs.items():
        updates, kept = trained(start, settings.minutes)
        curves[name] = [distance(make, weights) for weights in kept]
        cells = " | ".join(f"{value:.3g}" for value in curves[name])
        print(f"| {name} | {updates} | {cells} |", flush=True)

    best = min((name for name in curves if name != "ours"), key=lambda name: curves[name][-1])
    needed = minutes_to(curves["ours"], minutes, curves[best][-1])
    print(f"\n{ratio_in_words(needed, settings.minutes, best, curves[best][-1])}")
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"settings": dataclasses.asdict(settings), "minutes": minutes, "distances": curves}
    (folder / "quality.json").write_text(json.dumps(record, indent=2) + "\n")
    figure(minutes, {"ours": curves["ours"], best: curves[best]}).savefig(
        folder / "quality.png", dpi=150
    )


def trained(start: Callable[[int], Run], minutes: float) -> tuple[int, list[Weights]]:
    """Run for so long; the number of updates, and the averaged weights at the moments."""
    run = start(10**6)
    next(run)  # what happens once
    began = time.perf_counter()
    for _ in range(TRIAL_STEPS - 1):
        next(run)
    seconds = (time.perf_counter() - began) / (TRIAL_STEPS - 1)
    run.close()

    run, spent, updates, kept = start(round(minutes * 60 / seconds)), 0.0, 0, []
    weights: Callable[[], Weights] = dict
    for at in MOMENTS:
        began = time.perf_counter()
        while spent + time.perf_counter() - began < at * minutes * 60:
            made = next(run, None)
            if made is None:  # it was faster than the trial said
                break
            weights, updates = made, updates + 1
        spent += time.perf_counter() - began
        kept.append(weights())
    run.close()
    return updates, kept


def ours(config: TrainConfig, steps: int) -> Run:
    """training/train.py, without what it writes; the learning rate falls until the last step."""
    warmup = min(config.optim.warmup_steps, steps // 10)
    optim = dataclasses.replace(config.optim, decay_steps=steps, warmup_steps=warmup)
    config = settle(dataclasses.replace(config, steps=steps, optim=optim))
    layout, images = make_layout(config), open_images(config.data)
    network = build_network(config.model, images, config.seed)
    accelerator = make_accelerator(config, layout)
    prepared, optimizer = prepare(accelerator, network, config)
    averages = Averages(network, config.ema)
    loss = make_loss(make_scheduler(config), config.objective, images.format)
    batches = make_batches(config, images, layout, 0)
    lr, clip = partial(learning_rate, config.optim), config.optim.grad_clip
    for progress in train_steps(accelerator, prepared, optimizer, loss, batches, lr, clip):
        averages.update(progress.step - 1)
        yield lambda: copied(averages.main.state_dict())


def our_pipeline(config: TrainConfig, weights: Weights) -> Pipeline:
    network = build_network(config.model, open_images(config.data), config.seed)
    network.load_state_dict(weights)
    return Pipeline(network, make_scheduler(config))


def minutes_to(curve: list[float], minutes: list[float], distance: float) -> float | None:
    """When a curve first came down to a distance, on straight lines in log-log; None: never.

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
    # A curve may lie within one decade, whose ticks are minor ones.
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return drawn


if __name__ == "__main__":
    run_program(main)
