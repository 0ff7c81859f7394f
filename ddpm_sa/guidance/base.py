"""Guidance: extrapolation from a weak evaluation, F = F_strong + w (F_strong - F_weak).

The weak evaluation is the network without its label, with degraded attention or with a blurred
image, or another, weaker network. w = 0 is no guidance and costs no second evaluation; diffusers'
guidance_scale is 1 + w. Since F is affine in eps at a given x_t, the same holds for eps and x_0.
"""

import dataclasses
import math
from typing import Protocol

import torch
from torch import Tensor

from ddpm_sa.condition import concatenate
from ddpm_sa.errors import UserError
from ddpm_sa.samplers.denoise import Evaluate, Network, View


class Weaker(Protocol):
    """A kind of guidance: evaluates the network twice."""

    def __call__(self, evaluate: Evaluate, view: View) -> tuple[Tensor, Tensor]:
        """The outputs of the strong and of the weak evaluation."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """A `ddpm_sa.samplers.denoise.Guide`.

    Attributes:
        weaker: Evaluates the network twice, strong and weak.
        scale: w.
        interval: Guide where interval[0] <= t < interval[1] (Kynkäänniemi et al. 2024); everywhere
            if None.
        rescale: From 0 to 1, how far F is scaled back to the spread of F_strong, image by image
            (Lin et al. 2023, eq. 15 and 16).
        more: Further weak evaluations, each with its own w, whose terms are added, such as one
            without the condition beside one without the label (Brooks et al. 2023, section 3.2).

    Raises:
        ValueError: If a number is out of range.
    """

    weaker: Weaker
    scale: float
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    more: tuple[tuple[Weaker, float], ...] = ()

    def __post_init__(self) -> None:
        for scale in (self.scale, *(scale for _, scale in self.more)):
            if not math.isfinite(scale) or scale < 0:
                raise UserError(f"guidance scale={scale} must be 0 (none) or greater")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance rescale={self.rescale} must lie between 0 and 1")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise UserError(
                f"guidance interval={self.interval} must be two timesteps, the lower one first"
            )

    def __call__(self, evaluate: Evaluate, view: View) -> Tensor:
        if not self.active(float(view.t[0])):
            return evaluate(view.x_t, view.t, view.condition)
        strong, weak = self.weaker(evaluate, view)
        channels = view.x_t.shape[1]
        guided = strong[:, :channels] + self.scale * (strong - weak)[:, :channels]
        for weaker, scale in self.more:
            better, worse = weaker(evaluate, view)
            guided = guided + scale * (better - worse)[:, :channels]
        if self.rescale:
            spread = _spread(strong[:, :channels]) / _spread(guided)
            guided = guided * (1 - self.rescale + self.rescale * spread)
        # A learned variance is that of the strong evaluation.
        return torch.cat([guided, strong[:, channels:]], dim=1)

    def active(self, t: float) -> bool:
        """Whether the network is evaluated twice at this timestep."""
        low, high = self.interval or (-math.inf, math.inf)
        return self.scale > 0 and low <= t < high


@dataclasses.dataclass(frozen=True)
class WithoutLabel:
    """Classifier-free guidance (Ho & Salimans 2022); both evaluations share a batch.

    Attributes:
        null_class: The class that stands for "no label".
    """

    null_class: int

    def __call__(self, evaluate: Evaluate, view: View) -> tuple[Tensor, Tensor]:
        labels = view.condition.class_labels
        assert labels is not None
        unlabelled = view.condition.replace(class_labels=torch.full_like(labels, self.null_class))
        return halves(evaluate(*twice(view), concatenate([view.condition, unlabelled])))


@dataclasses.dataclass(frozen=True)
class WithoutCondition:
    """Classifier-free guidance on the images of the condition; both evaluations share a batch."""

    def __call__(self, evaluate: Evaluate, view: View) -> tuple[Tensor, Tensor]:
        channels = view.condition.image
        assert channels is not None
        # Zeros, in the channel that says whether there is a condition too, are what training has.
        withheld = view.condition.replace(image=torch.zeros_like(channels))
        return halves(evaluate(*twice(view), concatenate([view.condition, withheld])))


@dataclasses.dataclass(frozen=True)
class WithWeakerNetwork:
    """Autoguidance (Karras et al. 2024): a smaller or less trained network is the weak one.

    Attributes:
        network: The weaker network, with the same prediction type.
        dtype: In which it computes.
    """

    network: Network
    dtype: torch.dtype = torch.float32

    def __call__(self, evaluate: Evaluate, view: View) -> tuple[Tensor, Tensor]:
        strong = evaluate(*view[:3])
        weak = view.condition.evaluate(self.network, view.x_t.to(self.dtype), view.t)
        return strong, weak.sample.float()


def _spread(images: Tensor) -> Tensor:
    return images.std(dim=(1, 2, 3), keepdim=True)


def twice(view: View) -> tuple[Tensor, Tensor]:
    """x_t and t for two evaluations in one batch."""
    return torch.cat([view.x_t, view.x_t]), torch.cat([view.t, view.t])


def halves(output: Tensor) -> tuple[Tensor, Tensor]:
    """The strong and the weak output of a batch that was evaluated twice."""
    strong, weak = output.chunk(2)
    return strong, weak
