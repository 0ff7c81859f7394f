"""Precision, recall, density and coverage of generated images.

The support of a set is estimated by balls around its images, whose radii are the distances to the
k-th nearest neighbours within the set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_sa.errors import UserError

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 2
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020, section 3.3
BLOCK = 512  # rows per distance matrix


@dataclass(frozen=True)
class Shares:
    """Precision, recall, density and coverage.

    Attributes:
        precision: Share of generated images within the real images' balls, a measure of realism
            (Kynkäänniemi et al. 2019, eq. 2).
        recall: Share of real images within the generated images' balls, a measure of diversity.
        density: Mean number of real balls that contain a generated image, over k; 1 for sets of
            one distribution, above 1 if samples gather where real images are dense (Naeem et al.
            2020, eq. 3).
        coverage: Share of real balls that contain a generated image (eq. 4).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def shares(real: Tensor, generated: Tensor) -> Shares:
    """Compare features of real, (N, D), and generated images, (M, D).

    k is 3 for precision and recall, and 5 for density and coverage.

    Raises:
        ValueError: If the sets differ in the number of features, or have no more than k rows.
    """
    if real.shape[1] != generated.shape[1]:
        raise UserError(
            f"sets of {real.shape[1]} and {generated.shape[1]} features cannot be compared"
        )
    real, generated = real.double(), generated.double()
    precision_radii, density_radii = radii(real, (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
    (generated_radii,) = radii(generated, (PRECISION_NEIGHBOURS,))
    precise = within = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for rows, row_radii in zip(generated.split(BLOCK), generated_radii.split(BLOCK), strict=True):
        distances = torch.cdist(rows, real)
        precise += int((distances <= precision_radii).any(1).sum())
        within += int((distances <= density_radii).sum())
        recalled |= (distances <= row_radii[:, None]).any(0)
        nearest = nearest.minimum(distances.amin(0))
    return Shares(
        precision=precise / len(generated),
        recall=float(recalled.double().mean()),
        density=within / (DENSITY_NEIGHBOURS * len(generated)),
        coverage=float((nearest <= density_radii).double().mean()),
    )


def radii(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """Compute the distance of each row to its k-th nearest neighbour, (N,), for each k.

    Raises:
        ValueError: If there are no more than k rows.
    """
    if len(x) <= max(neighbours):
        raise UserError(
            f"{len(x)} images have no {max(neighbours)} neighbours; give at least "
            f"{max(neighbours) + 1}"
        )
    blocks = []
    for start in range(0, len(x), BLOCK):
        distances = torch.cdist(x[start : start + BLOCK], x)
        # The row itself is excluded by its position, since rounding may move its distance from 0.
        distances.diagonal(start).fill_(torch.inf)
        blocks.append(distances.topk(max(neighbours), largest=False).values)
    nearest = torch.cat(blocks)
    return [nearest[:, k - 1] for k in neighbours]
