"""Mean and covariance of a set of rows of any size, in the memory of one covariance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_sa.errors import UserError


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and scatter of a set of rows; `+` merges two sets.

    Attributes:
        count: Number of rows.
        mean: (D,), float64.
        scatter: Sum of (x - mean)(x - mean)ᵀ, (D, D), float64.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Compute the moments of rows, (N, D), at least one.

        Raises:
            ValueError: If a value is not finite.
        """
        if not rows.isfinite().all():
            first = int((~rows.isfinite().all(1)).nonzero()[0])
            raise UserError(f"row {first} of {len(rows)} has values that are not finite")
        rows = rows.detach().cpu().double()
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Merge two sets (Chan et al. 1979, eq. 2.1), accurately even if the mean is far from 0."""
        count = self.count + other.count
        shift = other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """The unbiased estimate, (D, D), float64.

        Raises:
            ValueError: If there are fewer than 2 rows.
        """
        if self.count < 2:
            raise UserError(f"{self.count} images have no covariance; give at least 2")
        return self.scatter / (self.count - 1)
