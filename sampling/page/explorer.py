"""Sampling, attention maps and pictures for the page of sampling/app.py, without the page."""

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
from ddpm_sa.errors import UserError
from ddpm_sa.interpret.ablation import Replacement
from ddpm_sa.interpret.measures import distance, entropy, local_share, overlap
from ddpm_sa.samplers.denoise import Step
from sampling.common.trajectory import (
    Array,
    AttentionTrajectory,
    SampleSpec,
    Trajectory,
    record_trajectory,
)
from sampling.figures.panels import (
    add_colour_bar,
    draw_outline,
    mark_query,
    render,
    show_map,
    to_picture,
)

MAX_STEPS = 250
MAX_BYTES = 64 * 2**20  # of one trajectory, kept while its page is open
WIDTH = 384  # smallest width of an image on the page, in pixels of the screen
MARKERS = ("o", "s")  # of the first and the second query
Pixel = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The model, the image to sample, and the layers whose attention is replaced."""

    model: str
    spec: SampleSpec
    layers: tuple[str, ...] = ()
    replacement: Replacement = "identity"


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """A sampled image: the choice, and its denoising trajectory."""

    choice: Choice
    trajectory: Trajectory


class Explorer:
    """Samples from the models; attention that one image replaces stays unchanged for the others.

    Args:
        pipelines: The models, by the name shown on the page.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.pipelines = pipelines
        self._lock = threading.Lock()

    def max_steps(self, model: str) -> int:
        """The largest number of steps: limited by training timesteps, memory and time."""
        pipeline = self.pipelines[model]
        step_bytes = 2 * 4 * math.prod(pipeline.image_format.shape)
        return min(
            MAX_STEPS,
            pipeline.scheduler.config.num_train_timesteps,
            max(1, MAX_BYTES // step_bytes),
        )

    def generate(self, choice: Choice) -> Iterator[Step]:
        """Sample an image, yielding after each evaluation of the network.

        Raises:
            ValueError: If the model is unknown, or cannot sample this way.
        """
        if choice.model not in self.pipelines:
            raise UserError(f"the model must be one of {', '.join(self.pipelines)}")
        if not 1 <= choice.spec.steps <= self.max_steps(choice.model):
            raise UserError(
                f"steps={choice.spec.steps} must lie between 1 and "
                f"{self.max_steps(choice.model)} on this page"
            )
        if choice.spec.seed < 0 or choice.spec.index < 0:
            raise UserError("the seed must be 0 or greater")
        pipeline = self.pipelines[choice.model]
        choice.spec.count_evaluations(pipeline)
        steps = choice.spec.denoise(pipeline)
        while True:
            with self._lock_network(choice):
                step = next(steps, None)
            if step is None:
                return
            yield step

    def attention_maps(
        self, generated: GeneratedImage, evaluation: int, queries: Sequence[Pixel]
    ) -> dict[str, Array]:
        """The attention maps at one evaluation: layer name -> (heads, queries, h, w).

        The network is evaluated again on the recorded input.
        """
        pipeline, trajectory = self.pipelines[generated.choice.model], generated.trajectory
        condition = generated.choice.spec.condition(pipeline).to(pipeline.device)
        x_t = torch.from_numpy(trajectory.x_t[evaluation][None]).to(
            pipeline.device, pipeline.unet.dtype
        )
        t = torch.tensor([float(trajectory.timesteps[evaluation])], device=pipeline.device)
        with (
            torch.no_grad(),
            self._lock_network(generated.choice),
            record_attention(pipeline.unet, queries=queries, heads="all") as maps,
        ):
            condition.evaluate(pipeline.unet, x_t, t)
        return {layer: recorded[0].numpy() for layer, (recorded,) in maps.items()}

    def record(self, generated: GeneratedImage, queries: Sequence[Pixel]) -> AttentionTrajectory:
        """Record the whole trajectory, for download."""
        with self._lock_network(generated.choice):
            return record_trajectory(
                self.pipelines[generated.choice.model], generated.choice.spec, queries
            )

    @contextlib.contextmanager
    def _lock_network(self, choice: Choice) -> Iterator[None]:
        unet = self.pipelines[choice.model].unet
        radius = 1 if choice.replacement == "local" else None
        with self._lock, contextlib.ExitStack() as stack:
            if choice.layers:
                stack.enter_context(
                    ablate_attention(unet, choice.replacement, choice.layers, radius)
                )
            yield


def select_head(maps: Array, head: int | None) -> Array:
    """Select one head, or average all: (heads, queries, h, w) -> (queries, h, w)."""
    return maps.mean(0) if head is None else maps[head]


def render_image(image: Array, queries: Sequence[Pixel]) -> Image.Image:
    """Enlarge an image by an integer factor, and mark the queries with a ring and a square."""
    pixels = (to_picture(image) * 255).round().astype(np.uint8)
    factor = enlargement_factor(image.shape[-2:])
    large = Image.fromarray(pixels).convert("RGB")
    large = large.resize((large.width * factor, large.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    for marker, (y, x) in zip(MARKERS, queries, strict=False):
        for radius, colour, width in ((9, "black", 4), (8, "white", 2)):
            middle = ((x + 0.5) * factor, (y + 0.5) * factor)
            box = [*(m - radius for m in middle), *(m + radius for m in middle)]
            (draw.ellipse if marker == "o" else draw.rectangle)(box, outline=colour, width=width)
    return large


def enlargement_factor(size: tuple[int, int]) -> int:
    """The integer factor by which an image of this height and width is enlarged."""
    return max(1, WIDTH // max(size))


def draw_map(values: Array, image: Array, query: Pixel, marker: str, title: str) -> NDArray:
    """Draw a map, (h, w), with its query and the outline of the image."""
    figure = Figure(figsize=(4.2, 3.4), dpi=130, layout="constrained")
    axis, bar = figure.subplots(1, 2, width_ratios=[1, 0.05])
    show_map(axis, values, image.shape[-2:], Normalize(0, values.max()))
    draw_outline(axis, image)
    mark_query(axis, *query, marker)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("x (pixels)", fontsize=9)
    axis.set_ylabel("y (pixels)", fontsize=9)
    axis.tick_params(labelsize=8)
    add_colour_bar(figure, bar, axis, values.shape)
    bar.yaxis.label.set_fontsize(8)
    bar.tick_params(labelsize=8)
    return render(figure)


def measure_maps(maps: Array, queries: Sequence[Pixel], size: tuple[int, int]) -> list[list[str]]:
    """Table rows: the name of a measure, and its value for each query.

    Args:
        maps: (queries, h, w).
        size: Height and width of the image.
    """
    tensor = torch.from_numpy(maps)
    reduction = size[0] // maps.shape[-2]
    places = torch.tensor(queries) // reduction
    rows = [
        ["entropy, nats", *_format(entropy(tensor))],
        ["mean distance, pixels", *_format(distance(tensor, places) * reduction)],
        ["share on the 3 × 3 around", *(f"{v:.1%}" for v in local_share(tensor, places).tolist())],
        ["attends most to (y, x)", *(f"{_strongest_pixel(values, reduction)}" for values in maps)],
        ["share there", *(f"{values.max():.1%}" for values in maps)],
    ]
    if len(queries) == 2:
        shared = overlap(tensor[:, None]).squeeze(-1)[0, 1].item()
        rows.append(["the two overlap by", f"{shared:.1%}", ""])
    return rows


def rms_difference(one: Array, other: Array) -> float:
    """Root mean square difference of two images in [-1, 1], as a share of the range."""
    return float(np.sqrt(np.mean((one - other) ** 2)) / 2)


def _format(values: torch.Tensor) -> list[str]:
    return [f"{value:.3f}" for value in values.tolist()]


def _strongest_pixel(values: Array, reduction: int) -> str:
    """The pixels of the image with the most attention: "12, 14" or "12-13, 14-15"."""
    place = divmod(int(values.argmax()), values.shape[1])
    if reduction == 1:
        return ", ".join(map(str, place))
    return ", ".join(f"{p * reduction}-{(p + 1) * reduction - 1}" for p in place)
