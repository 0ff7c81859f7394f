"""The embedding of the timestep that every residual block receives."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """[sin(t f_i) | cos(t f_i)] with f_i = 10000^(-i / (dim/2 - freq_shift)), i < dim/2.

    Vaswani et al. 2017, section 3.5, in the paper's order and with freq_shift = 1; diffusers'
    default is [cos | sin] and 0. The operations and their order are diffusers', in float32, so
    that the result has its bits. It is never kept as a buffer, which a cast to bfloat16 would ruin.

    Args:
        t: Timesteps, (B,), any number type, may be fractional.
        dim: Width of the result; an odd one ends in a zero.

    Returns:
        (B, dim), float32.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t[:, None].float() * torch.exp(exponent / (half - freq_shift))[None, :]
    parts = [torch.sin(angles), torch.cos(angles)]
    table = torch.cat(parts[::-1] if flip_sin_to_cos else parts, dim=-1)
    return F.pad(table, (0, dim % 2))


class Sinusoid(nn.Module):
    """`sinusoid` as a layer without weights: (B,) -> (B, dim)."""

    def __init__(self, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.dim, self.flip_sin_to_cos, self.freq_shift = dim, flip_sin_to_cos, freq_shift

    def forward(self, t: Tensor) -> Tensor:
        return sinusoid(
            t, self.dim, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        )


class FourierProjection(nn.Module):
    """[sin(2π f log t) | cos(2π f log t)] with fixed random frequencies f.

    Tancik et al. 2020, as NCSN++ uses it for noise levels (Song et al. 2021, appendix H); the
    operations and their order are diffusers'.

    Args:
        num_frequencies: Half the width of the result.
        scale: Standard deviation of the frequencies.
    """

    def __init__(self, num_frequencies: int, scale: float = 16.0) -> None:
        super().__init__()
        torch.randn(num_frequencies)  # diffusers draws twice: the weights of a seed are its own
        frequencies = torch.randn(num_frequencies) * scale
        self.weight = nn.Parameter(frequencies, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        """t: noise levels, (B,), above 0 -> (B, 2 * num_frequencies)."""
        angles = torch.log(t)[:, None] * self.weight[None, :] * 2 * math.pi
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers around a SiLU: (B, in_channels) -> (B, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


def time_projection(
    kind: str,
    channels: int,
    num_timesteps: int | None,
    *,
    flip_sin_to_cos: bool,
    freq_shift: float,
) -> tuple[nn.Module, int]:
    """The layer between a timestep and its embedding, and its width."""
    if kind == "fourier":
        return FourierProjection(channels), 2 * channels
    if kind == "learned":
        assert num_timesteps is not None  # check_config
        return nn.Embedding(num_timesteps, channels), channels
    layer = Sinusoid(channels, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
    return layer, channels


def class_embedding(
    kind: str | None, num_classes: int | None, width: int, temb_channels: int
) -> nn.Module | None:
    """The layer whose output is added to the time embedding; None without classes."""
    if kind == "timestep":
        return TimestepEmbedding(width, temb_channels)
    if kind == "identity":
        return nn.Identity()
    return None if num_classes is None else nn.Embedding(num_classes, temb_channels)
