"""The U-Net of the DDPM paper: wiring and forward pass.

Its arguments, parameter names, shapes and order are those of diffusers' UNet2DModel, so that either
loads the other's weights; the computation is our own.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config

# DiffusionPipeline looks for ModelMixin in the module of a component.
from diffusers.models.modeling_utils import ModelMixin, get_parameter_dtype  # noqa: F401
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_sa.models.attention import ATTENTION_KINDS, AttentionSpec, SelfAttention
from ddpm_sa.models.blocks.levels import Block, Resampling, UNetMidBlock2D
from ddpm_sa.models.blocks.ncsnpp import SkipBlock, SkipUpBlock2D
from ddpm_sa.models.blocks.resnet import (
    ACTIVATIONS,
    AdaResnetBlock,
    ResnetBlock,
    ResnetSpec,
    default_groups,
)
from ddpm_sa.models.blocks.types import DOWN_BLOCKS, UP_BLOCKS, block_type
from ddpm_sa.models.config import check_config, not_in_diffusers
from ddpm_sa.models.embedding import TimestepEmbedding, class_embedding, time_projection
from ddpm_sa.models.network import Network, UNetOutput
from ddpm_sa.models.normalization import GroupNorm


class UNet(Network):
    """F(x_t, t): a U-Net of residual blocks with self-attention over pixels.

    Ho et al. 2020, appendix B. Takes all arguments of diffusers' UNet2DModel, with its defaults
    and meanings, and six more, whose defaults mean "as in UNet2DModel":

    Args:
        attention_kind: A name of `models.attention.ATTENTION_KINDS`: "pixel", the paper's and
            diffusers', or "sagan" (Zhang et al. 2018).
        num_attention_heads: Heads of every attention, of any width, in the place of
            attention_head_dim, which is one width for all.
        num_attention_heads_up: Another number of heads for the levels on the way up.
        conv_in_channels: Features after the first convolution; block_out_channels[0] if None.
        timestep_input_dim: Width of the timestep before its embedding; block_out_channels[0] if
            None. With another, give time_embedding_dim too, which stays 4 block_out_channels[0].
        conv_resample: Whether the resampling of "conv" has convolutions; if not, 2 x 2 pixels are
            averaged, and repeated on the way up.

    Raises:
        ValueError: If the arguments contradict each other, or ask for what is not built here.
    """

    architecture = "A DDPM U-Net (Ho et al. 2020) with self-attention over pixels"
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
        norm_num_groups: int | None = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        attention_kind: str = "pixel",
        num_attention_heads: int | None = None,
        num_attention_heads_up: int | None = None,
        conv_in_channels: int | None = None,
        timestep_input_dim: int | None = None,
        conv_resample: bool = True,
    ) -> None:
        super().__init__()
        check_config(self.config)
        self.sample_size = sample_size  # as in UNet2DModel: read without a warning
        channels = list(block_out_channels)
        lowest = len(channels) - 1
        first = conv_in_channels or channels[0]
        temb_channels = time_embedding_dim or 4 * channels[0]
        spec = ResnetSpec(
            temb_channels=temb_channels,
            # Without a number, block types have groups of their own.
            groups=norm_num_groups or default_groups(channels[-1]),
            eps=norm_eps,
            act_fn=act_fn,
            dropout=dropout,
            scale_shift=resnet_time_scale_shift == "scale_shift",
        )

        def make_attention(
            channels: int,
            groups: int | None = spec.groups,
            output_scale: float = 1.0,
            heads: int | None = num_attention_heads,
        ) -> SelfAttention:
            head_dim = attention_head_dim or channels
            own = {"heads": channels // head_dim, "head_dim": head_dim}
            spec = AttentionSpec(
                **(own if heads is None else {"heads": heads}),
                norm_num_groups=groups,
                eps=norm_eps,
                output_scale=output_scale,
            )
            return ATTENTION_KINDS[attention_kind].build(channels, spec)

        def resampling(kind: type[Block], default: Resampling) -> Resampling:
            how = kind.resampling or default
            return "unweighted" if how == "conv" and not conv_resample else how

        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.time_proj, width = time_projection(
            time_embedding_type,
            timestep_input_dim or channels[0],
            num_train_timesteps,
            flip_sin_to_cos=flip_sin_to_cos,
            freq_shift=freq_shift,
        )
        self.time_embedding = TimestepEmbedding(width, temb_channels)
        self.activation = ACTIVATIONS[act_fn]()
        self.class_embedding = class_embedding(
            class_embed_type, num_class_embeds, width, temb_channels
        )

        self.down_blocks = nn.ModuleList()
        for level, name in enumerate(down_block_types):
            kind = block_type(name, DOWN_BLOCKS)
            self.down_blocks.append(
                kind(
                    channels[level - 1] if level else first,
                    channels[level],
                    num_layers=layers_per_block,
                    spec=spec,
                    make_attention=make_attention,
                    downsample=None if level == lowest else resampling(kind, downsample_type),
                    downsample_padding=downsample_padding,
                )
            )

        # Made before up_blocks and registered after them, as in diffusers: the weights of a seed
        # and the order of the state dict are its own.
        mid_block = None
        if mid_block_type is not None:
            groups = attn_norm_num_groups
            if groups is None and resnet_time_scale_shift == "default":
                groups = spec.groups
            scaled = {"output_scale": mid_block_scale_factor}
            make_mid_attention = functools.partial(make_attention, groups=groups, **scaled)
            mid_block = UNetMidBlock2D(
                channels[-1],
                spec=replace(spec, **scaled),
                make_attention=make_mid_attention if add_attention else None,
            )

        self.up_blocks = nn.ModuleList()
        upwards, heads_up = channels[::-1], num_attention_heads_up or num_attention_heads
        for level, name in enumerate(up_block_types):
            kind = block_type(name, UP_BLOCKS)
            self.up_blocks.append(
                kind(
                    upwards[max(level - 1, 0)],
                    first if level == lowest else upwards[level + 1],
                    upwards[level],
                    num_layers=layers_per_block + 1,
                    spec=spec,
                    make_attention=functools.partial(make_attention, heads=heads_up),
                    upsample=None if level == lowest else resampling(kind, upsample_type),
                )
            )
        self.mid_block = mid_block

        groups = norm_num_groups or default_groups(channels[0])
        self.conv_norm_out = GroupNorm(groups, channels[0], norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    @classmethod
    def not_in_diffusers(cls, config: Mapping[str, Any]) -> str | None:
        return not_in_diffusers(config)

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
        # Not len(sample), an int, which torch.export would build in as the only batch size.
        t = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        temb = self._embed(t, class_labels)
        activated = self.activation(temb)

        x, image = self.conv_in(sample), sample
        skips = [x]
        for block in self.down_blocks:
            x, more, image = block(x, activated if block.activated else temb, image)
            skips += more
        if self.mid_block is not None:
            x = self.mid_block(x, activated)
        image = None
        for block in self.up_blocks:
            count = len(block.resnets)  # pyright: ignore[reportArgumentType]
            x, image = block(x, skips[-count:], activated if block.activated else temb, image)
            skips = skips[:-count]  # not `del`, which torch 2.7 cannot compile
        x = self.output(x)
        if image is not None:
            x = x + image
        if self.config["time_embedding_type"] == "fourier":
            x = x / t[:, None, None, None]  # what NCSN++ predicts is scaled by its noise level
        return UNetOutput(sample=x) if return_dict else (x,)

    def output(self, x: Tensor) -> Tensor:
        """The last norm and convolution: (B, C, H, W) -> (B, out_channels, H, W)."""
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Tensor] = checkpoint
    ) -> None:
        """As ModelMixin, and for the skip blocks too, which UNet2DModel leaves out."""
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)
        for block in self.modules():
            if isinstance(block, SkipBlock):
                block.recomputes = enable
                block._gradient_checkpointing_func = gradient_checkpointing_func

    def paper_init_(self) -> "UNet":
        """Initialise as the paper's code does, in place, from torch's global generator.

        Xavier uniform weights and zero biases; the last layer of every residual and attention
        block, and of the network, 1e-5 times that (nn.py's variance_scaling with scale 1e-10, so
        every block begins as the identity, and no gradient is exactly zero).
        """
        last: set[nn.Module | None] = {self.conv_out}
        last |= {block.skip_conv for block in self.up_blocks if isinstance(block, SkipUpBlock2D)}
        for module in self.modules():
            if isinstance(module, ResnetBlock | AdaResnetBlock):
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

    def _embed(self, t: Tensor, class_labels: Tensor | None) -> Tensor:
        """The time (and class) embedding before the activation: (B,) -> (B, temb_channels)."""
        # Of computation; with layerwise casting the weights are stored in another.
        dtype = get_parameter_dtype(self.conv_in)
        temb = self.time_embedding(self.time_proj(t).to(dtype))
        self._check_labels(class_labels, self.class_embedding is not None)
        if self.class_embedding is None or class_labels is None:
            return temb
        if self.config["class_embed_type"] == "timestep":
            class_labels = self.time_proj(class_labels).to(dtype)
        return temb + self.class_embedding(class_labels).to(dtype)
