"""The denoising trajectory of one image, with its attention maps and measures."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ddpm_sa import Pipeline, measure_attention, record_attention
from ddpm_sa.condition import Condition
from ddpm_sa.errors import UserError
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.samplers.denoise import Guide, Step
from ddpm_sa.samplers.method import Method, dry_run
from ddpm_sa.samplers.schedulers import Options

MEASURES = ("entropy", "distance", "local_share", "overlap")
Array = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSpec:
    """One image to sample: the same image that `ddpm_sa.Pipeline` makes with these settings."""

    seed: int = 0
    index: int = 0
    steps: int = 50
    scheduler: str = "ddim"
    scheduler_options: Options = dataclasses.field(default_factory=dict)
    guide: Guide | None = None
    class_label: int | str | None = None

    @property
    def method(self) -> Method:
        """The sampling method for `ddpm_sa.Pipeline`."""
        return Method(
            steps=self.steps,
            scheduler=self.scheduler,
            scheduler_options=self.scheduler_options,
            guide=self.guide,
        )

    def count_evaluations(self, pipeline: Pipeline) -> int:
        """Count the evaluations of the network.

        Raises:
            ValueError: If this pipeline cannot sample this way.
        """
        self.condition(pipeline)
        return dry_run(self.method, pipeline.scheduler).steps

    def denoise(self, pipeline: Pipeline) -> Iterator[Step]:
        """Sample the image, yielding after each evaluation of the network."""
        condition = self.condition(pipeline)
        return pipeline.denoise([self.index], self.method, self.seed, condition=condition)

    def condition(self, pipeline: Pipeline) -> Condition:
        """The conditioning of the image."""
        return pipeline.condition([self.index], self.class_label)

    def describe(self, pipeline: Pipeline) -> str:
        """The caption of a figure of this image."""
        labels, name_of = self.condition(pipeline).class_labels, pipeline.image_format.class_name
        of_class = "" if labels is None else f", class {name_of(int(labels))}"
        return f"{self.scheduler}, seed {self.seed}, image {self.index}{of_class}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The denoising trajectory of one image.

    Attributes:
        timesteps: Timestep of each evaluation of the network, (steps,).
        x_t: Its input, (steps, C, H, W).
        x_0: Its prediction of the clean image, (steps, C, H, W), in [-1, 1].
        image: The final image, (C, H, W), in [-1, 1].
    """

    timesteps: Array
    x_t: Array
    x_0: Array
    image: Array

    @classmethod
    def from_steps(cls, steps: Sequence[Step]) -> "Trajectory":
        """Collect the steps of one image.

        Raises:
            ValueError: If the image is not finite.
        """
        image = steps[-1].x_next[0]
        if not image.isfinite().all():
            raise UserError("the image has values that are not finite; use more steps")
        return cls(
            timesteps=np.array([float(step.t) for step in steps], np.float32),
            x_t=torch.cat([step.x_t for step in steps]).cpu().numpy(),
            x_0=torch.cat([step.x_0 for step in steps]).clamp(-1, 1).cpu().numpy(),
            image=image.clamp(-1, 1).cpu().numpy(),
        )

    def spread_evaluations(self, count: int) -> list[int]:
        """Indices of `count` evenly spaced evaluations, the first and the last among them."""
        last = len(self.timesteps) - 1
        return sorted({round(i * last / (count - 1)) for i in range(count)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTrajectory(Trajectory):
    """The denoising trajectory of one image, with its attention maps.

    Attributes:
        queries: Query pixels (y, x) of the image, (queries, 2).
        maps: Layer name -> attention of each query over the layer's grid, (steps, heads, queries,
            h, w).
        measures: Layer name -> measure name -> mean over all pixels of the image, (steps, heads),
            or (steps, heads, heads) for "overlap".
        reductions: Layer name -> width of one of its pixels, in pixels of the image.
    """

    queries: NDArray[np.int64]
    maps: dict[str, Array]
    measures: dict[str, dict[str, Array]]
    reductions: dict[str, int]

    def save(self, path: Path) -> None:
        """Write an .npz file atomically; a layer's arrays are "maps/LAYER", "entropy/LAYER", ..."""
        arrays = {name: getattr(self, name) for name in ("timesteps", "x_t", "x_0", "image")}
        arrays |= {"queries": self.queries}
        arrays |= {f"maps/{layer}": maps for layer, maps in self.maps.items()}
        for layer, measures in self.measures.items():
            arrays |= {f"{name}/{layer}": array for name, array in measures.items()}
        with write_atomically(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)


def record_trajectory(
    pipeline: Pipeline,
    spec: SampleSpec,
    queries: Sequence[tuple[int, int]],
    progress: Callable[[], object] = lambda: None,
) -> AttentionTrajectory:
    """Sample an image, recording the maps of its queries and the measures of all pixels.

    A guide evaluates a network twice in a step. What is recorded is the strong evaluation: that of
    the model itself, on x_t, with its label and its own attention. The weak evaluation, or the
    weaker model, is not recorded; the images x_t and x_0 are those of the guided sampler.

    Args:
        pipeline: The model.
        spec: The image to sample.
        queries: Query pixels (y, x) of the image.
        progress: Called after each evaluation.

    Raises:
        ValueError: If the image is not finite, or as `Pipeline` and `record_attention` raise.
    """
    steps = []
    with (
        record_attention(pipeline.unet, queries=queries, heads="all") as maps,
        measure_attention(pipeline.unet) as measures,
    ):
        for step in spec.denoise(pipeline):
            steps.append(step)
            for evaluations in (*maps.values(), *measures.values()):
                del evaluations[len(steps) :]  # the strong evaluation comes first
            progress()
    height = steps[0].x_t.shape[-2]
    return AttentionTrajectory(
        **vars(Trajectory.from_steps(steps)),
        queries=np.array(queries),
        # Of a batch of both evaluations, the first image is the strong one's.
        maps={
            layer: torch.cat([each[:1] for each in recorded]).numpy()
            for layer, recorded in maps.items()
        },
        measures={
            layer: {
                name: torch.cat([getattr(each, name)[:1] for each in recorded]).numpy()
                for name in MEASURES
            }
            for layer, recorded in measures.items()
        },
        reductions={layer: height // recorded[0].shape[-2] for layer, recorded in maps.items()},
    )


def brightest_and_darkest(image: Array) -> list[tuple[int, int]]:
    """The centres of the brightest and the darkest 5 x 5 patch; ties go to the most central.

    Args:
        image: (C, H, W).
    """
    height, width = image.shape[-2:]
    grey = torch.from_numpy(image).mean(0)[None, None]
    blurred = F.avg_pool2d(grey, 5, 1, padding=2, count_include_pad=False)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    far = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2
    order = far.flatten().argsort(stable=True)
    # Rounded, since sums of equal pixels may differ in their last bits.
    values = blurred.flatten()[order].mul(1e4).round()
    return [divmod(int(order[place]), width) for place in (values.argmax(), values.argmin())]
