"""What is drawn at random for a step of training, as a function of (seed, step, position).

Every process derives the draw of the whole batch, which costs microseconds, and takes its slice;
only the noise, which is large, is made for the slice alone. So any number of processes and any
accumulation see the same numbers, and a resumed run needs no saved random state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.randomness import standard_normal, stream
from training.config import TrainConfig


@dataclass(frozen=True)
class Layout:
    """Who evaluates which positions of the global batch, and when."""

    batch_size: int
    processes: int = 1
    process: int = 0
    micro_batch_size: int | None = None
    """Images evaluated at once; None is a process's whole share."""

    def __post_init__(self) -> None:
        micro = self.micro_batch_size or 1
        if self.batch_size % (self.processes * micro):
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by {self.processes} processes x "
                f"micro_batch_size={micro}; "
                f"use a multiple of {self.processes * micro}, or another micro_batch_size"
            )

    @property
    def share(self) -> int:
        """Images of a batch that one process evaluates."""
        return self.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches that one process evaluates for one update."""
        return self.share // (self.micro_batch_size or self.share)

    @property
    def micro(self) -> int:
        """Images that one process evaluates at once."""
        return self.share // self.accumulation

    def spans(self) -> list[slice]:
        """This process's positions in the global batch, a slice for each micro-batch."""
        first, last = self.process * self.share, (self.process + 1) * self.share
        return [slice(start, start + self.micro) for start in range(first, last, self.micro)]


@dataclass(frozen=True)
class Draw:
    """The random numbers of some positions of one step's batch.

    Attributes:
        seed, step: Where in the run; step counts updates from 0.
        positions: Positions in the global batch, (B,) int64.
        indices: Which image of the data set, (B,) int64.
        flips: Whether it is mirrored, (B,) bool.
        t: Its timestep, (B,) int64.
        drops: Whether its label is withheld, (B,) bool.
        purpose: What its noise is for; purposes share none.
    """

    seed: int
    step: int
    positions: np.ndarray
    indices: np.ndarray
    flips: np.ndarray
    t: np.ndarray
    drops: np.ndarray
    purpose: str = "training noise"

    def __getitem__(self, span: slice | np.ndarray) -> "Draw":
        """The same numbers, of these positions alone."""
        parts = (self.positions, self.indices, self.flips, self.t, self.drops)
        return Draw(self.seed, self.step, *(part[span] for part in parts), purpose=self.purpose)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise of these positions, (B, *shape), float32, on the CPU."""
        return standard_normal(shape, self.seed, self.purpose, self.positions.tolist(), self.step)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The draw of every step of a run: `draws(step)`, of the whole batch."""

    seed: int
    batch_size: int
    num_images: int
    num_timesteps: int
    flip: bool = False
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    label_dropout: float = 0.0
    in_order: bool = False
    """Image p of the run is number p: its source has shuffled them."""

    @classmethod
    def of(cls, config: TrainConfig, num_images: int) -> "Draws":
        """The draws of a run on so many images."""
        return cls(
            seed=config.seed,
            batch_size=config.batch_size,
            num_images=num_images,
            num_timesteps=config.schedule.num_timesteps,
            flip=config.data.flip,
            timestep_sampling=config.objective.timestep_sampling,
            label_dropout=config.data.label_dropout,
            in_order=config.data.streaming,
        )

    def __call__(self, step: int) -> Draw:
        """The draw of update number `step`, counted from 0."""
        return Draw(
            seed=self.seed,
            step=step,
            positions=np.arange(self.batch_size),
            indices=self._indices(step),
            flips=self._below("flips", step, 0.5 if self.flip else 0.0),
            t=self._timesteps(step),
            drops=self._below("label drops", step, self.label_dropout),
        )

    def _indices(self, step: int) -> np.ndarray:
        """Each epoch is a permutation of its own; a batch may end one epoch and begin the next."""
        shown = step * self.batch_size + np.arange(self.batch_size)
        if self.in_order:
            return shown
        epochs, places = np.divmod(shown, self.num_images)
        indices = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permutation(self.seed, int(epoch), self.num_images)[places[here]]
        return indices

    def _timesteps(self, step: int) -> np.ndarray:
        random = stream(self.seed, "timesteps", step)
        if self.timestep_sampling == "uniform":
            return random.integers(self.num_timesteps, size=self.batch_size)
        # One uniform draw from each of batch_size equal parts of [0, T), in shuffled order, so
        # that each position alone is still uniform, and so is what each process gets.
        parts = random.permutation(self.batch_size) + random.random(self.batch_size)
        t = (parts * (self.num_timesteps / self.batch_size)).astype(np.int64)
        return np.minimum(t, self.num_timesteps - 1)  # B - 1 + u may round up to B

    def _below(self, purpose: str, step: int, probability: float) -> np.ndarray:
        return stream(self.seed, purpose, step).random(self.batch_size) < probability


def validation_draw(seed: int, num_images: int, count: int, num_timesteps: int) -> Draw:
    """The same numbers at every validation: number i has its own image, timestep and noise.

    The images are gone through in an order of their own, and again if `count` is larger. The
    timesteps step through [0, T) by the golden section, which spreads any stretch of them evenly.
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
        purpose="validation noise",
    )


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order of one epoch, (num_images,) int64."""
    return stream(seed, "epoch", epoch).permutation(num_images)


def seed_dropout(seed: int, step: int, process: int) -> None:
    """Seed torch's generators for this step and process: dropout alone draws from them."""
    torch.manual_seed(int(stream(seed, "dropout", step, process).integers(2**63)))
