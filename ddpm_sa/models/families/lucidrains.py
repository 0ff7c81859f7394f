"""The U-Net of lucidrains/denoising-diffusion-pytorch, version 2."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ddpm_sa.errors import require
from ddpm_sa.files.json_files import check_choice, shown
from ddpm_sa.models.blocks.rms_norm import LinearAttention, MemoryAttention, RMSResnetBlock
from ddpm_sa.models.config import COUNT, RANGES, check_lists, check_numbers
from ddpm_sa.models.embedding import sinusoid
from ddpm_sa.models.network import Network, UNetOutput

AttentionType = Literal["linear", "full"]
_ATTENTIONS = {"linear": LinearAttention, "full": MemoryAttention}


class LucidrainsUNet(Network):
    """F(x_t, t): a U-Net with RMSNorm, linear attention, and memory tokens in all attention.

    `Unet` of denoising_diffusion_pytorch.py at version 2.3.1, with its default options: no
    self-conditioning, no random or learned frequencies of the timestep. flash_attn computes the
    same. `checkpoints.from_lucidrains` loads its weights.

    A level has two residual blocks and one attention, and ends by halving the image and changing
    the number of channels; the lowest level changes the channels alone. In their words,
    conv_in_channels is init_dim, timestep_input_dim is dim, and block_out_channels are
    dim · dim_mults.

    Args:
        sample_size: Height and width of the images, in pixels.
        in_channels, out_channels: Channels of the images, and of what is predicted.
        conv_in_channels: Features after the first convolution, of 7 x 7; block_out_channels[0] if
            None.
        block_out_channels: Features after each level.
        timestep_input_dim: Width of the sinusoid of the timestep; block_out_channels[0] if None.
        attention_types: "linear" or "full" (over pixels) attention of each level; the middle has
            full attention.
        num_attention_heads, attention_head_dim: Heads of each level's attention, and their width;
            the middle has the last level's.
        num_memory_tokens: Learned keys and values of each attention.
        dropout: Probability, in the first half of each residual block.
        num_class_embeds: None: this architecture has no classes.

    Raises:
        ValueError: If an argument is out of range, or has not one value for each level.
    """

    architecture = (
        "The U-Net of lucidrains/denoising-diffusion-pytorch, with linear attention and "
        "self-attention over pixels"
    )

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        conv_in_channels: int | None = None,
        block_out_channels: Sequence[int] = (64, 128, 256, 512),
        timestep_input_dim: int | None = None,
        attention_types: Sequence[AttentionType] = ("linear", "linear", "linear", "full"),
        num_attention_heads: Sequence[int] = (4, 4, 4, 4),
        attention_head_dim: Sequence[int] = (32, 32, 32, 32),
        num_memory_tokens: int = 4,
        dropout: float = 0.0,
        num_class_embeds: None = None,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        levels, conv_in_channels = (
            len(block_out_channels),
            conv_in_channels or block_out_channels[0],
        )
        width_of_t = timestep_input_dim or block_out_channels[0]

        def attention(channels: int, level: int, kind: AttentionType) -> nn.Module:
            return _ATTENTIONS[kind](
                channels,
                heads=num_attention_heads[level],
                head_dim=attention_head_dim[level],
                memory_tokens=num_memory_tokens,
            )

        temb_channels = 4 * width_of_t
        # A level works with the channels that the one above has given it.
        widths = [conv_in_channels, *block_out_channels]
        steps = list(itertools.pairwise(widths))
        self.conv_in = nn.Conv2d(in_channels, conv_in_channels, 7, padding=3)
        self.time_embedding = _TimeEmbedding(width_of_t, temb_channels)
        self.down_blocks = nn.ModuleList(
            _DownLevel(
                RMSResnetBlock(width, width, temb_channels, dropout),
                RMSResnetBlock(width, width, temb_channels, dropout),
                attention(width, level, attention_types[level]),
                _halving(width, after) if level < levels - 1 else _keeping(width, after),
            )
            for level, (width, after) in enumerate(steps)
        )
        lowest = widths[-1]
        self.mid_block = _Middle(
            RMSResnetBlock(lowest, lowest, temb_channels, dropout),
            RMSResnetBlock(lowest, lowest, temb_channels, dropout),
            attention(lowest, levels - 1, "full"),
        )
        self.up_blocks = nn.ModuleList(
            _UpLevel(
                RMSResnetBlock(width + after, width, temb_channels, dropout),
                RMSResnetBlock(width + after, width, temb_channels, dropout),
                attention(width, level, attention_types[level]),
                _doubling(width, after) if level else _keeping(width, after),
            )
            for level, (after, width) in reversed(list(enumerate(steps)))
        )
        self.resnet_out = RMSResnetBlock(
            2 * conv_in_channels, conv_in_channels, temb_channels, dropout
        )
        self.conv_out = nn.Conv2d(conv_in_channels, out_channels, 1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetOutput | tuple[Tensor]:
        """Predict from noisy images.

        Args:
            sample: x_t, (B, in_channels, H, W).
            timestep: t, one number for all images, or (B,).
            class_labels: None.
            return_dict: False returns a tuple of one.

        Returns:
            An output whose `.sample` is (B, out_channels, H, W).

        Raises:
            ValueError: If H or W cannot be halved at every level, or class_labels are given.
        """
        self._check_size(sample)
        self._check_labels(class_labels, conditional=False)
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        temb = self.time_embedding(t, sample.dtype)
        x = first = self.conv_in(sample)
        skips: list[Tensor] = []
        for level in self.down_blocks:
            x, more = level(x, temb)
            skips += more
        x = self.mid_block(x, temb)
        for level in self.up_blocks:
            x = level(x, skips[-2:], temb)
            skips = skips[:-2]
        x = self.conv_out(self.resnet_out(torch.cat([x, first], dim=1), temb))
        return UNetOutput(sample=x) if return_dict else (x,)


def _check_config(config: Mapping[str, Any]) -> None:
    names = ("in_channels", "out_channels", "conv_in_channels", "timestep_input_dim", "dropout")
    check_numbers(config, {name: RANGES[name] for name in names} | {"num_memory_tokens": COUNT})
    counts = ["block_out_channels", "num_attention_heads", "attention_head_dim"]
    check_lists(config, counts, ["attention_types"])
    for level, kind in enumerate(config["attention_types"]):
        check_choice(f"attention_types[{level}]", kind, _ATTENTIONS)
    classes = config["num_class_embeds"]
    require(
        classes is None, f"num_class_embeds={shown(classes)} must be null: there are no classes"
    )
    # sinusoid divides by half its width less 1.
    width = config["timestep_input_dim"] or config["block_out_channels"][0]
    require(width > 3, f"timestep_input_dim={width} must be at least 4")


class _TimeEmbedding(nn.Module):
    """Two linear layers around a GELU: (B,) -> (B, temb_channels)."""

    def __init__(self, width: int, temb_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, temb_channels)
        self.linear_2 = nn.Linear(temb_channels, temb_channels)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        width = self.linear_1.in_features
        waves = sinusoid(t, width, flip_sin_to_cos=False, freq_shift=1)
        return self.linear_2(F.gelu(self.linear_1(waves.to(dtype))))


class _Level(nn.Module):
    """Two residual blocks, an attention, and what changes channels and size at the end."""

    def __init__(
        self, first: nn.Module, second: nn.Module, attention: nn.Module, resample: nn.Module
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([first, second])
        self.attentions = nn.ModuleList([attention])
        self.resample = resample


class _DownLevel(_Level):
    def forward(self, x: Tensor, temb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the next level gets, and the skips."""
        first = self.resnets[0](x, temb)
        second = self.attentions[0](self.resnets[1](first, temb))
        return self.resample(second), [first, second]


class _UpLevel(_Level):
    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
        """The skips are in the order of the way down."""
        x = self.resnets[0](torch.cat([x, skips[1]], dim=1), temb)
        x = self.resnets[1](torch.cat([x, skips[0]], dim=1), temb)
        return self.resample(self.attentions[0](x))


class _Middle(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([first, second])
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, temb)), temb)


def _halving(channels: int, out_channels: int) -> nn.Sequential:
    """2 x 2 pixels become one of four times the channels; then a linear layer."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, out_channels, 1))


def _doubling(channels: int, out_channels: int) -> nn.Sequential:
    """Each pixel becomes 2 x 2; then a 3 x 3 convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2), nn.Conv2d(channels, out_channels, 3, padding=1)
    )


def _keeping(channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution; the size stays."""
    return nn.Conv2d(channels, out_channels, 3, padding=1)
