"""Halving and doubling feature maps: with learned convolutions, or with fixed filters."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Padding = Literal["constant", "reflect"]


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
        # An exported graph has one way for all sizes.
        exporting = torch.compiler.is_exporting()
        if exporting or self._resizes_faster(x) or not _is_plain(self.conv):
            return self.conv(double(x))
        kernel = doubling_kernel(self.conv.weight)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)

    @staticmethod
    def _resizes_faster(x: Tensor) -> bool:
        # Building the fused 4 x 4 kernel pays off only above about 500 pixels. On an H100 it was
        # slower than resizing and convolving in bfloat16, and faster in float32.
        few = x.shape[0] * x.shape[2] * x.shape[3] < 512
        return few or (x.device.type != "cpu" and x.dtype != torch.float32)


class Unweighted(nn.Module):
    """Resampling without weights, in the place of a convolution: `halve` or `double`."""

    def __init__(self, resample: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.resample = resample

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.resample(x)


def _is_plain(conv: nn.Module) -> bool:
    """Whether calling the layer is nn.Conv2d's forward alone, so that its weight says it all.

    It is not with hooks, with which diffusers and accelerate move, cast and load weights, and not
    after LoRA or a quantiser has replaced the layer.
    """
    hooked = conv._forward_pre_hooks or conv._forward_hooks or "forward" in conv.__dict__
    return type(conv) is nn.Conv2d and not hooked


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


# (1, 3, 3, 1) / 8, the binomial filter of Karras et al. 2019 (StyleGAN2, as in NCSN++), which
# halves and doubles without aliasing.
BINOMIAL = (0.125, 0.375, 0.375, 0.125)


def fir_halve(x: Tensor, padding: Padding = "constant") -> Tensor:
    """Every second pixel of the image smoothed by the 4 x 4 binomial filter.

    Args:
        x: (B, C, H, W).
        padding: What lies beyond the border: "constant", zeros, or "reflect".

    Returns:
        (B, C, H/2, W/2).
    """
    channels = x.shape[1]
    kernel = _binomial_kernel(x).expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=padding), kernel, stride=2, groups=channels)


def fir_double(x: Tensor, padding: Padding = "constant") -> Tensor:
    """Pixels set apart by zeros, then smoothed by the 4 x 4 binomial filter.

    Args:
        x: (B, C, H, W).
        padding: As in `fir_halve`.

    Returns:
        (B, C, 2H, 2W).
    """
    channels = x.shape[1]
    kernel = 4 * _binomial_kernel(x).expand(channels, 1, 4, 4)
    if padding == "constant":
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)
    x = F.pad(x, (1, 1, 1, 1), mode=padding)
    return F.conv_transpose2d(x, kernel, stride=2, padding=3, groups=channels)


def _binomial_kernel(x: Tensor) -> Tensor:
    """(4, 4), of the type and device of x; exact in every floating type."""
    row = torch.tensor(BINOMIAL, dtype=x.dtype, device=x.device)
    return torch.outer(row, row)
