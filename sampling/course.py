"""How an image comes out of noise, and where some of its pixels look on the way."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ddpm_sa import Pipeline, record_attention
from ddpm_sa.sampler import make_scheduler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """One image's way from noise, and where some of its pixels looked.

    Attributes:
        timesteps: What the network was told at each of its evaluations, (steps,).
        x_t: What it saw, (steps, C, H, W).
        x_0: The image that it predicted then, (steps, C, H, W), in [-1, 1].
        image: The image that came of it, (C, H, W), in [-1, 1].
        queries: The pixels (y, x), (queries, 2).
        maps: Name of a layer -> the share of attention on each pixel of its grid, mean over its
            heads, (steps, queries, h, w).
    """

    timesteps: NDArray[np.float32]
    x_t: NDArray[np.float32]
    x_0: NDArray[np.float32]
    image: NDArray[np.float32]
    queries: NDArray[np.int64]
    maps: dict[str, NDArray[np.float32]]

    def moments(self, count: int) -> list[int]:
        """So many evaluations, or all if there are fewer: first, last and evenly between."""
        last = len(self.timesteps) - 1
        return sorted({round(i * last / (count - 1)) for i in range(count)})

    def write(self, path: Path) -> None:
        """An .npz file of these arrays, the maps as "maps/NAME OF LAYER", whole or not at all."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        maps = {f"maps/{name}": array for name, array in arrays.pop("maps").items()}
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays, **maps)
        partial.rename(path)


def follow(
    pipeline: Pipeline,
    queries: Sequence[tuple[int, int]],
    *,
    index: int,
    steps: int,
    seed: int,
    scheduler: str,
    labels: Tensor | None,
) -> Course:
    """Make image `index`, as the pipeline would, recording where its queries look.

    Args:
        queries: Pixels (y, x) of the image.
        labels: The image's class, (1,), or None.

    Raises:
        ValueError: If the image isn't finite, or as `Pipeline` and `record_attention` say.
    """
    total, evaluations = len(make_scheduler(scheduler, pipeline.scheduler, steps).timesteps), []
    with (
        record_attention(pipeline.unet, queries=queries) as maps,
        pipeline.progress_bar(total=total) as bar,  # type: ignore[call-arg]
    ):
        for step in pipeline.denoise([index], steps, seed, scheduler, labels):
            evaluations.append(step)
            bar.update()
    image = evaluations[-1].x_next[0]
    if not image.isfinite().all():
        raise ValueError(
            f"scheduler={scheduler!r} with steps={steps} gave values that are not finite; use more "
            "steps or another scheduler"
        )
    return Course(
        timesteps=np.array([float(step.t) for step in evaluations], np.float32),
        x_t=torch.cat([step.x_t for step in evaluations]).numpy(),
        x_0=torch.cat([step.x_0 for step in evaluations]).clamp(-1, 1).numpy(),
        image=image.clamp(-1, 1).numpy(),
        queries=np.array(queries),
        maps={name: torch.cat(kept)[:, 0].numpy() for name, kept in maps.items()},
    )


def brightest_and_darkest(image: NDArray[np.float32]) -> list[tuple[int, int]]:
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
