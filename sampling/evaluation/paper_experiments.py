"""Experiments of Ho et al. 2020 on a trained model, one function for each."""

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
from ddpm_sa.errors import UserError
from ddpm_sa.metrics.features import Extractor
from ddpm_sa.samplers.method import Method
from sampling.evaluation.held_out_loss import evaluate_likelihood
from sampling.evaluation.image_sets import sample_model
from sampling.evaluation.scores import score_images, summarise_reference

COLUMNS, ROWS, PAIRS = 10, 6, 4  # numbers of images in a figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentContext:
    """What all experiments use.

    Attributes:
        name: Name of the model, for figures.
        pipeline: An unconditional model.
        method: The sampling method.
        images: Training images with held-out images; None if no experiment needs them.
        extractor: Feature extractor for table 1; None if it is not needed.
        num_images: Number of images sampled for table 1.
        num_likelihood: Number of held-out images for the bits per dimension.
        seed: Seed of all noise.
        batch_size: Images in a batch.
        state: This process, one of those that share the tables.
        folder: Output folder.
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
    state: PartialState
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
        """Bits per dimension of held-out images, with rate and distortion."""
        count, size = self.num_likelihood, self.batch_size
        return evaluate_likelihood(
            self.name, self.pipeline, self.held_out, count, self.seed, size, self.state
        )

    @cached_property
    def editor(self) -> Editor:
        return Editor(pipeline=self.pipeline, method=self.method, seed=self.seed)

    @property
    def timesteps(self) -> int:
        return self.pipeline.scheduler.config.num_train_timesteps


def table1(context: ExperimentContext) -> dict[str, Any]:
    """Table 1: class score, Fréchet distance to the training images, bits per dimension."""
    size, state = context.batch_size, context.state
    extractor = context.extractor
    assert extractor is not None
    real = summarise_reference(context.train, extractor, size, state)
    samples = sample_model(
        context.name,
        context.pipeline,
        context.method,
        context.seed,
        context.num_images,
        size,
        state,
    )
    scores = score_images(samples, real, extractor)
    bits = context.likelihood
    row = {
        extractor.score: scores.score,
        extractor.frechet: scores.frechet,
        "bits a dimension, at most": bits["bits_per_dimension"],
        "their standard error": bits["standard_error"],
    }
    counts = {"images": scores.count, "training_images": real.summary.count}
    if state.is_main_process:
        print(f"table 1: {scores.count} images, {bits['images']} held-out images")
        for name, value in row.items():
            print(f"  {name}  {'-' if value is None else f'{value:.4g}'}")
    return {"row": row, **counts, "held_out_images": bits["images"]}


def table4(context: ExperimentContext) -> dict[str, Any]:
    """Table 4: rate and distortion at ten reverse steps; figure 5: at all of them."""
    from sampling.evaluation import figure
    from sampling.figures.panels import save_figure

    bound = context.likelihood
    if context.state.is_main_process:
        save_figure(figure.draw_likelihood({context.name: bound}), context.folder / "figure5.png")
        print(f"table 4: {bound['images']} held-out images")
        print("  reverse steps  rate (bits/dim)  distortion (RMSE of 0 ... 255)")
        for row in bound["table"]:
            rate, distortion = row["rate"], row["distortion"]
            print(f"  {row['reverse_steps']:13}  {rate:15.5f}  {distortion:15.5f}")
        print(
            f"  lossless, in bits per dimension: rate {bound['rate']:.4f}, decoder "
            f"{bound['decoder']:.4f}\nfigure 5: {context.folder / 'figure5.png'}"
        )
    return bound


def figure6(context: ExperimentContext) -> None:
    """Figure 6: the predicted images during sampling."""
    rows = context.editor.progressive(range(ROWS), COLUMNS)
    T = context.timesteps
    names = [f"{round(i * 100 / (rows.shape[1] - 1))} %" for i in range(rows.shape[1])]
    title = f"predicted image, by the share of the {T} timesteps done"
    _draw(context, "figure6", list(rows), [f"image {i}" for i in range(ROWS)], names, title)


def figure7(context: ExperimentContext) -> None:
    """Figure 7: images that share x_t, next to it; the lower t, the more they have in common."""
    editor, last = context.editor, context.timesteps - 1
    levels = [last, *(round(share * last) for share in (0.75, 0.5, 0.25)), 0]
    numbers = {editor.start(level).number for level in levels}
    shared = {
        step.number: editor.cropped(step.x_t)
        for step in context.pipeline.denoise([0], context.method, context.seed)
        if step.number in numbers
    }
    rows = [
        torch.cat([shared[editor.start(level).number], editor.variations(0, 5, level)])
        for level in levels
    ]
    names = [f"t = {level}" for level in levels]
    columns = ["x_t", *(f"sample {i}" for i in range(5))]
    _draw(context, "figure7", rows, names, columns, "images that share x_t")


def figure8(context: ExperimentContext) -> None:
    """Figure 8: interpolations between pairs of held-out images at half of the timesteps."""
    weights = np.linspace(0, 1, 9).tolist()
    level = context.timesteps // 2
    pairs = [(2 * i, 2 * i + 1) for i in range(min(PAIRS, context.held_out.length // 2))]
    if not pairs:
        raise UserError("figure8 interpolates between two held-out images, but there is only one")
    rows = []
    for number, pair in enumerate(pairs):
        # A seed for each pair: at this level the noise decides most of the image.
        editor = dataclasses.replace(context.editor, seed=context.seed + number)
        one, other = context.held_out.tensors(np.array(pair), np.zeros(2, dtype=bool)).split(1)
        mixed = editor.interpolate(one, other, level, weights)
        rows.append(torch.cat([one, mixed, other]))
    columns = ["source", *(f"{w:g}" for w in weights), "source"]
    names = [f"{i}, {j}" for i, j in pairs]
    _draw(context, "figure8", rows, names, columns, f"held-out images interpolated at t = {level}")


def _draw(
    context: ExperimentContext, name: str, rows: list, row_names: list, columns: list, title: str
) -> None:
    from sampling.figures.panels import save_figure
    from sampling.figures.paper import draw_rows

    save_figure(draw_rows(rows, row_names, columns, title), context.folder / f"{name}.png")
    print(f"figure {name.removeprefix('figure')}: {context.folder / name}.png")


def _on_main_process(
    draw: Callable[[ExperimentContext], None],
) -> Callable[[ExperimentContext], None]:
    """Run on one process, since a figure has only a few images."""
    return lambda context: draw(context) if context.state.is_main_process else None


EXPERIMENTS: dict[str, Callable[[ExperimentContext], dict[str, Any] | None]] = {
    "table1": table1,
    "table4": table4,
    "figure6": _on_main_process(figure6),
    "figure7": _on_main_process(figure7),
    "figure8": _on_main_process(figure8),
}
