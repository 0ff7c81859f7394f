"""The blocks of lucidrains/denoising-diffusion-pytorch: RMSNorm, linear attention, memory tokens.

Its names for the weights are other ones; `checkpoints.lucidrains` translates them.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_sa.models.attention import Attend, SelfAttention, scaled_dot_product


class RMSNorm(nn.Module):
    """x / ‖x‖ · sqrt(C) · weight, over the channels of each pixel (Zhang & Sennrich 2019).

    (B, C, H, W) -> (B, C, H, W). The norm is at least 1e-12, and nothing else is added to it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * self.weight.shape[0] ** 0.5
        return F.normalize(x, dim=1) * scale[:, None, None]


class RMSResnetBlock(nn.Module):
    """shortcut(x) + act(norm2(conv2(dropout(act(scale_shift(norm1(conv1(x)), temb)))))).

    Each norm follows its convolution, and the timestep scales and shifts after the first.

    Args:
        in_channels, out_channels: Features of each pixel before and after.
        temb_channels: Width of the time embedding.
        dropout: Probability.
    """

    def __init__(
        self, in_channels: int, out_channels: int, temb_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.time_emb_proj = nn.Linear(temb_channels, 2 * out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = RMSNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = RMSNorm(out_channels)
        same = in_channels == out_channels
        self.conv_shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x: (B, C_in, H, W); temb: (B, temb_channels), not activated -> (B, C_out, H, W)."""
        scale, shift = self.time_emb_proj(F.silu(temb))[:, :, None, None].chunk(2, dim=1)
        h = self.dropout(F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift))
        h = F.silu(self.norm2(self.conv2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class LinearAttention(nn.Module):
    """x + norm(out(Σ_j k_j v_jᵀ q)): attention of a cost linear in H·W (Shen et al. 2021).

    q is a softmax over its features, times d^-1/2, and k one over the pixels. No pixel has weights
    over the others, so there is no map, and no `attend` slot.

    Args:
        channels: Features of each pixel.
        heads: Number of heads.
        head_dim: d.
        memory_tokens: Learned keys and values beside those of the pixels.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int, memory_tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.memory = nn.Parameter(torch.randn(2, heads, memory_tokens, head_dim))
        self.to_q, self.to_k, self.to_v = _projections(channels, heads * head_dim)
        self.to_out = nn.Sequential(nn.Conv2d(heads * head_dim, channels, 1), RMSNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = _heads(self.heads, self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        memory_k, memory_v = self.memory[:, None].expand(-1, len(x), -1, -1, -1)
        k, v = torch.cat([memory_k, k], dim=2), torch.cat([memory_v, v], dim=2)
        q = q.softmax(dim=-1) * q.shape[-1] ** -0.5
        mixed = q @ (k.softmax(dim=-2).mT @ v)
        out = rearrange(mixed, "b heads (h w) d -> b (heads d) h w", h=x.shape[2])
        return x + self.to_out(out)


class MemoryAttention(SelfAttention):
    """x + out(softmax(q [m, k]ᵀ / sqrt(d)) [m, v]): a few learned tokens m beside the pixels.

    The slot attends to the pixels alone. To the softmax with the tokens, all pixels together are
    one more key, whose logit is the logsumexp of theirs; so a map of this layer says how a query
    divides what it gives to pixels, and sums to 1.

    Args:
        channels, heads, head_dim, memory_tokens: As in `LinearAttention`.

    Attributes:
        attend: The slot, see `Attend`.
    """

    not_in_diffusers = "diffusers has no attention with memory tokens"

    def __init__(self, channels: int, *, heads: int, head_dim: int, memory_tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.memory = nn.Parameter(torch.randn(2, heads, memory_tokens, head_dim))
        self.to_q, self.to_k, self.to_v = _projections(channels, heads * head_dim)
        self.to_out = nn.Linear(heads * head_dim, channels)
        self.attend: Attend = scaled_dot_product

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        grid = (x.shape[2], x.shape[3])
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = _heads(self.heads, self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        scale = q.shape[-1] ** -0.5
        of_pixels = self.attend(q, k, v, scale=scale, grid=grid)
        memory_k, memory_v = self.memory
        together = (scale * q @ k.mT).float().logsumexp(dim=-1, keepdim=True)
        logits = torch.cat([(scale * q @ memory_k.mT).float(), together], dim=-1)
        shares = logits.softmax(dim=-1).to(v.dtype)
        mixed = shares[..., :-1] @ memory_v + shares[..., -1:] * of_pixels
        out = self.to_out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return x + rearrange(out, "b (h w) c -> b c h w", h=grid[0])


def _projections(channels: int, width: int) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The projections to q, k and v."""
    first, second, third = (nn.Linear(channels, width, bias=False) for _ in range(3))
    return first, second, third


def _heads(heads: int, *tensors: Tensor) -> list[Tensor]:
    """(B, H·W, heads · d) -> (B, heads, H·W, d), each."""
    return [rearrange(tensor, "b n (heads d) -> b heads n d", heads=heads) for tensor in tensors]
