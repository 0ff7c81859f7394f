"""What makes digits, or small photographs, good soonest: one choice of the recipe at a time.

    python benchmarks/recipe.py --rows '[baseline,epsilon]' --seeds '[0,1,2]' --output_dir out
    python benchmarks/recipe.py --data cifar10 --source train.parquet --output_dir out

Each row of benchmarks/recipes.yaml is training/configs/mnist.yaml but for the settings named there,
trained for as long as the baseline needs for `steps` updates: what changes the time of an update is
timed against the baseline, in turn, and gets more or fewer of them. The averaged weights make
images, whose Fréchet distance to real ones is taken in features of a classifier that has not seen
these (benchmarks/judge.py). Adds each run to OUTPUT_DIR/DATA.jsonl, and prints a table of all that
stand there; several of these programs may add to one file. One thread each, in as many programs as
there are cores, does most in an hour.

Times stand in OUTPUT_DIR/DATA-times.json, and those that stand there are not measured again. So
`--seeds '[]'` on the machine whose minutes count measures them, and with this file another machine,
such as one with a GPU, can do the training.
"""

import dataclasses
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import yaml
from accelerate import PartialState
from diffusers import UNet2DModel
from torch import Tensor, nn

from benchmarks.judge import FEATURES, moments, train_classifier, train_judge
from benchmarks.trainers.ours import RECIPE, our_config, our_pipeline, our_run
from benchmarks.trainers.transcribed import Run, Weights
from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.load import open_images
from ddpm_sa.metrics.distances import frechet_distance
from training.config import TrainConfig
from training.network import build_network

