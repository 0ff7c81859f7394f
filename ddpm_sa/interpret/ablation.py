"""Replacing attention while a network runs, to see what it contributes."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.interpret.recording import Recorder
from ddpm_sa.models.attention import Attend
from ddpm_sa.models.attention_slots import Layers, eager_layers, slots_holding
from ddpm_sa.models.network import Network

Replacement = Literal["identity", "uniform", "local"]


@contextlib.contextmanager
def ablate_attention(
    unet: Network, replacement: Replacement, layers: Layers = "all", radius: int | None = None
) -> Iterator[None]:
    """Replace the attention of layers, around any call of the network.

        with ablate_attention(unet, "local", ["mid_block.attentions.0"], radius=1):
            pipeline(num_images=4, steps=50)

    Nest contexts for several replacements; for one layer the innermost counts. To see the maps of
    the replacement, use `record_attention` inside.

    Args:
        unet: Run it eagerly inside; a compiled network is refused.
        replacement: "identity": each pixel attends only to itself, so the output is v; "uniform":
            to all pixels evenly, so the output is the mean of v; "local": by the usual softmax,
            but only over the pixels of a window.
        layers: Names, as `ddpm_sa.models.attention_slots.attention_layers` has them, or "all".
        radius: For "local", in pixels of the layer's own grid: the window has 2 radius + 1 rows
            and columns, cut off at the edges of the image.

    Raises:
        ValueError: If an argument is none of the above, the network is compiled or has no attention
            layer, or one of the layers is being recorded.
    """
    if replacement not in get_args(Replacement):
        known = ", ".join(get_args(Replacement))
        raise UserError(f"replacement={replacement!r} is unknown; known are {known}")
    if (replacement == "local") != (radius is not None):
        raise UserError(f"radius={radius} with {replacement!r}: 'local', and it alone, needs one")
    if radius is not None and radius < 0:
        raise UserError(f"radius={radius} must be 0 or greater")
    chosen = eager_layers(unet, layers)
    for name, layer in chosen.items():
        if isinstance(layer.module.attend, Recorder):
            raise UserError(
                f"{name} is being recorded, and recording would stop; enter ablate_attention "
                "first, and record inside"
            )
    attend: Attend = _Identity() if replacement == "identity" else _Uniform()
    if radius is not None:
        attend = _Local(radius)
    with slots_holding(chosen, dict.fromkeys(chosen, attend)):
        yield


class _Identity:
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        return v

    def rows(
        self, q: Tensor, k: Tensor, *, scale: float, grid: tuple[int, int], places: Tensor
    ) -> Tensor:
        return F.one_hot(places, k.shape[-2]).float().expand(*q.shape[:2], -1, -1)


class _Uniform:
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        return v.mean(dim=-2, keepdim=True).expand_as(v)

    def rows(
        self, q: Tensor, k: Tensor, *, scale: float, grid: tuple[int, int], places: Tensor
    ) -> Tensor:
        pixels = k.shape[-2]
        return torch.full((*q.shape[:3], pixels), 1 / pixels, device=q.device)


@dataclasses.dataclass(frozen=True)
class _Local:
    radius: int

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        mask = _window(grid, self.radius).to(q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    def rows(
        self, q: Tensor, k: Tensor, *, scale: float, grid: tuple[int, int], places: Tensor
    ) -> Tensor:
        outside = ~_window(grid, self.radius).to(q.device)[places]
        logits = scale * q.float() @ k.float().mT
        return logits.masked_fill(outside, -math.inf).softmax(dim=-1)


@functools.lru_cache(maxsize=8)
def _window(grid: tuple[int, int], radius: int) -> Tensor:
    """Whether a pixel sees another, (H·W, H·W), bool."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)
