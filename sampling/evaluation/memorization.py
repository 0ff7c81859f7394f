"""Nearest training images, and the share of memorised samples, calibrated on held-out images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ddpm_sa.data.dataset import Images
from ddpm_sa.metrics.nearest_neighbours import Nearest, nearest, threshold
from sampling.evaluation.image_sets import Batches, ImageSet

HELD_OUT = "held-out images"
SHOWN = 8  # images in the figure
AT_ONCE = 500  # training images compared at once


@dataclass(frozen=True, eq=False)
class NearestImages:
    """The first images of a set, and their nearest neighbours among the training images."""

    images: Tensor
    neighbours: Nearest

    def closest(self) -> list[int]:
        """Indices of the images to show, the nearest to a training image first."""
        return self.neighbours.ratio.argsort()[:SHOWN].tolist()


class FirstImages:
    """Keeps the first images of an image set while its batches are consumed."""

    def __init__(self, count: int):
        self.count = count
        self.parts: list[tuple[list[int], Tensor]] = []

    def collect_from(self, image_set: ImageSet) -> ImageSet:
        """Return the same image set; iterating over its batches also keeps its first images."""

        def batches() -> Batches:
            for indices, images in image_set.batches():
                first = [i for i, index in enumerate(indices) if index < self.count]
                if first:
                    self.parts.append(([indices[i] for i in first], images[first].cpu()))
                yield indices, images

        return ImageSet(image_set.name, image_set.count, batches)


def find_nearest(first_images: FirstImages, training: Images) -> NearestImages:
    """Find the nearest training images; each process searches for the images it kept."""
    indices = [index for part, _ in first_images.parts for index in part]
    images = torch.cat([part for _, part in first_images.parts]) if first_images.parts else None
    neighbours = None if images is None else nearest(images, _in_batches(training))
    parts = [part for part in gather_object([(indices, images, neighbours)]) if part[0]]
    order = torch.tensor([index for part, _, _ in parts for index in part]).argsort()
    merged = Nearest(
        torch.cat([part.distances for _, _, part in parts])[order],
        torch.cat([part.indices for _, _, part in parts])[order],
    )
    return NearestImages(torch.cat([part for _, part, _ in parts])[order], merged)


def _in_batches(images: Images) -> Batches:
    for start in range(0, images.length, AT_ONCE):
        indices = np.arange(start, min(start + AT_ONCE, images.length))
        yield indices.tolist(), images.tensors(indices, np.zeros(len(indices), dtype=bool))


def summarise_copies(nearest_images: dict[str, NearestImages]) -> dict[str, Any]:
    """Which images are nearer to a training image than any held-out image, for evaluation.json."""
    held_out = nearest_images[HELD_OUT]
    limit = threshold(held_out.neighbours)
    return {
        "threshold": limit,
        "held_out": len(held_out.images),
        "sets": {
            name: {
                "images": len(matches.images),
                "share_below": float((matches.neighbours.ratio < limit).double().mean()),
                "below": (matches.neighbours.ratio < limit).nonzero().flatten().tolist(),
                "ratios": matches.neighbours.ratio.tolist(),
                "nearest": matches.neighbours.indices[:, 0].tolist(),
            }
            for name, matches in nearest_images.items()
        },
    }
