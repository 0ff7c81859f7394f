"""The levels of Crowson's k-diffusion, as diffusers has them: adaptive norms, filtered resampling.

A level on the way up takes one skip alone, at its start, and ends with the channels of the next.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_sa.models.blocks.levels import Block, Levels, down_widths
from ddpm_sa.models.blocks.resampling import fir_double, fir_halve
from ddpm_sa.models.blocks.resnet import AdaResnetBlock, ResnetSpec

GROUP = 32  # channels of a group


class KDownBlock2D(Block):
    """One level on the way down; the arguments are those of `levels.DownBlock2D`."""

    activated = False
    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        downsample: str | None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        self.downsamples = downsample is not None
        self.resnets = nn.ModuleList(
            _resnet(before, after, out_channels, spec)
            for before, after in down_widths(in_channels, out_channels, num_layers)
        )

    def forward(self, x: Tensor, temb: Tensor, image: Tensor) -> Levels:
        """As `levels.DownBlock2D`, but the halved features are no skip."""
        skips = []
        for index in range(len(self.resnets)):
            x = self._layer(index, x, temb)
            skips.append(x)
        return fir_halve(x, "reflect") if self.downsamples else x, skips, image


class KUpBlock2D(Block):
    """One level on the way up; the arguments are those of `levels.UpBlock2D`."""

    activated = False
    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        upsample: str | None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        self.upsamples = upsample is not None
        inputs = [2 * out_channels] + [out_channels] * (num_layers - 2)
        outputs = [out_channels] * (num_layers - 2) + [skip_channels]
        self.resnets = nn.ModuleList(
            _resnet(before, after, out_channels, spec)
            for before, after in zip(inputs, outputs, strict=True)
        )

    def forward(
        self, x: Tensor, skips: list[Tensor], temb: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As `levels.UpBlock2D`, with the last of the skips alone."""
        x = torch.cat([x, skips[-1]], dim=1)
        for index in range(len(self.resnets)):
            x = self._layer(index, x, temb)
        return fir_double(x, "reflect") if self.upsamples else x, image


def _resnet(
    in_channels: int, out_channels: int, level_channels: int, spec: ResnetSpec
) -> AdaResnetBlock:
    """A residual block of groups of 32 channels, counted in what the level has, as in diffusers."""
    spec = replace(spec, groups=in_channels // GROUP)
    return AdaResnetBlock(in_channels, out_channels, spec, groups_out=level_channels // GROUP)
