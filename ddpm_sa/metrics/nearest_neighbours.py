"""Is it learned by heart: the training images nearest to an image, and how near that is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 50  # Carlini et al. 2023, section 5.1


@dataclass(frozen=True, eq=False)
class Nearest:
    """The training images nearest to some images.

    Attributes:
        distances: Root mean square differences over the pixels, of the range from black to white,
            (N, K), the nearest first.
        indices: Of those training images, (N, K), int64.
    """

    distances: Tensor
    indices: Tensor

    @property
    def ratio(self) -> Tensor:
        """The nearest distance over the mean one of all K, (N,): 0 for a copy, at most 1.

        Relative to its own neighbourhood (Carlini et al. 2023, eq. 2), for a plain image is near
        to many others without being any of them.
        """
        mean = self.distances.mean(1)
        return torch.where(mean > 0, self.distances[:, 0] / mean, 0.0)


def nearest(images: Tensor, training: Iterable[tuple[Sequence[int], Tensor]]) -> Nearest:
    """Look each image up, in memory for a batch of the training images.

    Args:
        images: (N, C, H, W), in [-1, 1].
        training: Indices and images, as many batches as there are.

    Raises:
        ValueError: If there are no training images, or they are of another shape.
    """
    rows = images.flatten(1)
    distances = torch.empty(len(rows), 0)
    indices = torch.empty(len(rows), 0, dtype=torch.int64)
    for numbers, batch in training:
        if batch.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"images of {tuple(images.shape[1:])} and training images of "
                f"{tuple(batch.shape[1:])} cannot be compared"
            )
        # Exactly, for the shortcut by matrix products loses what is near to 0: a copy.
        apart = torch.cdist(rows, batch.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart / (2 * rows.shape[1] ** 0.5)
        distances = torch.cat([distances, apart], 1)
        names = torch.as_tensor(list(numbers)).expand(len(rows), -1)
        indices = torch.cat([indices, names], 1)
        distances, order = distances.topk(min(NEIGHBOURS, distances.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
    if not distances.shape[1]:
        raise ValueError("there are no training images to look up")
    return Nearest(distances, indices)


def threshold(held_out: Nearest) -> float:
    """The ratio below which an image is taken to be learned by heart: no held-out one is below."""
    return float(held_out.ratio.min())
