"""The levels of the U-Net: residual blocks and attention in a row.

A layer is a residual block and, where its level has attention, an attention block behind it.
Attentions are registered before residual blocks because the order of the state dict is diffusers'.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ddpm_sa.models.attention import SelfAttention
from ddpm_sa.models.resnet import Downsample, ResnetBlock, Upsample

MakeResnet = Callable[..., ResnetBlock]  # (in_channels, out_channels, resample=None)
MakeAttention = Callable[[int], SelfAttention]  # (channels)
Resampling = Literal["conv", "resnet"]


class _Block(nn.Module):
    """Layers that can be recomputed in the backward pass instead of stored."""

    attentions: nn.ModuleList
    resnets: nn.ModuleList
    gradient_checkpointing = False  # set by enable_gradient_checkpointing(), as is the function
    _gradient_checkpointing_func: Callable[..., Tensor]

    def _layer(self, index: int, x: Tensor, temb: Tensor) -> Tensor:
        """Residual block and attention number `index`, in one checkpoint."""

        def run(x: Tensor, temb: Tensor) -> Tensor:
            x = self.resnets[index](x, temb)
            return self.attentions[index](x) if self.attentions else x

        return self._checkpointed(run, x, temb)

    def _checkpointed(self, run: Callable[..., Tensor], x: Tensor, temb: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(_Callable(run), x, temb)
        return run(x, temb)


class _Callable:
    """A function as an object: diffusers' checkpointing calls `module.__call__`, and calling that
    of a plain function would lose its closure."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self.run = run

    def __call__(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.run(x, temb)


class DownBlock(_Block):
    """One level on the way down.

    Args:
        in_channels, out_channels: Features of each pixel before and after.
        num_layers: How many layers.
        make_resnet, make_attention: Make one block; without make_attention there is none.
        downsample: How the level ends: a convolution with stride 2, a residual block that halves,
            or not at all (the lowest level).
        downsample_padding: See `Downsample`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        make_resnet: MakeResnet,
        make_attention: MakeAttention | None,
        downsample: Resampling | None,
        downsample_padding: int,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        resnets = [make_resnet(channels, out_channels) for channels in inputs]
        attentions = [make_attention(out_channels) for _ in inputs] if make_attention else []
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        if downsample == "conv":
            self.downsamplers = nn.ModuleList(
                [Downsample(out_channels, padding=downsample_padding)]
            )
        elif downsample == "resnet":
            halving = make_resnet(out_channels, out_channels, resample="down")
            self.downsamplers = nn.ModuleList([halving])
        else:
            self.downsamplers = nn.ModuleList()

    def forward(self, x: Tensor, temb: Tensor) -> list[Tensor]:
        """The output of each layer and then of the downsampling: the skips of this level."""
        skips = []
        for index in range(len(self.resnets)):
            x = self._layer(index, x, temb)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, temb)
            skips.append(x)
        return skips


class MidBlock(_Block):
    """Residual block, attention (if any), residual block, at the lowest resolution."""

    def __init__(
        self, channels: int, *, make_resnet: MakeResnet, make_attention: MakeAttention | None
    ) -> None:
        super().__init__()
        resnets = [make_resnet(channels, channels) for _ in range(2)]
        self.attentions = nn.ModuleList([make_attention(channels)] if make_attention else [])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self._layer(0, x, temb)
        return self._checkpointed(self.resnets[1], x, temb)


class UpBlock(_Block):
    """One level on the way up. Each layer takes a skip beside its input.

    Args:
        in_channels: Features of what comes from the level below.
        skip_channels: Features of the level above, which the last skip has.
        out_channels: Features of this level, which the other skips have.
        num_layers: How many layers.
        make_resnet, make_attention: As in `DownBlock`.
        upsample: How the level ends; None at the highest.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        make_resnet: MakeResnet,
        make_attention: MakeAttention | None,
        upsample: Resampling | None,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        skips = [out_channels] * (num_layers - 1) + [skip_channels]
        resnets = [
            make_resnet(channels + skip, out_channels)
            for channels, skip in zip(inputs, skips, strict=True)
        ]
        attentions = [make_attention(out_channels) for _ in inputs] if make_attention else []
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        if upsample == "conv":
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])
        elif upsample == "resnet":
            doubling = make_resnet(out_channels, out_channels, resample="up")
            self.upsamplers = nn.ModuleList([doubling])
        else:
            self.upsamplers = nn.ModuleList()

    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
        """x: (B, C_in, H, W); skips: one per layer, in the order of the way down."""
        for index, skip in enumerate(reversed(skips)):
            x = self._layer(index, torch.cat([x, skip], dim=1), temb)
        for upsample in self.upsamplers:
            x = upsample(x, temb)
        return x
