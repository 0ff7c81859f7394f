"""Which images of a set are copies of training images: looked up, and measured by held-out ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ddpm_sa.data.dataset import Images
from ddpm_sa.metrics.nearest_neighbours import Nearest, nearest, threshold
from sampling.evaluation.image_sets import Batches, Entrant

HELD_OUT = "held-out images"
SHOWN = 8  # images of a figure
AT_ONCE = 500  # training images compared at once


@dataclass(frozen=True, eq=False)
class LookedUp:
    """A set's first images and the training images nearest to them."""

    images: Tensor
    found: Nearest

    def suspicious(self) -> list[int]:
        """Those to look at, the nearest to a training image first."""
        return self.found.ratio.argsort()[:SHOWN].tolist()


class Kept:
    """The first images of an entrant's batches, kept as they pass."""

    def __init__(self, count: int):
        self.count = count
        self.parts: list[tuple[list[int], Tensor]] = []

    def of(self, entrant: Entrant) -> Entrant:
        """The same entrant, whose images are noted."""

        def batches() -> Batches:
            for indices, images in entrant.batches():
                near = [i for i, index in enumerate(indices) if index < self.count]
                if near:
                    self.parts.append(([indices[i] for i in near], images[near].cpu()))
                yield indices, images

        return Entrant(entrant.name, entrant.count, batches)


def look_up(kept: Kept, training: Images) -> LookedUp:
    """The images that all processes kept, in order; each process looks up its own."""
    indices = [index for part, _ in kept.parts for index in part]
    images = torch.cat([part for _, part in kept.parts]) if kept.parts else None
    found = None if images is None else nearest(images, _all_of(training))
    parts = [part for part in gather_object([(indices, images, found)]) if part[0]]
    order = torch.tensor([index for part, _, _ in parts for index in part]).argsort()
    whole = Nearest(
        torch.cat([part.distances for _, _, part in parts])[order],
        torch.cat([part.indices for _, _, part in parts])[order],
    )
    return LookedUp(torch.cat([part for _, part, _ in parts])[order], whole)


def _all_of(images: Images) -> Batches:
    for start in range(0, images.length, AT_ONCE):
        indices = np.arange(start, min(start + AT_ONCE, images.length))
        yield indices.tolist(), images.tensors(indices, np.zeros(len(indices), dtype=bool))


def copies(looked_up: dict[str, LookedUp]) -> dict[str, Any]:
    """Which images are nearer to a training image than every held-out one; for evaluation.json."""
    held_out = looked_up[HELD_OUT]
    limit = threshold(held_out.found)
    return {
        "threshold": limit,
        "held_out": len(held_out.images),
        "sets": {
            name: {
                "images": len(looked.images),
                "share_below": float((looked.found.ratio < limit).double().mean()),
                "below": (looked.found.ratio < limit).nonzero().flatten().tolist(),
                "ratios": looked.found.ratio.tolist(),
                "nearest": looked.found.indices[:, 0].tolist(),
            }
            for name, looked in looked_up.items()
        },
    }
