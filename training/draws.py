"""Random numbers of a training step, as functions of (seed, step, position in the batch).

Every process derives the draw of the global batch, which takes microseconds, and slices it; only
the noise, which is large, is made for the slice. So the numbers do not depend on the number of
processes or accumulation steps, and resuming needs no saved random state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.data.conditioning import ConditionDraw
from ddpm_sa.errors import UserError
from ddpm_sa.randomness import standard_normal, stream
from training.config import TrainConfig


@dataclass(frozen=True)
class Layout:
    """How the global batch is split over processes and micro-batches."""

    batch_size: int
    processes: int = 1
    process: int = 0
    micro_batch_size: int | None = None
    """Images evaluated at once, at most; None: a process's whole share of the batch."""

    def __post_init__(self) -> None:
        if self.batch_size % self.processes:
            raise UserError(
                f"batch_size={self.batch_size} is not divisible by {self.processes} processes; use "
                f"a multiple of {self.processes}"
            )

    @property
    def share(self) -> int:
        """Images per process and batch."""
        return self.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches per process and update."""
        return self.share // self.micro

    @property
    def micro(self) -> int:
        """Images per micro-batch: the largest divisor of the share up to micro_batch_size."""
        micro = min(self.micro_batch_size or self.share, self.share)
        return next(count for count in range(micro, 0, -1) if self.share % count == 0)

    def spans(self) -> list[slice]:
        """This process's positions in the global batch, as one slice per micro-batch."""
        first, last = self.process * self.share, (self.process + 1) * self.share
        return [slice(start, start + self.micro) for start in range(first, last, self.micro)]


@dataclass(frozen=True)
class Draw:
    """The random numbers of some positions in the batch of one step.

    Attributes:
        seed, step: Seed of the run, and update, counted from 0.
        positions: Positions in the global batch, (B,) int64.
        indices: Indices of the images in the dataset, (B,) int64.
        flips: Whether each image is mirrored, (B,) bool.
        t: Timesteps, (B,) int64.
        drops: Whether each label is dropped, (B,) bool.
        withheld: Whether each condition image is withheld, (B,) bool.
        shares: The noise in each condition, as a share of the highest level, (B,), in [0, 1).
        purpose: Name of the noise stream; different purposes have independent noise.
    """

    seed: int
    step: int
    positions: np.ndarray
    indices: np.ndarray
    flips: np.ndarray
    t: np.ndarray
    drops: np.ndarray
    withheld: np.ndarray
    shares: np.ndarray
    purpose: str = "training noise"

    def __getitem__(self, span: slice | np.ndarray) -> "Draw":
        """The same numbers, for these positions only."""
        arrays = {
            name: value[span] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return replace(self, **arrays)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise for these positions, (B, *shape), float32, on the CPU."""
        return standard_normal(shape, self.seed, self.purpose, self.positions.tolist(), self.step)

    @property
    def of_condition(self) -> ConditionDraw:
        """The numbers of the condition images."""
        return ConditionDraw(
            seed=self.seed,
            purpose=self.purpose,
            step=self.step,
            positions=self.positions,
            withheld=self.withheld,
            shares=self.shares,
        )


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The draws of a run: `draws(step)` is the draw of the global batch of that step."""

    seed: int
    batch_size: int
    num_images: int
    num_timesteps: int
    flip: bool = False
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    label_dropout: float = 0.0
    condition_dropout: float = 0.0
    in_order: bool = False
    """Use the images in the order of the source, which has shuffled them."""

    @classmethod
    def from_config(cls, config: TrainConfig, num_images: int) -> "Draws":
        """The draws of a run with this configuration and number of images."""
        return cls(
            seed=config.seed,
            batch_size=config.batch_size,
            num_images=num_images,
            num_timesteps=config.schedule.num_timesteps,
            flip=config.data.flip,
            timestep_sampling=config.objective.timestep_sampling,
            label_dropout=config.data.label_dropout,
            condition_dropout=config.condition.dropout or 0.0,
            in_order=config.data.streaming,
        )

    def __call__(self, step: int) -> Draw:
        """The draw of update `step`, counted from 0."""
        return Draw(
            seed=self.seed,
            step=step,
            positions=np.arange(self.batch_size),
            indices=self._indices(step),
            flips=self._bernoulli("flips", step, 0.5 if self.flip else 0.0),
            t=self._timesteps(step),
            drops=self._bernoulli("label drops", step, self.label_dropout),
            withheld=self._bernoulli("withheld conditions", step, self.condition_dropout),
            shares=stream(self.seed, "noise levels", step).random(self.batch_size),
        )

    def _indices(self, step: int) -> np.ndarray:
        """Each epoch has its own permutation; a batch may span two epochs."""
        shown = step * self.batch_size + np.arange(self.batch_size)
        if self.in_order:
            return shown
        epochs, places = np.divmod(shown, self.num_images)
        indices = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            indices[now] = permutation(self.seed, int(epoch), self.num_images)[places[now]]
        return indices

    def _timesteps(self, step: int) -> np.ndarray:
        random = stream(self.seed, "timesteps", step)
        if self.timestep_sampling == "uniform":
            return random.integers(self.num_timesteps, size=self.batch_size)
        # One uniform draw from each of batch_size equal parts of [0, T), in shuffled order, so
        # that each position, and each process's share, is still uniform.
        parts = random.permutation(self.batch_size) + random.random(self.batch_size)
        t = (parts * (self.num_timesteps / self.batch_size)).astype(np.int64)
        return np.minimum(t, self.num_timesteps - 1)  # B - 1 + u may round up to B

    def _bernoulli(self, purpose: str, step: int, probability: float) -> np.ndarray:
        return stream(self.seed, purpose, step).random(self.batch_size) < probability


def validation_draw(seed: int, num_images: int, count: int, num_timesteps: int) -> Draw:
    """The draw of every validation: item i always has the same image, timestep and noise.

    The images come in a fixed random order, and repeat if `count` is larger. The timesteps advance
    through [0, T) by the golden ratio, so that any run of them is spread evenly.
    """
    positions = np.arange(count)
    order = stream(seed, "validation images").permutation(num_images)
    parts = (stream(seed, "validation timesteps").random() + positions * (5**0.5 - 1) / 2) % 1
    never = np.zeros(count, dtype=bool)
    return Draw(
        seed=seed,
        step=0,
        positions=positions,
        indices=order[positions % num_images],
        flips=never,
        t=(parts * num_timesteps).astype(np.int64),
        drops=never,
        withheld=never,
        shares=stream(seed, "validation noise levels").random(count),
        purpose="validation noise",
    )


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order of one epoch, (num_images,) int64."""
    return stream(seed, "epoch", epoch).permutation(num_images)


def seed_dropout(seed: int, step: int, process: int) -> None:
    """Seed torch's generators for this step and process; only dropout draws from them."""
    torch.manual_seed(int(stream(seed, "dropout", step, process).integers(2**63)))
