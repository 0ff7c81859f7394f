"""The levels of DDPM++ (Song et al. 2021, appendix C.2), as Karras et al. (2022) have them.

Residual blocks and attention are those of the other levels, with sums divided by √2. A level
begins with a residual block that halves or doubles, and has attention behind all of its blocks on
the way down, but only behind the last on the way up.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ddpm_sa.models.attention import PixelAttention
from ddpm_sa.models.blocks.levels import Block, down_widths, up_widths
from ddpm_sa.models.blocks.ncsnpp import scaled_resnet
from ddpm_sa.models.blocks.resampling import double, halve
from ddpm_sa.models.blocks.resnet import ResnetSpec, default_groups


class SongDownBlock2D(Block):
    """One level on the way down.

    Args:
        in_channels, out_channels: Features of each pixel before and after.
        num_layers: How many residual blocks, besides the one that halves.
        spec: What its residual blocks have in common.
        attends: Whether attention follows each of them.
        halves: Whether the level begins by halving; the highest does not.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        attends: bool,
        halves: bool,
    ) -> None:
        super().__init__()
        self.resnet_down = None
        if halves:
            self.resnet_down = scaled_resnet(
                in_channels, in_channels, spec, resample=halve, project_shortcut=True
            )
        self._make_layers(
            down_widths(in_channels, out_channels, num_layers),
            lambda before, after: scaled_resnet(before, after, spec),
            (lambda channels: scaled_attention(channels, spec)) if attends else None,
        )

    def forward(self, x: Tensor, temb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C_in, H, W) and the activated time embedding -> what the next level gets; skips."""
        skips = []
        if self.resnet_down is not None:
            x = self._checkpointed(self.resnet_down, x, temb)
            skips.append(x)
        for index in range(len(self.resnets)):
            x = self._layer(index, x, temb)
            skips.append(x)
        return x, skips


class SongUpBlock2D(Block):
    """One level on the way up, whose residual blocks take a skip each.

    Args:
        in_channels, skip_channels, out_channels, num_layers: As in `levels.up_widths`.
        spec: What its residual blocks have in common.
        attends: Whether attention follows the last of them.
        doubles: Whether the level begins by doubling; the lowest does not.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        attends: bool,
        doubles: bool,
    ) -> None:
        super().__init__()
        self.resnet_up = None
        if doubles:
            self.resnet_up = scaled_resnet(
                in_channels, in_channels, spec, resample=double, project_shortcut=True
            )
        self.attentions = nn.ModuleList([scaled_attention(out_channels, spec)] if attends else [])
        self.resnets = nn.ModuleList(
            scaled_resnet(before, after, spec)
            for before, after in up_widths(in_channels, skip_channels, out_channels, num_layers)
        )

    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
        """Skips are in the order of the way down."""
        if self.resnet_up is not None:
            x = self._checkpointed(self.resnet_up, x, temb)
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            x = self._checkpointed(resnet, torch.cat([x, skip], dim=1), temb)
        for attention in self.attentions:
            x = attention(x)
        return x


def scaled_attention(channels: int, spec: ResnetSpec) -> PixelAttention:
    """One head, and a sum that is divided by √2."""
    return PixelAttention(
        channels,
        norm_num_groups=default_groups(channels),
        eps=spec.eps,
        output_scale=math.sqrt(2),
    )


def scaled_spec(channels: int, spec: ResnetSpec) -> ResnetSpec:
    """For blocks of so many channels in which all groups are alike."""
    return replace(spec, groups=default_groups(channels), output_scale=math.sqrt(2))
