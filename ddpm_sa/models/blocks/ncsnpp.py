"""The levels of NCSN++ (Song et al. 2021, appendix H), which carry an image beside the features.

On the way down a small copy of the input is added to the features of each level; on the way up
each level adds to the output image. Filters of four taps halve and double.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_sa.models.blocks.levels import Block, Levels, MakeAttention, down_widths, up_widths
from ddpm_sa.models.blocks.resampling import fir_double, fir_halve
from ddpm_sa.models.blocks.resnet import ResnetBlock, ResnetSpec, default_groups
from ddpm_sa.models.normalization import group_norm

IMAGE_CHANNELS = 3  # fixed in diffusers
SCALE = {"output_scale": math.sqrt(2)}  # sums of two branches keep their variance
ATTENTION = {"groups": 32, **SCALE}


class SkipBlock(Block):
    """What the levels have in common: UNet sets `recomputes` for gradient checkpointing."""

    recomputes = False

    def _recomputes(self) -> bool:
        return self.recomputes


class SkipDownBlock2D(SkipBlock):
    """One level on the way down; the arguments are those of `levels.DownBlock2D`.

    How it ends is fixed, so of downsample it matters only whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        make_attention: MakeAttention,
        downsample: str | None,
        **_: Any,
    ) -> None:
        super().__init__()
        self._make_layers(
            down_widths(in_channels, out_channels, num_layers),
            lambda before, after: scaled_resnet(before, after, spec),
            (lambda channels: make_attention(channels, **ATTENTION)) if self.attends else None,
        )
        self.resnet_down = self.skip_conv = None
        if downsample is not None:
            self.resnet_down = scaled_resnet(
                out_channels, out_channels, spec, resample=fir_halve, project_shortcut=True
            )
            self.skip_conv = nn.Conv2d(IMAGE_CHANNELS, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor, image: Tensor) -> Levels:
        """As `levels.DownBlock2D`; the image, (B, 3, H, W), is halved with the features."""
        skips = []
        for index in range(len(self.resnets)):
            x = self._layer(index, x, temb)
            skips.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            image = fir_halve(image)
            x = self.skip_conv(image) + self.resnet_down(x, temb)
            skips.append(x)
        return x, skips, image


class AttnSkipDownBlock2D(SkipDownBlock2D):
    """A level with attention behind each residual block."""

    attends = True


class SkipUpBlock2D(SkipBlock):
    """One level on the way up; the arguments are those of `levels.UpBlock2D`.

    Attention, if the block type has it, comes once, behind the last residual block.
    """

    # The parentheses that diffusers' AttnSkipUpBlock2D lacks; released weights have its groups.
    quarter_of_sum: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        make_attention: MakeAttention,
        upsample: str | None,
    ) -> None:
        super().__init__()
        widths = up_widths(in_channels, skip_channels, out_channels, num_layers)
        firsts = [in_channels] + [out_channels] * (num_layers - 1)
        self.attentions = nn.ModuleList()
        self.resnets = nn.ModuleList()
        for first, (total, after) in zip(firsts, widths, strict=True):
            groups = total // 4 if self.quarter_of_sum else first + (total - first) // 4
            self.resnets.append(scaled_resnet(total, after, spec, groups=min(groups, 32)))
        if self.attends:
            self.attentions.append(make_attention(out_channels, **ATTENTION))
        self.resnet_up = self.skip_conv = self.skip_norm = None
        if upsample is not None:
            self.resnet_up = scaled_resnet(
                out_channels, out_channels, spec, resample=fir_double, project_shortcut=True
            )
            self.skip_conv = nn.Conv2d(out_channels, IMAGE_CHANNELS, 3, padding=1)
            self.skip_norm = group_norm(default_groups(out_channels), out_channels, spec.eps)

    def forward(
        self, x: Tensor, skips: list[Tensor], temb: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As `levels.UpBlock2D`; the image, (B, 3, H, W), is doubled and added to."""
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            x = self._checkpointed(resnet, torch.cat([x, skip], dim=1), temb)
        for attention in self.attentions:
            x = attention(x)
        if image is not None:
            image = fir_double(image)
        if self.resnet_up is not None and self.skip_conv is not None and self.skip_norm is not None:
            added = self.skip_conv(F.silu(self.skip_norm(x)))
            image = added if image is None else image + added
            x = self.resnet_up(x, temb)
        return x, image


class AttnSkipUpBlock2D(SkipUpBlock2D):
    """A level with attention at its end."""

    attends = True
    quarter_of_sum = False


def scaled_resnet(
    in_channels: int, out_channels: int, spec: ResnetSpec, groups: int | None = None, **more: Any
) -> ResnetBlock:
    """A residual block whose groups follow from its channels, and whose sum is divided by √2."""
    spec = replace(spec, groups=groups or default_groups(in_channels), **SCALE)
    return ResnetBlock(
        in_channels, out_channels, spec, groups_out=default_groups(out_channels), **more
    )
