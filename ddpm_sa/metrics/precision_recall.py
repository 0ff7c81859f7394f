"""How much of one set lies among another: precision, recall, density and coverage.

A set's support is taken to be the balls around its images, each as far as its k-th nearest
neighbour in the set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 2
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020, section 3.3
BLOCK = 512  # rows compared at once


@dataclass(frozen=True)
class Shares:
    """The four numbers of two sets.

    Attributes:
        precision: Share of the made images within the real ones' balls: are they realistic
            (Kynkäänniemi et al. 2019, eq. 2).
        recall: Share of the real images within the made ones' balls: is everything there.
        density: In how many real balls a made image lies, over k; 1 where the sets are of one
            distribution, and above where they gather where real ones are dense (Naeem et al.
            2020, eq. 3).
        coverage: Share of the real balls that hold a made image (eq. 4).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def shares(real: Tensor, made: Tensor) -> Shares:
    """Of features, (N, D) and (M, D), with k = 3 for the first two and k = 5 for the others.

    Raises:
        ValueError: If they have other numbers of features, or no more than k rows.
    """
    if real.shape[1] != made.shape[1]:
        raise ValueError(f"sets of {real.shape[1]} and {made.shape[1]} features cannot be compared")
    real, made = real.double(), made.double()
    near, wide = radii(real, (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
    (reach,) = radii(made, (PRECISION_NEIGHBOURS,))
    precise = within = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for rows, reach_of_rows in zip(made.split(BLOCK), reach.split(BLOCK), strict=True):
        distances = torch.cdist(rows, real)
        precise += int((distances <= near).any(1).sum())
        within += int((distances <= wide).sum())
        recalled |= (distances <= reach_of_rows[:, None]).any(0)
        nearest = nearest.minimum(distances.amin(0))
    return Shares(
        precision=precise / len(made),
        recall=float(recalled.double().mean()),
        density=within / (DENSITY_NEIGHBOURS * len(made)),
        coverage=float((nearest <= wide).double().mean()),
    )


def radii(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """The distance of each row to its k-th nearest other one, (N,), for each k.

    Raises:
        ValueError: If there are no k others.
    """
    if len(x) <= max(neighbours):
        raise ValueError(
            f"{len(x)} images have no {max(neighbours)} neighbours; give {max(neighbours) + 1} "
            "at least"
        )
    found = []
    for start in range(0, len(x), BLOCK):
        distances = torch.cdist(x[start : start + BLOCK], x)
        # The row itself is left out by its place: rounding may move its distance from 0.
        distances.diagonal(start).fill_(torch.inf)
        found.append(distances.topk(max(neighbours), largest=False).values)
    nearest = torch.cat(found)
    return [nearest[:, k - 1] for k in neighbours]
