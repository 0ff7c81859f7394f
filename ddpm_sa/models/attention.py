"""Self-attention over pixels: a feature map becomes a sequence, every pixel attends to all others.

Every layer here calls `self.attend(q, k, v, scale=..., grid=...)`, a plain attribute. Recording
maps, replacing them and computing them faster all work by assigning another callable to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_sa.errors import UserError
from ddpm_sa.models.normalization import group_norm, stays_in_bfloat16


class Attend(Protocol):
    """softmax(scale · q kᵀ) v: what the `attend` slot of a layer holds."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        """
        Args:
            q, k: Queries and keys, (B, heads, H·W, d).
            v: Values, (B, heads, H·W, e).
            scale: Factor of the logits.
            grid: (H, W), how the sequence folds back into an image, row by row.

        Returns:
            (B, heads, H·W, e).
        """
        ...


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
) -> Tensor:
    """The default of every slot: torch's kernel, or on a CPU two products for a short sequence."""
    # On a CPU torch's kernel takes twice as long as two plain products while the map fits into the
    # cache; for longer sequences it wins by not storing the H·W x H·W map (benchmarks/network.py).
    # An exported graph is for any device, and one for all sizes.
    exporting = torch.compiler.is_exporting()
    if not exporting and q.device.type == "cpu" and q.shape[-2] <= 1024:
        return ((q * scale) @ k.mT).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """What a U-Net asks of an attention layer besides its width.

    Attributes:
        heads: Number of heads.
        head_dim: Features of a head; None: channels / heads.
        norm_num_groups: Groups of the GroupNorm, or None for no norm.
        eps: Epsilon of the GroupNorm.
        output_scale: The sum with the residual is divided by this.
    """

    heads: int = 1
    head_dim: int | None = None
    norm_num_groups: int | None = 32
    eps: float = 1e-6
    output_scale: float = 1.0


class SelfAttention(nn.Module):
    """Base class of the attention layers, (B, C, H, W) -> (B, C, H, W).

    Recording, ablation and guidance find the layers of a network by this class, and reach them by
    their `attend` attribute. A new kind of attention is a subclass that sets `attend`, calls it in
    `forward`, implements `build`, and is added to `ATTENTION_KINDS`.

    Attributes:
        attend: The slot; see `Attend`.
        multi_head: Whether a configuration may ask for more than one head.
        not_in_diffusers: Why UNet2DModel cannot represent the layer, or None if it can.
    """

    attend: Attend
    multi_head: ClassVar[bool] = False
    not_in_diffusers: ClassVar[str | None] = "diffusers has no such attention"

    @classmethod
    def build(cls, channels: int, spec: AttentionSpec) -> Self:
        """The layer for a feature map of this many channels."""
        raise NotImplementedError

    @property
    def last_projection(self) -> nn.Module | None:
        """The layer whose weights `UNet.paper_init_` sets near zero, if there is one."""
        return None


