"""The levels of the U-Net: residual blocks and attention in a row.

A layer is a residual block and, where its level has attention, an attention block behind it.
A class here is what diffusers calls a block type, and has its name, since tools look for it.
Attentions are registered before residual blocks because the order of the state dict is diffusers';
they are made in turn because the initial weights of a seed are diffusers' too.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ddpm_sa.models.attention import SelfAttention
from ddpm_sa.models.blocks.resampling import Downsample, Unweighted, Upsample, double, halve
from ddpm_sa.models.blocks.resnet import ResnetBlock, ResnetSpec

MakeAttention = Callable[..., SelfAttention]  # (channels, groups=..., output_scale=...)
Resampling = Literal["conv", "resnet", "unweighted"]
Levels = tuple[Tensor, list[Tensor], Tensor]  # what a level on the way down returns


class Block(nn.Module):
    """Layers that can be recomputed in the backward pass instead of stored.

    Attributes:
        attends: Whether the block type has attention.
        resampling: How the level ends; None leaves it to downsample_type or upsample_type.
        activated: Whether the block takes the time embedding after the activation.
        reusable: Whether `samplers.feature_cache` can run the block by its layers.
    """

    attends: ClassVar[bool] = False
    resampling: ClassVar[Resampling | None] = None
    activated: ClassVar[bool] = True
    reusable: ClassVar[bool] = False

    attentions: nn.ModuleList
    resnets: nn.ModuleList
    # Set by enable_gradient_checkpointing(), as is the function. Tools look for this name, so only
    # the block types that have it in diffusers do; those of NCSN++ override `_recomputes`.
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable[..., Tensor]

    def _recomputes(self) -> bool:
        return self.gradient_checkpointing

    def _layer(self, index: int, x: Tensor, temb: Tensor) -> Tensor:
        """Residual block and attention number `index`, in one checkpoint."""

        def run(x: Tensor, temb: Tensor) -> Tensor:
            x = self.resnets[index](x, temb)
            return self.attentions[index](x) if self.attentions else x

        return self._checkpointed(run, x, temb)

    def _checkpointed(self, run: Callable[..., Tensor], x: Tensor, temb: Tensor) -> Tensor:
        if self._recomputes() and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(_Callable(run), x, temb)
        return run(x, temb)

    def _make_layers(
        self,
        widths: Sequence[tuple[int, int]],
        make_resnet: Callable[[int, int], nn.Module],
        make_attention: Callable[[int], SelfAttention] | None,
    ) -> None:
        """Make and register the layers: (in, out) channels of each."""
        self.attentions = nn.ModuleList()
        self.resnets = nn.ModuleList()
        for in_channels, out_channels in widths:
            self.resnets.append(make_resnet(in_channels, out_channels))
            if make_attention is not None:
                self.attentions.append(make_attention(out_channels))


class _Callable:
    """A function as an object: diffusers' checkpointing calls `module.__call__`, and calling that
    of a plain function would lose its closure."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self.run = run

    def __call__(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.run(x, temb)


def down_widths(in_channels: int, out_channels: int, num_layers: int) -> list[tuple[int, int]]:
    """(in, out) channels of each residual block on the way down."""
    inputs = [in_channels] + [out_channels] * (num_layers - 1)
    return [(channels, out_channels) for channels in inputs]


def up_widths(
    in_channels: int, skip_channels: int, out_channels: int, num_layers: int
) -> list[tuple[int, int]]:
    """(in, out) channels of each residual block on the way up, which takes a skip beside its input.

    Args:
        in_channels: Features of what comes from the level below.
        skip_channels: Features of the level above, which the last skip has.
        out_channels: Features of this level, which the other skips have.
        num_layers: How many.
    """
    inputs = [in_channels] + [out_channels] * (num_layers - 1)
    skips = [out_channels] * (num_layers - 1) + [skip_channels]
    return [(x + skip, out_channels) for x, skip in zip(inputs, skips, strict=True)]


class DownBlock2D(Block):
    """One level on the way down.

    Args:
        in_channels, out_channels: Features of each pixel before and after.
        num_layers: How many layers.
        spec: What its residual blocks have in common.
        make_attention: Makes one attention block, for a block type that has them.
        downsample: How the level ends: a convolution with stride 2, a residual block that halves,
            means of 2 x 2 pixels, or not at all (the lowest level).
        downsample_padding: See `Downsample`.
    """

    resampling = "conv"
    reusable = True
    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        make_attention: MakeAttention,
        downsample: Resampling | None,
        downsample_padding: int,
    ) -> None:
        super().__init__()
        self._make_layers(
            down_widths(in_channels, out_channels, num_layers),
            lambda before, after: ResnetBlock(before, after, spec),
            make_attention if self.attends else None,
        )
        self.downsamplers = nn.ModuleList()
        if downsample == "conv":
            self.downsamplers.append(Downsample(out_channels, padding=downsample_padding))
        elif downsample == "resnet":
            self.downsamplers.append(ResnetBlock(out_channels, out_channels, spec, resample=halve))
        elif downsample == "unweighted":
            self.downsamplers.append(Unweighted(halve))

    def forward(self, x: Tensor, temb: Tensor, image: Tensor) -> Levels:
        """Run the level.

        Args:
            x: (B, C_in, H, W).
            temb: The activated time embedding.
            image: What skip blocks carry down beside x; it goes through as it is.

        Returns:
            What the next level gets; the skips of this level, the output of each layer and of the
            downsampling; and the image.
        """
        skips = []
        for index in range(len(self.resnets)):
            x = self._layer(index, x, temb)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, temb)
            skips.append(x)
        return x, skips, image


