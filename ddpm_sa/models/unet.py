"""The U-Net of the DDPM paper: wiring and forward pass.

Its arguments, parameter names, shapes and order are those of diffusers' UNet2DModel, so that either
loads the other's weights; the computation is our own.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from ddpm_sa.errors import UserError
from ddpm_sa.models.attention import ATTENTION_KINDS, AttentionSpec, SelfAttention
from ddpm_sa.models.blocks import DownBlock, MidBlock, Resampling, UpBlock
from ddpm_sa.models.config import DOWN_BLOCKS, UP_BLOCKS, block_type, check_config
from ddpm_sa.models.embedding import TimestepEmbedding, sinusoid
from ddpm_sa.models.loading import UNetFiles
from ddpm_sa.models.resnet import ACTIVATIONS, ResnetBlock


@dataclass
class UNetOutput(BaseOutput):
    """sample: what the network predicts, (B, out_channels, H, W)."""

    sample: Tensor


class UNet(UNetFiles):
    """F(x_t, t): a U-Net of residual blocks with self-attention over pixels.

    Ho et al. 2020, appendix B. Takes all arguments of diffusers' UNet2DModel, with its defaults
    and meanings, and two more:

    Args:
        attention_kind: A name of `models.attention.ATTENTION_KINDS`: "pixel", the paper's and
            diffusers', or "sagan" (Zhang et al. 2018).
        num_attention_heads: Heads of every attention, of any width, in the place of
            attention_head_dim, which is one width for all.

    Raises:
        ValueError: If the arguments contradict each other, or ask for what is not built here.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", *["AttnDownBlock2D"] * 3),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: Resampling = "conv",
        upsample_type: Resampling = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        attention_kind: str = "pixel",
        num_attention_heads: int | None = None,
    ) -> None:
        super().__init__()
        check_config(self.config)
        channels = list(block_out_channels)
        temb_channels = time_embedding_dim or 4 * channels[0]
        make_resnet = functools.partial(
            ResnetBlock,
            temb_channels=temb_channels,
            groups=norm_num_groups,
            eps=norm_eps,
            act_fn=act_fn,
            dropout=dropout,
            scale_shift=resnet_time_scale_shift == "scale_shift",
        )

        def make_attention(
            channels: int, groups: int | None = norm_num_groups, output_scale: float = 1.0
        ) -> SelfAttention:
            spec = AttentionSpec(
                heads=num_attention_heads or channels // (attention_head_dim or channels),
                norm_num_groups=groups,
                eps=norm_eps,
                output_scale=output_scale,
            )
            return ATTENTION_KINDS[attention_kind].build(channels, spec)

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], temb_channels)
        self.activation = ACTIVATIONS[act_fn]()
        self.class_embedding = _class_embedding(
            class_embed_type, num_class_embeds, channels[0], temb_channels
        )

        self.down_blocks = nn.ModuleList()
        for level, name in enumerate(down_block_types):
            kind, last = block_type(name, DOWN_BLOCKS), level == len(channels) - 1
            self.down_blocks.append(
                DownBlock(
                    channels[max(level - 1, 0)],
                    channels[level],
                    num_layers=layers_per_block,
                    make_resnet=make_resnet,
                    make_attention=make_attention if kind.attention else None,
                    downsample=None if last else kind.resample or downsample_type,
                    downsample_padding=downsample_padding,
                )
            )

        self.up_blocks = nn.ModuleList()
        upwards = channels[::-1]
        for level, name in enumerate(up_block_types):
            kind, last = block_type(name, UP_BLOCKS), level == len(channels) - 1
            self.up_blocks.append(
                UpBlock(
                    upwards[max(level - 1, 0)],
                    upwards[min(level + 1, len(channels) - 1)],
                    upwards[level],
                    num_layers=layers_per_block + 1,
                    make_resnet=make_resnet,
                    make_attention=make_attention if kind.attention else None,
                    upsample=None if last else kind.resample or upsample_type,
                )
            )

        # After up_blocks, where diffusers registers it.
        self.mid_block = None
        if mid_block_type is not None:
            groups = attn_norm_num_groups
            if groups is None and resnet_time_scale_shift == "default":
                groups = norm_num_groups
            scaled = {"output_scale": mid_block_scale_factor}
            make_mid_attention = functools.partial(make_attention, groups=groups, **scaled)
            self.mid_block = MidBlock(
                channels[-1],
                make_resnet=functools.partial(make_resnet, **scaled),
                make_attention=make_mid_attention if add_attention else None,
            )

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels[0], norm_eps)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

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
            class_labels: (B,), int64, for a class-conditional network and only for one.
            return_dict: False returns a tuple of one.

        Returns:
            An output whose `.sample` is (B, out_channels, H, W).

        Raises:
            ValueError: If H or W cannot be halved at every level, or class_labels are given to an
                unconditional network, or missing for a conditional one.
        """
        self._check_size(sample)
        if self.config["center_input_sample"]:
            sample = 2 * sample - 1
        temb = self._embed(sample, timestep, class_labels)

        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], temb)
        x = skips[-1]
        if self.mid_block is not None:
            x = self.mid_block(x, temb)
        for block in self.up_blocks:
            # One skip per layer: layers_per_block of this level, and what the level began with.
            count = self.config["layers_per_block"] + 1
            x = block(x, skips[-count:], temb)
            skips = skips[:-count]  # not `del`, which torch 2.7 cannot compile
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return UNetOutput(sample=x) if return_dict else (x,)

    def paper_init_(self) -> "UNet":
        """Initialise as the paper's code does, in place, from torch's global generator.

        Xavier uniform weights and zero biases; the last layer of every residual and attention
        block, and of the network, 1e-5 times that (nn.py's variance_scaling with scale 1e-10, so
        every block begins as the identity, and no gradient is exactly zero).
        """
        last: set[nn.Module | None] = {self.conv_out}
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                last.add(module.conv2)
            elif isinstance(module, SelfAttention):
                last.add(module.last_projection)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                gain = 1e-5 if module in last else 1.0
                nn.init.xavier_uniform_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return self

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this: 2 for each level but the lowest."""
        return 2 ** (len(self.down_blocks) - 1)

    def _check_size(self, sample: Tensor) -> None:
        height, width = sample.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise UserError(
                f"an image of {height} x {width} cannot be halved at each of the "
                f"{len(self.down_blocks)} levels; pad it to multiples of {self.size_multiple}"
            )

    def _embed(self, sample: Tensor, t: Tensor | float, class_labels: Tensor | None) -> Tensor:
        """The activated time (and class) embedding, (B, temb_channels)."""
        config, dtype = self.config, self.conv_in.weight.dtype
        wave = functools.partial(
            sinusoid,
            dim=self.time_embedding.linear_1.in_features,
            flip_sin_to_cos=config["flip_sin_to_cos"],
            freq_shift=config["freq_shift"],
        )
        t = torch.as_tensor(t, device=sample.device)
        temb = self.time_embedding(wave(t.expand(len(sample))).to(dtype))
        if self.class_embedding is None:
            if class_labels is not None:
                raise UserError("this network is unconditional: leave class_labels out")
            return self.activation(temb)
        if class_labels is None:
            raise UserError("this network is class-conditional: give class_labels")
        if config["class_embed_type"] == "timestep":
            class_labels = wave(class_labels).to(dtype)
        return self.activation(temb + self.class_embedding(class_labels).to(dtype))


def _class_embedding(
    kind: str | None, num_classes: int | None, sinusoid_dim: int, temb_channels: int
) -> nn.Module | None:
    if kind == "timestep":
        return TimestepEmbedding(sinusoid_dim, temb_channels)
    if kind == "identity":
        return nn.Identity()
    return None if num_classes is None else nn.Embedding(num_classes, temb_channels)
