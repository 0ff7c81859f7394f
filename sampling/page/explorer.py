"""What the page of sampling/app.py shows, made without the page."""

import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ddpm_sa import Pipeline, ablate_attention, record_attention
from ddpm_sa.interpret.ablation import Replacement
from ddpm_sa.interpret.measures import distance, entropy, local_share, overlap
from ddpm_sa.samplers.denoise import Step
from sampling.common.trajectory import Array, Course, Denoising, Making, follow
from sampling.figures.panels import colour_bar, drawn, mark, outline, picture, show_map

MOST_STEPS = 250
MOST_BYTES = 64 * 2**20  # of one image's way from noise, kept while somebody looks at it
WIDTH = 384  # pixels of the screen, at least
MARKERS = ("o", "s")  # of the first and of the second query
Pixel = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which image of which model, and in which of its layers attention is replaced, and by what."""

    model: str
    making: Making
    layers: tuple[str, ...] = ()
    replacement: Replacement = "identity"


@dataclasses.dataclass(frozen=True)
class Made:
    """A choice, and how its image came out of noise."""

    choice: Choice
    way: Denoising


class Explorer:
    """The models, one evaluation at a time: what is replaced for one image is so for that alone.

    Args:
        pipelines: By the name that people choose them by.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.pipelines = pipelines
        self._lock = threading.Lock()

    def most_steps(self, model: str) -> int:
        """So many can be asked for: what training had, memory holds, and patience bears."""
        pipeline = self.pipelines[model]
        step_bytes = 2 * 4 * math.prod(pipeline.image_format.shape)
        return min(
            MOST_STEPS,
            pipeline.scheduler.config.num_train_timesteps,
            max(1, MOST_BYTES // step_bytes),
        )

    def make(self, choice: Choice) -> Iterator[Step]:
        """Make an image, evaluation by evaluation.

        Raises:
            ValueError: If the model is unknown, or cannot make it.
        """
        if choice.model not in self.pipelines:
            raise ValueError(f"the model is none of {', '.join(self.pipelines)}")
        if not 1 <= choice.making.steps <= self.most_steps(choice.model):
            raise ValueError(
                f"steps={choice.making.steps} must lie between 1 and "
                f"{self.most_steps(choice.model)} here"
            )
        if choice.making.seed < 0 or choice.making.index < 0:
            raise ValueError("the seed must be 0 or greater")
        pipeline = self.pipelines[choice.model]
        choice.making.evaluations(pipeline)
        walk = choice.making.walk(pipeline)
        while True:
            with self._network(choice):
                step = next(walk, None)
            if step is None:
                return
            yield step

    def look(self, made: Made, moment: int, queries: Sequence[Pixel]) -> dict[str, Array]:
        """Where pixels looked at a moment: name of a layer -> (heads, queries, h, w).

        The network sees again what it saw then.
        """
        pipeline, way = self.pipelines[made.choice.model], made.way
        condition = made.choice.making.condition(pipeline).to(pipeline.device)
        x_t = torch.from_numpy(way.x_t[moment][None]).to(pipeline.device, pipeline.unet.dtype)
        t = torch.tensor([float(way.timesteps[moment])], device=pipeline.device)
        with (
            torch.no_grad(),
            self._network(made.choice),
            record_attention(pipeline.unet, queries=queries, heads="all") as maps,
        ):
            condition.evaluate(pipeline.unet, x_t, t)
        return {layer: kept[0].numpy() for layer, (kept,) in maps.items()}

    def course(self, made: Made, queries: Sequence[Pixel]) -> Course:
        """All of it at every moment, for who takes it home."""
        with self._network(made.choice):
            return follow(self.pipelines[made.choice.model], made.choice.making, queries)

    @contextlib.contextmanager
    def _network(self, choice: Choice) -> Iterator[None]:
        unet = self.pipelines[choice.model].unet
        radius = 1 if choice.replacement == "local" else None
        with self._lock, contextlib.ExitStack() as stack:
            if choice.layers:
                stack.enter_context(
                    ablate_attention(unet, choice.replacement, choice.layers, radius)
                )
            yield


def of_head(maps: Array, head: int | None) -> Array:
    """(heads, queries, h, w) -> (queries, h, w): of one head, or the mean of all."""
    return maps.mean(0) if head is None else maps[head]


def show_image(image: Array, queries: Sequence[Pixel]) -> Image.Image:
    """An image, enlarged by a whole factor, with a ring for one query and a square for another."""
    pixels = (picture(image) * 255).round().astype(np.uint8)
    factor = enlargement(image.shape[-2:])
    large = Image.fromarray(pixels).convert("RGB")
    large = large.resize((large.width * factor, large.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    for marker, (y, x) in zip(MARKERS, queries, strict=False):
        for radius, colour, width in ((9, "black", 4), (8, "white", 2)):
            middle = ((x + 0.5) * factor, (y + 0.5) * factor)
            box = [*(m - radius for m in middle), *(m + radius for m in middle)]
            (draw.ellipse if marker == "o" else draw.rectangle)(box, outline=colour, width=width)
    return large


def enlargement(size: tuple[int, int]) -> int:
    """How many pixels of the screen show one of an image of this height and width."""
    return max(1, WIDTH // max(size))


def draw_map(values: Array, image: Array, query: Pixel, marker: str, title: str) -> NDArray:
    """A map, (h, w), with its query and the image's outline, as a picture."""
    figure = Figure(figsize=(4.2, 3.4), dpi=130, layout="constrained")
    axis, bar = figure.subplots(1, 2, width_ratios=[1, 0.05])
    show_map(axis, values, image.shape[-2:], Normalize(0, values.max()))
    outline(axis, image)
    mark(axis, *query, marker)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("x (pixels)", fontsize=9)
    axis.set_ylabel("y (pixels)", fontsize=9)
    axis.tick_params(labelsize=8)
    colour_bar(figure, bar, axis, values.shape)
    bar.yaxis.label.set_fontsize(8)
    bar.tick_params(labelsize=8)
    return drawn(figure)


def numbers(maps: Array, queries: Sequence[Pixel], size: tuple[int, int]) -> list[list[str]]:
    """Rows of a table: a measure, and its value for each query.

    Args:
        maps: (queries, h, w).
        size: Height and width of the image.
    """
    every = torch.from_numpy(maps)
    reduction = size[0] // maps.shape[-2]
    places = torch.tensor(queries) // reduction
    rows = [
        ["entropy, nats", *_formatted(entropy(every))],
        ["mean distance, pixels", *_formatted(distance(every, places) * reduction)],
        ["share on the 3 × 3 around", *(f"{v:.1%}" for v in local_share(every, places).tolist())],
        ["looks most at (y, x)", *(f"{_widest(values, reduction)}" for values in maps)],
        ["share there", *(f"{values.max():.1%}" for values in maps)],
    ]
    if len(queries) == 2:
        shared = overlap(every[:, None]).squeeze(-1)[0, 1].item()
        rows.append(["the two overlap by", f"{shared:.1%}", ""])
    return rows


def difference(one: Array, other: Array) -> float:
    """Root of the mean square difference of two images in [-1, 1], of the whole range."""
    return float(np.sqrt(np.mean((one - other) ** 2)) / 2)


def _formatted(values: torch.Tensor) -> list[str]:
    return [f"{value:.3f}" for value in values.tolist()]


def _widest(values: Array, reduction: int) -> str:
    """The pixels of the image under the largest share: "12, 14" or "12-13, 14-15"."""
    place = divmod(int(values.argmax()), values.shape[1])
    if reduction == 1:
        return ", ".join(map(str, place))
    return ", ".join(f"{p * reduction}-{(p + 1) * reduction - 1}" for p in place)