ROWS = Path(__file__).with_name("recipes.yaml")
HELD_OUT = 2500
ROUNDS, UPDATES = 8, 3  # of timing a row beside the baseline
# What changes the time of an update
OF_TIME = {"model.unet", "batch_size", "optim.optimizer", "mixed_precision", "compile"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare.

    Attributes:
        data: digits, or the images of `source` at 16 x 16.
        source: A .parquet file, folder or hub name of labelled images, for cifar10.
        rows: Of benchmarks/recipes.yaml; none for a table of what is in the file already.
        seeds: Of training and samples; none to time the rows alone.
        steps: Updates of the baseline.
        num_images: Samples for each distance.
        sample_steps: Steps of dpmsolver++.
        epochs: How long the classifier learns.
        threads: Of torch.
        output_dir: Where the runs are written down.
    """

    data: Literal["digits", "cifar10"] = "digits"
    source: str | None = None
    rows: tuple[str, ...] = ("baseline",)
    seeds: tuple[int, ...] = (0,)
    steps: int = 500
    num_images: int = 512
    sample_steps: int = 20
    epochs: int = 15
    threads: int = 1
    output_dir: str = "out"

    def __post_init__(self) -> None:
        known = list(yaml.safe_load(ROWS.read_text())[self.data]["rows"])
        if unknown := [row for row in self.rows if row not in known]:
            raise ValueError(f"no row {unknown[0]!r} of {self.data}; there are {', '.join(known)}")
        if self.data == "cifar10" and self.source is None:
            raise ValueError("--data cifar10 needs --source, a .parquet file of labelled images")
        if self.num_images <= FEATURES or self.steps < 100:
            raise ValueError(f"give more than {FEATURES} images, and 100 steps or more")


def main() -> None:
    settings = parse(Settings)
    torch.set_num_threads(settings.threads)
    kind = yaml.safe_load(ROWS.read_text())[settings.data]
    if settings.source is not None:
        kind["base"]["data.source"] = settings.source
    written = Path(settings.output_dir, f"{settings.data}.jsonl")
    written.parent.mkdir(parents=True, exist_ok=True)
    for record in compare(settings, kind) if settings.rows else ():
        with written.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{record['row']}, seed {record['seed']}: {record['distance']:.3f}", flush=True)
    if not settings.seeds:
        return
    if not written.is_file():
        raise ValueError(f"{written} is not there, so there is no table; name --rows to measure")
    print("\n" + table([json.loads(line) for line in written.read_text().splitlines()]))


def compare(settings: Settings, kind: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Train, sample and measure every row at every seed."""
    written = Path(settings.output_dir, f"{settings.data}-times.json")
    factors = {row: relative_time(kind, row, written) for row in settings.rows}
    if not settings.seeds:
        return
    baseline = row_config(kind, "baseline", settings.steps, 0)
    judge, unseen = make_judge(settings, baseline.data)
    target = moments(judge, unseen)
    for seed, row in itertools.product(settings.seeds, settings.rows):
        config = row_config(kind, row, round(settings.steps / factors[row]), seed)
        began = time.process_time()
        weights = train(our_run(config))
        seconds = time.process_time() - began
        images = sample(config, weights, settings)
        yield {
            "row": row,
            "seed": seed,
            "distance": frechet_distance(moments(judge, images), target),
            "updates": config.steps,
            "images": config.steps * config.batch_size,
            "time_of_an_update": factors[row],
            "processor_seconds": seconds,
            "steps": settings.steps,
            "samples": settings.num_images,
        }


def row_config(kind: dict[str, Any], row: str, steps: int, seed: int) -> TrainConfig:
    """A row's settings, over so many updates."""
    settings = kind["base"] | kind["rows"][row]
    if "model.unet" in settings:
        settings["model.unet"] = kind["base"].get("model.unet", {}) | settings["model.unet"]
    if settings.get("model.init_from") == "UNet2DModel":
        # Weights bring their network, so the settings that would make it go.
        settings = {name: value for name, value in settings.items() if "model." not in name}
        settings["model.init_from"] = initial(row_config(kind, "baseline", steps, seed))
    settings.setdefault("optim.decay_steps", steps)
    words = ["--config", RECIPE, "--steps", str(steps), "--seed", str(seed)]
    for name, value in settings.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return our_config(words)


def initial(config: TrainConfig) -> str:
    """A folder with UNet2DModel's own initial weights for that network."""
    network = build_network(config.model, open_images(config.data), config.seed)
    folder = tempfile.mkdtemp(dir=scratch().name)
    torch.manual_seed(config.seed)
    UNet2DModel(**network.to_diffusers().config).save_pretrained(Path(folder, "unet"))
    return folder


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when the program ends."""
    return tempfile.TemporaryDirectory(prefix="ddpm_sa-recipe-")


def relative_time(kind: dict[str, Any], row: str, written: Path) -> float:
    """How long an update of a row takes, in those of the baseline, as written or measured now."""
    if OF_TIME.isdisjoint(kind["rows"][row]):
        return 1.0
    known = json.loads(written.read_text()) if written.is_file() else {}
    if row not in known:
        # Long enough for the learning rate, which the time does not depend on.
        configs = (row_config(kind, name, 10**4, 0) for name in (row, "baseline"))
        known[row] = measure_relative_time(*configs)
        written.write_text(json.dumps(known, indent=2) + "\n")
        print(f"{row}: an update takes {known[row]:.2f} times the baseline's", flush=True)
    return known[row]


def measure_relative_time(config: TrainConfig, baseline: TrainConfig) -> float:
    """How long an update takes, in those of the baseline: medians of turns one after the other."""
    runs = (our_run(config), our_run(baseline))
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(ROUNDS + 1):
        for run, taken in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            for _ in range(UPDATES):
                next(run)
            if round_:  # the first warms up
                taken.append(time.perf_counter() - began)
    for run in runs:
        run.close()
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def train(run: Run) -> Weights:
    weights: Callable[[], Weights] = dict
    for copy in run:
        weights = copy
    return weights()


def sample(config: TrainConfig, weights: Weights, settings: Settings) -> Tensor:
    """Images in [-1, 1], (N, C, S, S)."""
    pipeline = our_pipeline(config, weights).to(PartialState().device)
    pipeline.set_progress_bar_config(disable=True)
    made: Any = pipeline(
        settings.num_images,
        steps=settings.sample_steps,
        scheduler="dpmsolver++",
        batch_size=64,
        output_type="pt",
        seed=config.seed,
    ).images
    return made * 2 - 1


def make_judge(settings: Settings, data: DataConfig) -> tuple[nn.Module, Tensor]:
    """The classifier, and images that it has not seen."""
    if settings.data == "digits":
        judge, unseen, _ = train_judge(settings.epochs, HELD_OUT)
    else:
        images = open_images(dataclasses.replace(data, class_conditional=True))
        assert images.labels is not None
        pixels = images.tensors(np.arange(images.length), np.zeros(images.length, bool))
        judge, unseen, _ = train_classifier(
            pixels, torch.from_numpy(images.labels), settings.epochs, HELD_OUT
        )
    return judge, unseen


def table(records: list[dict[str, Any]]) -> str:
    """Distances of each row, best mean first, with their spread over seeds."""
    rows = defaultdict(list)
    for record in records:
        rows[record["row"]].append(record)
    lines = ["| row | updates | images | distance | by seed |", "|---|---|---|---|---|"]
    means = {row: statistics.mean(run["distance"] for run in runs) for row, runs in rows.items()}
    for row in sorted(rows, key=lambda row: means[row]):
        runs = rows[row]
        spread = statistics.stdev(run["distance"] for run in runs) if len(runs) > 1 else None
        lines.append(
            f"| {row} | {runs[0]['updates']} | {runs[0]['images']:,} | {means[row]:.3f}"
            + ("" if spread is None else f" ± {spread:.3f}")
            + " | "
            + ", ".join(f"{run['distance']:.3f}" for run in runs)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
