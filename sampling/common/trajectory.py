"""How an image comes out of noise, and where its pixels look on the way."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ddpm_sa import Pipeline, measure_attention, record_attention
from ddpm_sa.atomic_files import write_atomically
from ddpm_sa.condition import Condition
from ddpm_sa.samplers.denoise import Step
from ddpm_sa.samplers.method import Method, dry_run

MEASURES = ("entropy", "distance", "local_share", "overlap")
Array = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Making:
    """Which image to make, and how: the image is that of `ddpm_sa.Pipeline`."""

    seed: int = 0
    index: int = 0
    steps: int = 50
    scheduler: str = "ddim"
    class_label: int | None = None

    @property
    def method(self) -> Method:
        """How images are made, for `ddpm_sa.Pipeline`."""
        return Method(steps=self.steps, scheduler=self.scheduler)

    def evaluations(self, pipeline: Pipeline) -> int:
        """How often the network is called.

        Raises:
            ValueError: If this pipeline cannot make it.
        """
        self.condition(pipeline)
        return dry_run(self.method, pipeline.scheduler).steps

    def walk(self, pipeline: Pipeline) -> Iterator[Step]:
        """Make it, evaluation by evaluation."""
        condition = self.condition(pipeline)
        return pipeline.denoise([self.index], self.method, self.seed, condition=condition)

    def condition(self, pipeline: Pipeline) -> Condition:
        """What the network is told of it."""
        return pipeline.condition([self.index], self.class_label)

    def told(self, pipeline: Pipeline) -> str:
        """What to write below a picture of it."""
        labels = self.condition(pipeline).class_labels
        of_class = "" if labels is None else f", class {int(labels)}"
        return f"{self.scheduler}, seed {self.seed}, image {self.index}{of_class}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising:
    """One image's way from noise.

    Attributes:
        timesteps: What the network was told at each of its evaluations, (steps,).
        x_t: What it saw, (steps, C, H, W).
        x_0: The image that it predicted then, (steps, C, H, W), in [-1, 1].
        image: The image that came of it, (C, H, W), in [-1, 1].
    """

    timesteps: Array
    x_t: Array
    x_0: Array
    image: Array

    @classmethod
    def of(cls, steps: Sequence[Step]) -> "Denoising":
        """
        Raises:
            ValueError: If the image isn't finite.
        """
        image = steps[-1].x_next[0]
        if not image.isfinite().all():
            raise ValueError("the image has values that are not finite; use more steps")
        return cls(
            timesteps=np.array([float(step.t) for step in steps], np.float32),
            x_t=torch.cat([step.x_t for step in steps]).cpu().numpy(),
            x_0=torch.cat([step.x_0 for step in steps]).clamp(-1, 1).cpu().numpy(),
            image=image.clamp(-1, 1).cpu().numpy(),
        )

    def moments(self, count: int) -> list[int]:
        """So many evaluations, or all if there are fewer: first, last and evenly between."""
        last = len(self.timesteps) - 1
        return sorted({round(i * last / (count - 1)) for i in range(count)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course(Denoising):
    """One image's way from noise, and where its pixels looked.

    Attributes:
        queries: Pixels (y, x) of the image, (queries, 2).
        maps: Name of a layer -> the share of attention on each pixel of its grid, (steps, heads,
            queries, h, w).
        measures: Name of a layer -> name of a measure -> its mean over all pixels of the image,
            (steps, heads), or (steps, heads, heads) for "overlap".
        reductions: Name of a layer -> how many pixels of the image one of its own is wide.
    """

    queries: NDArray[np.int64]
    maps: dict[str, Array]
    measures: dict[str, dict[str, Array]]
    reductions: dict[str, int]

    def write(self, path: Path) -> None:
        """An .npz file, whole or not at all: a layer's arrays are "maps/LAYER", "entropy/LAYER"."""
        arrays = {name: getattr(self, name) for name in ("timesteps", "x_t", "x_0", "image")}
        arrays |= {"queries": self.queries}
        arrays |= {f"maps/{layer}": maps for layer, maps in self.maps.items()}
        for layer, measures in self.measures.items():
            arrays |= {f"{name}/{layer}": array for name, array in measures.items()}
        with write_atomically(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)


def follow(
    pipeline: Pipeline,
    making: Making,
    queries: Sequence[tuple[int, int]],
    progress: Callable[[], object] = lambda: None,
) -> Course:
    """Make an image, recording where its queries look and measuring where all its pixels do.

    Args:
        queries: Pixels (y, x) of the image.
        progress: Called after every evaluation.

    Raises:
        ValueError: If the image isn't finite, or as `Pipeline` and `record_attention` say.
    """
    steps = []
    with (
        record_attention(pipeline.unet, queries=queries, heads="all") as maps,
        measure_attention(pipeline.unet) as measured,
    ):
        for step in making.walk(pipeline):
            steps.append(step)
            progress()
    height = steps[0].x_t.shape[-2]
    return Course(
        **vars(Denoising.of(steps)),
        queries=np.array(queries),
        maps={layer: torch.cat(kept).numpy() for layer, kept in maps.items()},
        measures={
            layer: {
                name: torch.cat([getattr(each, name) for each in kept]).numpy() for name in MEASURES
            }
            for layer, kept in measured.items()
        },
        reductions={layer: height // kept[0].shape[-2] for layer, kept in maps.items()},
    )


def brightest_and_darkest(image: Array) -> list[tuple[int, int]]:
    """The middle of the brightest and of the darkest 5 x 5 pixels; of equals, the most central.

    Args:
        image: (C, H, W).
    """
    height, width = image.shape[-2:]
    grey = torch.from_numpy(image).mean(0)[None, None]
    blurred = F.avg_pool2d(grey, 5, 1, padding=2, count_include_pad=False)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    far = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2
    order = far.flatten().argsort(stable=True)
    # Sums of equal pixels differ in their last bits.
    values = blurred.flatten()[order].mul(1e4).round()
    return [divmod(int(order[place]), width) for place in (values.argmax(), values.argmin())]