class AttnDownBlock2D(DownBlock2D):
    """A level with attention behind each residual block."""

    attends = True
    resampling = None


class ResnetDownsampleBlock2D(DownBlock2D):
    """A level that a residual block halves."""

    resampling = "resnet"


class UNetMidBlock2D(Block):
    """Residual block, attention (if any), residual block, at the lowest resolution."""

    gradient_checkpointing = False

    def __init__(
        self, channels: int, *, spec: ResnetSpec, make_attention: MakeAttention | None
    ) -> None:
        super().__init__()
        self._make_layers(
            [(channels, channels)],
            lambda before, after: ResnetBlock(before, after, spec),
            make_attention,
        )
        self.resnets.append(ResnetBlock(channels, channels, spec))

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self._layer(0, x, temb)
        return self._checkpointed(self.resnets[1], x, temb)


class UpBlock2D(Block):
    """One level on the way up. Each layer takes a skip beside its input.

    Args:
        in_channels, skip_channels, out_channels, num_layers: As in `up_widths`.
        spec, make_attention: As in `DownBlock2D`.
        upsample: How the level ends; None at the highest.
    """

    resampling = "conv"
    reusable = True
    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        num_layers: int,
        spec: ResnetSpec,
        make_attention: MakeAttention,
        upsample: Resampling | None,
    ) -> None:
        super().__init__()
        self._make_layers(
            up_widths(in_channels, skip_channels, out_channels, num_layers),
            lambda before, after: ResnetBlock(before, after, spec),
            make_attention if self.attends else None,
        )
        self.upsamplers = nn.ModuleList()
        if upsample == "conv":
            self.upsamplers.append(Upsample(out_channels))
        elif upsample == "resnet":
            self.upsamplers.append(ResnetBlock(out_channels, out_channels, spec, resample=double))
        elif upsample == "unweighted":
            self.upsamplers.append(Unweighted(double))

    def forward(
        self, x: Tensor, skips: list[Tensor], temb: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the level.

        Args:
            x: (B, C_in, H, W).
            skips: One for each layer, in the order of the way down.
            temb: The activated time embedding.
            image: What skip blocks add up on the way up; it goes through as it is.

        Returns:
            What the next level gets, and the image.
        """
        for index, skip in enumerate(reversed(skips)):
            x = self._layer(index, torch.cat([x, skip], dim=1), temb)
        for upsample in self.upsamplers:
            x = upsample(x, temb)
        return x, image


class AttnUpBlock2D(UpBlock2D):
    """A level with attention behind each residual block."""

    attends = True
    resampling = None


class ResnetUpsampleBlock2D(UpBlock2D):
    """A level that a residual block doubles."""

    resampling = "resnet"
