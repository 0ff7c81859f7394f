"""The residual block, conditioned on the timestep, and down- and upsampling."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_sa.models.attention import divided

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


class ResnetBlock(nn.Module):
    """shortcut(x) + conv2(dropout(act(norm2(conv1(act(norm1(x))) + W temb)))).

    Ho et al. 2020, appendix B. With scale_shift the embedding scales and shifts after norm2 instead
    (Dhariwal & Nichol 2021, eq. 5). With resample, activations and shortcut are halved or doubled
    before conv1. Parameters have the names and shapes of diffusers' `ResnetBlock2D`.

    Args:
        in_channels, out_channels: Features of each pixel before and after.
        temb_channels: Width of the time embedding.
        groups: Groups of both GroupNorms; divides both channel counts.
        eps: Their epsilon.
        act_fn: A key of `ACTIVATIONS`.
        dropout: Probability.
        scale_shift: Whether the embedding scales as well as shifts.
        output_scale: The sum with the shortcut is divided by this.
        resample: "down" averages 2 x 2 pixels, "up" repeats each pixel 2 x 2 times; None: neither.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        temb_channels: int,
        groups: int,
        eps: float,
        act_fn: str = "silu",
        dropout: float = 0.0,
        scale_shift: bool = False,
        output_scale: float = 1.0,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.output_scale = output_scale
        self.resample = {"down": halve, "up": double, None: None}[resample]
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = ACTIVATIONS[act_fn]()
        self.conv_shortcut = (
            None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """x: (B, C_in, H, W); temb: (B, temb_channels), already activated -> (B, C_out, H', W')."""
        h = self.nonlinearity(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        shift = self.time_emb_proj(temb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return divided(shortcut + h, self.output_scale)


class Downsample(nn.Module):
    """A 3 x 3 convolution with stride 2: (B, C, H, W) -> (B, C, H/2, W/2).

    Args:
        channels: Features of each pixel.
        padding: 1 pads all around, as diffusers does; 0 pads the bottom and the right alone, as
            TensorFlow's "SAME" and so the paper does.
    """

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel becomes 2 x 2, then a 3 x 3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        # Building the fused 4 x 4 kernel pays off only above about 500 pixels. On an H100 it was
        # slower than resizing and convolving in bfloat16, and faster in float32.
        few = x.shape[0] * x.shape[2] * x.shape[3] < 512
        if few or (x.is_cuda and x.dtype != torch.float32):
            return self.conv(double(x))
        kernel = doubling_kernel(self.conv.weight)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def doubling_kernel(weight: Tensor) -> Tensor:
    """The kernel whose transposed convolution doubles the image and convolves it with `weight`.

    Of the nine pixels that the 3 x 3 kernel sees after doubling, at most four differ. So conv(w,
    double(x)) = conv_transpose(k, x) with stride 2, padding 1 and k = w (flipped) summed over each
    2 x 2 window: four products per pixel instead of nine.

    Args:
        weight: (C_out, C_in, 3, 3), of a convolution with padding 1.

    Returns:
        (C_in, C_out, 4, 4).
    """
    flipped = rearrange(weight.flip(2, 3), "o i h w -> i o h w")
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Each pixel repeated 2 x 2 times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
