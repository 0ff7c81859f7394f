"""Guidance by degraded attention, through the `attend` slot; see `ddpm_sa.guidance.base`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from ddpm_sa.condition import concatenate
from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.errors import UserError
from ddpm_sa.guidance.base import halves, twice
from ddpm_sa.models.attention import Attend
from ddpm_sa.models.attention_slots import (
    AttentionLayer,
    attention_layers,
    eager_layers,
    slots_holding,
)
from ddpm_sa.samplers.denoise import Evaluate, View


class WithOtherAttention:
    """Evaluates with other attention in some layers, in the second half of one batch; a base class.

    Args:
        unet: The network, a ddpm_sa.UNet.
        layers: Names, as `models.attention_slots.attention_layers` has them; the middle's, or
            all if the middle has none, if None.

    Raises:
        ValueError: If the network has no attention, or a name is unknown.
    """

    def __init__(self, unet: Any, layers: Sequence[str] | None = None) -> None:
        known = attention_layers(unet)
        middle = [name for name in known if name.startswith("mid_block")]
        self.layers = eager_layers(unet, layers or middle or list(known))

    def other(self, attend: Attend) -> Attend:
        """The callable that replaces `attend`."""
        raise NotImplementedError

    def __call__(self, evaluate: Evaluate, view: View) -> tuple[Tensor, Tensor]:
        attends = {
            name: _InSecondHalf(layer.module.attend, self.other(layer.module.attend))
            for name, layer in self.layers.items()
        }
        condition = concatenate([view.condition, view.condition])
        with slots_holding(self.layers, attends):
            return halves(evaluate(*twice(view), condition))


class WithoutAttention(WithOtherAttention):
    """Perturbed-attention guidance (Ahn et al. 2024): attention maps become the identity."""

    def other(self, attend: Attend) -> Attend:
        def identity(
            q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
        ) -> Tensor:
            return v

        return identity


class WithSmoothAttention(WithOtherAttention):
    """Smoothed-energy guidance (Hong 2024): queries are blurred, so that the maps are smoother.

    Args:
        unet, layers: As in `WithOtherAttention`.
        sigma: Of the Gaussian, in pixels of the layer's grid; infinity takes the mean query.
    """

    def __init__(
        self, unet: Any, layers: Sequence[str] | None = None, sigma: float = math.inf
    ) -> None:
        super().__init__(unet, layers)
        self.sigma = _checked_sigma(sigma)

    def other(self, attend: Attend) -> Attend:
        def smooth(
            q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
        ) -> Tensor:
            folded = rearrange(q, "b heads (h w) d -> b (heads d) h w", h=grid[0])
            blurred = gaussian_blur(folded, self.sigma)
            q = rearrange(blurred, "b (heads d) h w -> b heads (h w) d", heads=q.shape[1])
            return attend(q, k, v, scale=scale, grid=grid)

        return smooth


class WithBlurredImage:
    """Self-attention guidance (Hong et al. 2023): the weak evaluation sees a blurred image.

    The image predicted by the strong one is blurred where attention is high, noised again with the
    same eps, and evaluated. Attention is high on pixels to which the middle layer's queries give
    more than 1 in sum, which is what an even share would be.

    Args:
        unet: The network, a ddpm_sa.UNet.
        prediction: What the network predicts.
        layer: Name of the layer whose attention is used; by default the middle's, or the last.
        sigma: Of the blur, in pixels of the image.

    Raises:
        ValueError: If the network has no attention, or the name is unknown.
    """

    def __init__(
        self, unet: Any, prediction: Prediction, layer: str | None = None, sigma: float = 3.0
    ) -> None:
        names = list(attention_layers(unet))
        middle = [name for name in names if name.startswith("mid_block")]
        self.name = layer or (middle or names)[-1]
        self.layers: dict[str, AttentionLayer] = eager_layers(unet, [self.name])
        self.prediction, self.sigma = prediction, _checked_sigma(sigma)

    def __call__(self, evaluate: Evaluate, view: View) -> tuple[Tensor, Tensor]:
        watch = _Watch(self.layers[self.name].module.attend)
        with slots_holding(self.layers, {self.name: watch}):
            strong = evaluate(view.x_t, view.t, view.condition)
        out = strong[:, : view.x_t.shape[1]]
        x_0 = self.prediction.x_0(out, view.x_t, view.a, view.s)
        received = F.interpolate(watch.received, x_0.shape[-2:])
        change = (received > 1) * (gaussian_blur(x_0, self.sigma) - x_0)
        return strong, evaluate(view.x_t + view.a * change, view.t, view.condition)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images (B, C, H, W) with a Gaussian that is normalised within the image."""
    if sigma == 0:
        return images
    rows, columns = (_gaussian(size, sigma).to(images) for size in images.shape[-2:])
    return rows @ images @ columns.mT


def _gaussian(size: int, sigma: float) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    return weights / weights.sum(dim=1, keepdim=True)


@dataclasses.dataclass(frozen=True)
class _InSecondHalf:
    """In a slot: one callable for the first half of the batch, another for the second half."""

    first: Attend
    second: Attend

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        parts = zip((self.first, self.second), *(x.chunk(2) for x in (q, k, v)), strict=True)
        return torch.cat([attend(*x, scale=scale, grid=grid) for attend, *x in parts])


class _Watch:
    """In a slot: records the attention that each pixel receives in sum, (B, 1, h, w)."""

    received: Tensor

    def __init__(self, attend: Attend) -> None:
        self.attend = attend

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        maps = (scale * q.float() @ k.float().mT).softmax(dim=-1)
        received = reduce(maps, "b heads queries pixels -> b heads pixels", "sum").mean(1)
        self.received = rearrange(received, "b (h w) -> b 1 h w", h=grid[0])
        return self.attend(q, k, v, scale=scale, grid=grid)


def _checked_sigma(sigma: float) -> float:
    if not sigma >= 0:
        raise UserError(f"guidance sigma={sigma} must be 0 or greater")
    return sigma
