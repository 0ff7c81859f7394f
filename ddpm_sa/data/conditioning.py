"""The images that a data set's images are conditioned on: made from them, or read beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.kinds import ConditionKind
from ddpm_sa.randomness import standard_normal, stream


@dataclass(frozen=True, kw_only=True)
class ConditionDraw:
    """The random numbers of the conditions of some images.

    Attributes:
        seed, purpose, step: Which numbers: what is drawn for position i is a function of these
            and of i alone.
        positions: (B,), int64.
        withheld: Whether the condition of each image is withheld, (B,), bool.
        shares: The level of noise in each condition, as a share of the highest, (B,), in [0, 1).
    """

    seed: int
    purpose: str
    positions: np.ndarray
    withheld: np.ndarray
    shares: np.ndarray
    step: int = 0

    def randoms(self, name: str) -> list[np.random.Generator]:
        """A generator for each image, for one use."""
        purpose = f"{self.purpose}: {name}"
        return [stream(self.seed, purpose, int(i), self.step) for i in self.positions]

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, (B, *shape)."""
        purpose = f"{self.purpose}: noise in the condition"
        return standard_normal(shape, self.seed, purpose, self.positions.tolist(), self.step)


class Pairs(Protocol):
    """Reads what lies beside the images of a data set."""

    def subset(self, indices: np.ndarray) -> "Pairs":
        """Those of the images at these indices, (N,)."""
        ...

    def given(self, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """The condition of images, as `ConditionKind.prepare` takes it, mirrored where flips."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conditioner:
    """Makes the conditions of a data set's images.

    Attributes:
        format: What they are.
        pairs: For each kind that is not made from the image, what reads it.
    """

    format: ConditionFormat
    pairs: Mapping[ConditionKind, Pairs] = field(default_factory=dict)

    def subset(self, indices: np.ndarray) -> "Conditioner":
        """Those of the images at these indices, (N,)."""
        pairs = {kind: pairs.subset(indices) for kind, pairs in self.pairs.items()}
        return replace(self, pairs=pairs)

    def given(
        self, x_0: Tensor, indices: np.ndarray, flips: np.ndarray, draw: ConditionDraw
    ) -> list[Tensor]:
        """The condition of each kind, as a user would give it in sampling.

        Args:
            x_0: Clean images, (B, C, H, W), mirrored where flips.
            indices: Their indices in the data set, (B,).
            flips: (B,), bool.
            draw: Random numbers.
        """
        return [
            kind.measure(x_0, draw.randoms(f"kind {place}"))
            if kind.made
            else self.pairs[kind].given(indices, flips)
            for place, kind in enumerate(self.format.kinds)
        ]

    def __call__(
        self, x_0: Tensor, indices: np.ndarray, flips: np.ndarray, draw: ConditionDraw
    ) -> Tensor:
        """What the network is given besides x_t, (B, channels, H, W); arguments as in `given`."""
        given = self.given(x_0, indices, flips, draw)
        height, width = x_0.shape[2:]
        format, levels, eps = self.format, None, None
        if format.noise > 0:
            levels = torch.from_numpy(draw.shares * format.noise)
            image = (x_0.shape[1], height, width)
            channels = sum(kind.channels(image) for kind in format.kinds)
            eps = draw.noise((channels, height, width))
        withheld = torch.from_numpy(draw.withheld) if format.withholds else None
        return format.assemble(given, (height, width), withheld=withheld, levels=levels, eps=eps)
