"""Mean and covariance of a set of any size, in memory for one covariance."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of a set of rows; sets are added by `+`.

    Attributes:
        count: Rows.
        mean: (D,), float64.
        scatter: Sum of (x - mean)(x - mean)ᵀ, (D, D), float64.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Of some rows, (N, D), at least one.

        Raises:
            ValueError: If a value is not finite.
        """
        if not rows.isfinite().all():
            wrong = int((~rows.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"row {wrong} of {len(rows)} has values that are not finite")
        rows = rows.detach().cpu().double()
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets (Chan et al. 1979, eq. 2.1): no digit is lost to a mean far from 0."""
        count = self.count + other.count
        apart = other.mean - self.mean
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        mean = self.mean + apart * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """The unbiased estimate, (D, D), float64.

        Raises:
            ValueError: If there are fewer than 2 rows.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} images have no covariance; give 2 at least")
        return self.scatter / (self.count - 1)
