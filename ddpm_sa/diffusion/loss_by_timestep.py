"""The mean loss in each part of the timesteps, since the mean over all of them hides most."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_BUCKETS = 10


class Buckets:
    """Mean loss of each tenth of the timesteps, or of each timestep if there are fewer than ten.

    Args:
        num_timesteps: T.
        state: The `state()` kept in a checkpoint, to continue from.
    """

    def __init__(self, num_timesteps: int, state: dict[str, Any] | None = None):
        self.num_timesteps = num_timesteps
        count = min(NUM_BUCKETS, num_timesteps)
        self.sums = np.array((state or {}).get("sums", [0.0] * count))
        self.counts = np.array((state or {}).get("counts", [0] * count))

    @property
    def names(self) -> list[str]:
        """The timesteps of each, as "000-099"."""
        digits, count = len(str(self.num_timesteps - 1)), len(self.sums)
        # The smallest t of bucket b, the inverse of `add`'s division.
        ends = [-(-self.num_timesteps * b // count) for b in range(count + 1)]
        return [
            f"{first:0{digits}}-{after - 1:0{digits}}" for first, after in itertools.pairwise(ends)
        ]

    def add(self, t: Sequence[int] | np.ndarray, losses: Sequence[float] | np.ndarray) -> None:
        """Add the loss of each image, at its timestep."""
        bucket = np.asarray(t) * len(self.sums) // self.num_timesteps
        np.add.at(self.sums, bucket, losses)
        np.add.at(self.counts, bucket, 1)

    def means(self) -> list[float | None]:
        """The mean loss of each part, None for a part without images."""
        return [
            float(total / count) if count else None
            for total, count in zip(self.sums, self.counts, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": self.sums.tolist(), "counts": self.counts.tolist()}
