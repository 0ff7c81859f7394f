"""Nearest training images of an image, and the distance ratio that detects memorisation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_sa.errors import UserError

NEIGHBOURS = 50  # Carlini et al. 2023, section 5.1


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training images of N images.

    Attributes:
        distances: Root mean square differences over the pixels, as a share of the range from black
            to white, (N, K), in increasing order.
        indices: Indices of those training images, (N, K), int64.
    """

    distances: Tensor
    indices: Tensor

    @property
    def ratio(self) -> Tensor:
        """Smallest distance over the mean of all K distances, (N,): 0 for a copy, at most 1.

        It is relative to the neighbourhood (Carlini et al. 2023, eq. 2), because a plain image is
        close to many images without being a copy of any.
        """
        mean = self.distances.mean(1)
        return torch.where(mean > 0, self.distances[:, 0] / mean, 0.0)


def nearest(images: Tensor, training: Iterable[tuple[Sequence[int], Tensor]]) -> Nearest:
    """Find the nearest training images of each image, in the memory of one batch of them.

    Args:
        images: (N, C, H, W), in [-1, 1].
        training: Batches of (indices, images) of the training set.

    Raises:
        ValueError: If there are no training images, or they have another shape.
    """
    rows = images.flatten(1)
    distances = torch.empty(len(rows), 0)
    indices = torch.empty(len(rows), 0, dtype=torch.int64)
    for batch_indices, batch in training:
        if batch.shape[1:] != images.shape[1:]:
            raise UserError(
                f"images of {tuple(images.shape[1:])} and training images of "
                f"{tuple(batch.shape[1:])} cannot be compared"
            )
        # The shortcut by matrix products is inaccurate near 0, which is where copies are.
        batch_distances = torch.cdist(
            rows, batch.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        batch_distances = batch_distances / (2 * rows.shape[1] ** 0.5)
        distances = torch.cat([distances, batch_distances], 1)
        repeated = torch.as_tensor(list(batch_indices)).expand(len(rows), -1)
        indices = torch.cat([indices, repeated], 1)
        distances, order = distances.topk(min(NEIGHBOURS, distances.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
    if not distances.shape[1]:
        raise UserError("there are no training images to compare with")
    return Nearest(distances, indices)


def threshold(held_out: Nearest) -> float:
    """Return the ratio below which an image counts as memorised: the lowest of held-out images."""
    return float(held_out.ratio.min())