class PixelAttention(SelfAttention):
    """The DDPM paper's attention block: x + out(softmax(q kᵀ / sqrt(d)) v), q, k, v of GN(x).

    Ho et al. 2020, appendix B, with one head; with more, each has d = channels / heads features
    (Vaswani et al. 2017, eq. 1). Parameters have the names and shapes of diffusers' `Attention`.

    Args:
        channels: Features of each pixel.
        heads: Number of heads.
        head_dim: d, if it is not channels / heads: q, k and v then have heads · d features.
        norm_num_groups: Groups of the GroupNorm, or None for no norm.
        eps: Its epsilon.
        output_scale: The sum with the residual is divided by this.

    Attributes:
        attend: The slot, see `Attend`.

    Raises:
        ValueError: If heads does not divide channels and there is no head_dim.
    """

    multi_head = True
    not_in_diffusers = None
    # diffusers renames the old `query`, `key`, `value`, `proj_attn` of a layer that carries this.
    _from_deprecated_attn_block = True

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        head_dim: int | None = None,
        norm_num_groups: int | None = 32,
        eps: float = 1e-6,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if head_dim is None and channels % heads:
            raise UserError(f"{heads} heads do not divide {channels} channels")
        width = channels if head_dim is None else heads * head_dim
        self.heads = heads
        self.output_scale = output_scale
        self.group_norm = (
            None if norm_num_groups is None else group_norm(norm_num_groups, channels, eps)
        )
        self.to_q = nn.Linear(channels, width)
        self.to_k = nn.Linear(channels, width)
        self.to_v = nn.Linear(channels, width)
        # The list is diffusers': its second entry, a dropout of 0, has no parameters.
        self.to_out = nn.ModuleList([nn.Linear(width, channels)])
        self.attend: Attend = scaled_dot_product

    @classmethod
    def build(cls, channels: int, spec: AttentionSpec) -> Self:
        return cls(
            channels,
            heads=spec.heads,
            head_dim=spec.head_dim,
            norm_num_groups=spec.norm_num_groups,
            eps=spec.eps,
            output_scale=spec.output_scale,
        )

    @property
    def last_projection(self) -> nn.Module:
        return self.to_out[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        grid = (x.shape[2], x.shape[3])
        normed = x if self.group_norm is None else self.group_norm(x)
        tokens = rearrange(normed, "b c h w -> b (h w) c")
        q, k, v = (
            rearrange(projected, "b n (heads d) -> b heads n d", heads=self.heads)
            for projected in self._project(tokens)
        )
        mixed = self.attend(q, k, v, scale=q.shape[-1] ** -0.5, grid=grid)
        out = self.to_out[0](rearrange(mixed, "b heads n d -> b n (heads d)"))
        out = rearrange(out, "b (h w) c -> b c h w", h=grid[0])
        return divided(x + out, self.output_scale)

    def _project(self, tokens: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values of tokens: (B, N, C) -> three of (B, N, heads · d)."""
        layers = (self.to_q, self.to_k, self.to_v)
        # A layer that is no plain Linear, such as an adapter, computes more than its weight says.
        if stays_in_bfloat16(tokens) and all(type(layer) is nn.Linear for layer in layers):
            return project_at_once(tokens, layers)
        return [project(tokens) for project in layers]


class SAGANAttention(SelfAttention):
    """Self-attention of the SAGAN: x + gamma · softmax(q kᵀ) v, with q and k an eighth as wide.

    Zhang et al. 2018, section 3, as in its best-known PyTorch port (heykeetae), whose parameter
    names it has. No norm, no scaling of the logits, no output projection; gamma starts at 0.

    Args:
        channels: Features of each pixel, at least 8 and divisible by 8.

    Raises:
        ValueError: If 8 does not divide channels.
    """

    not_in_diffusers = "diffusers has no SAGAN attention"

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 8:
            raise UserError(f"SAGAN attention needs channels divisible by 8, not {channels}")
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.attend: Attend = scaled_dot_product

    @classmethod
    def build(cls, channels: int, spec: AttentionSpec) -> Self:
        """One head, no norm and no output scale: of the spec nothing applies."""
        return cls(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        grid = (x.shape[2], x.shape[3])
        q, k, v = (
            rearrange(project(x), "b d h w -> b 1 (h w) d")
            for project in (self.query_conv, self.key_conv, self.value_conv)
        )
        mixed = self.attend(q, k, v, scale=1.0, grid=grid)
        return x + self.gamma * rearrange(mixed, "b 1 (h w) c -> b c h w", h=grid[0])


ATTENTION_KINDS: dict[str, type[SelfAttention]] = {
    "pixel": PixelAttention,
    "sagan": SAGANAttention,
}
"""The values of `UNet`'s attention_kind."""


def project_at_once(tokens: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """The outputs of layers of one width, by one product that reads the tokens once.

    Args:
        tokens: (B, N, C).
        layers: From C to D features each, with biases.

    Returns:
        As many views of (B, N, D) as there are layers.
    """
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(tokens.contiguous(), weight, bias).chunk(len(layers), dim=-1)


def divided(x: Tensor, scale: float) -> Tensor:
    """x / scale, without a pass over memory in the usual case of scale 1."""
    return x if scale == 1 else x / scale
