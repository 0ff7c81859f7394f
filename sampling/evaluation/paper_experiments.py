"""The experiments of Ho et al. 2020, one function each, on a trained model."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ddpm_sa import Pipeline
from ddpm_sa.data.dataset import Images
from ddpm_sa.editing.editor import Editor
from ddpm_sa.metrics.features import Extractor
from ddpm_sa.samplers.method import Method
from sampling.evaluation.held_out_loss import likelihood
from sampling.evaluation.image_sets import samples_of
from sampling.evaluation.scores import measured, of_real

COLUMNS, ROWS, PAIRS = 10, 6, 4  # of images in a figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the experiments share.

    Attributes:
        name: The model's, in figures.
        pipeline: An unconditional model.
        method: How images are made.
        images: Those of the training, and beside them those held out; None where neither is needed.
        extractor: Of table 1; None where it is not needed.
        num_images: How many images are made for table 1.
        num_likelihood: Of how many held-out images the bits are.
        seed: Of all noise.
        batch_size: Images at once.
        here: This process; the others share the tables.
        folder: Where figures go.
    """

    name: str
    pipeline: Pipeline
    method: Method
    images: Images | None
    extractor: Extractor | None
    num_images: int
    num_likelihood: int
    seed: int
    batch_size: int
    here: PartialState
    folder: Path

    @property
    def train(self) -> Images:
        assert self.images is not None
        return self.images

    @property
    def held_out(self) -> Images:
        assert self.train.validation is not None
        return self.train.validation

    @cached_property
    def likelihood(self) -> dict[str, Any]:
        """Bits a dimension of held-out images, with their rate and distortion."""
        count, size = self.num_likelihood, self.batch_size
        return likelihood(
            self.name, self.pipeline, self.held_out, count, self.seed, size, self.here
        )

    @cached_property
    def editor(self) -> Editor:
        return Editor(pipeline=self.pipeline, method=self.method, seed=self.seed)

    @property
    def timesteps(self) -> int:
        return self.pipeline.scheduler.config.num_train_timesteps


def table1(run: Run) -> dict[str, Any]:
    """A row of table 1: class score, Fréchet distance to the training images, bits a dimension."""
    size, here = run.batch_size, run.here
    extractor = run.extractor
    assert extractor is not None
    real = of_real(run.train, extractor, size, here)
    samples = samples_of(run.name, run.pipeline, run.method, run.seed, run.num_images, size, here)
    made = measured(samples, real, extractor)
    bits = run.likelihood
    row = {
        extractor.score: made.score,
        extractor.frechet: made.frechet,
        "bits a dimension, at most": bits["bits_per_dimension"],
        "their standard error": bits["standard_error"],
    }
    counts = {"images": made.count, "training_images": real.summary.count}
    if here.is_main_process:
        print(f"table 1: {made.count} images, {bits['images']} held-out images")
        for name, value in row.items():
            print(f"  {name}  {'-' if value is None else f'{value:.4g}'}")
    return {"row": row, **counts, "held_out_images": bits["images"]}


def table4(run: Run) -> dict[str, Any]:
    """Rate and distortion after every tenth of the reverse steps, and of all of them figure 5."""
    from sampling.evaluation import figure
    from sampling.figures.panels import save

    found = run.likelihood
    if run.here.is_main_process:
        save(figure.likelihood({run.name: found}), run.folder / "figure5.png")
        print(f"table 4: {found['images']} held-out images")
        print("  reverse steps  rate (bits/dim)  distortion (RMSE of 0 ... 255)")
        for row in found["table"]:
            rate, distortion = row["rate"], row["distortion"]
            print(f"  {row['reverse_steps']:13}  {rate:15.5f}  {distortion:15.5f}")
        print(
            f"  without loss: {found['rate']:.4f} bits a dimension for the rate and "
            f"{found['decoder']:.4f} for what remains\nfigure 5: {run.folder / 'figure5.png'}"
        )
    return found


def figure6(run: Run) -> None:
    """The images predicted on the way, from noise to image."""
    rows = run.editor.progressive(range(ROWS), COLUMNS)
    T = run.timesteps
    names = [f"{round(i * 100 / (rows.shape[1] - 1))} %" for i in range(rows.shape[1])]
    title = f"the image as predicted, by the share of the {T} timesteps that are behind"
    _draw(run, "figure6", list(rows), [f"image {i}" for i in range(ROWS)], names, title)


def figure7(run: Run) -> None:
    """Images that share x_t, beside it: the later they part, the more they share."""
    editor, last = run.editor, run.timesteps - 1
    levels = [last, *(round(share * last) for share in (0.75, 0.5, 0.25)), 0]
    numbers = {editor.start(level).number for level in levels}
    shared = {
        step.number: editor.cropped(step.x_t)
        for step in run.pipeline.denoise([0], run.method, run.seed)
        if step.number in numbers
    }
    rows = [
        torch.cat([shared[editor.start(level).number], editor.variations(0, 5, level)])
        for level in levels
    ]
    names = [f"t = {level}" for level in levels]
    columns = ["x_t", *(f"sample {i}" for i in range(5))]
    _draw(run, "figure7", rows, names, columns, "images that share x_t")


def figure8(run: Run) -> None:
    """Pairs of held-out images, mixed at half of the timesteps."""
    weights = np.linspace(0, 1, 9).tolist()
    level = run.timesteps // 2
    pairs = [(2 * i, 2 * i + 1) for i in range(min(PAIRS, run.held_out.length // 2))]
    if not pairs:
        raise ValueError("figure8 mixes two held-out images, and there is one")
    rows = []
    for number, pair in enumerate(pairs):
        # Each pair has noise of its own, which at this level is most of what an image becomes.
        editor = dataclasses.replace(run.editor, seed=run.seed + number)
        one, other = run.held_out.tensors(np.array(pair), np.zeros(2, dtype=bool)).split(1)
        mixed = editor.interpolate(one, other, level, weights)
        rows.append(torch.cat([one, mixed, other]))
    columns = ["source", *(f"{w:g}" for w in weights), "source"]
    names = [f"{i}, {j}" for i, j in pairs]
    _draw(run, "figure8", rows, names, columns, f"held-out images mixed at t = {level}")


def _draw(run: Run, name: str, rows: list, row_names: list, columns: list, title: str) -> None:
    from sampling.figures.panels import save
    from sampling.figures.paper import draw_rows

    save(draw_rows(rows, row_names, columns, title), run.folder / f"{name}.png")
    print(f"figure {name.removeprefix('figure')}: {run.folder / name}.png")


def _first_process(draw: Callable[[Run], None]) -> Callable[[Run], None]:
    """Figures are of a few images: one process makes them."""
    return lambda run: draw(run) if run.here.is_main_process else None


EXPERIMENTS: dict[str, Callable[[Run], dict[str, Any] | None]] = {
    "table1": table1,
    "table4": table4,
    "figure6": _first_process(figure6),
    "figure7": _first_process(figure7),
    "figure8": _first_process(figure8),
}
