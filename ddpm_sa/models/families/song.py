"""DDPM++ with the preconditioning of EDM (Karras et al. 2022), as a network of x_t and t."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ddpm_sa.errors import require
from ddpm_sa.files.json_files import Number, check_choice
from ddpm_sa.models.blocks.levels import UNetMidBlock2D
from ddpm_sa.models.blocks.resnet import ResnetSpec, default_groups
from ddpm_sa.models.blocks.song import (
    SongDownBlock2D,
    SongUpBlock2D,
    scaled_attention,
    scaled_spec,
)
from ddpm_sa.models.config import RANGES, check_lists, check_numbers
from ddpm_sa.models.embedding import TimestepEmbedding, sinusoid
from ddpm_sa.models.families.preconditioning import PRECONDITIONINGS, geometric_sigma
from ddpm_sa.models.network import Network, UNetOutput

_POSITIVE = Number(low=0, high=1e6, inside=True)


class SongUNet(Network):
    """F(x_t, t): the DDPM++ U-Net of Song et al. (2021), with the preconditioning of EDM.

    `SongUNet` of EDM's training/networks.py with the options of DDPM++. `checkpoints.from_edm`
    loads its weights. EDM calls a network with x = x_0 + sigma eps. This one is called as the
    others are, with x_t = x / sqrt(1 + sigma²) and t, whose noise level is

        sigma(t) = sigma_min (sigma_max / sigma_min)^(t / (num_train_timesteps - 1)).

    Timesteps that are evenly spaced, as schedulers have them, are then evenly spaced in log sigma,
    and a fractional one is as good as a whole one. `preconditioning.geometric_betas` is the noise
    schedule of these sigmas. What is predicted depends on the preconditioning; see there.

    Args:
        sample_size: Height and width of the images, in pixels.
        in_channels, out_channels: Channels of the images.
        conv_in_channels: Features after the first convolution, EDM's model_channels;
            block_out_channels[0] if None.
        block_out_channels: Features of each level.
        layers_per_block: Residual blocks of a level on the way down; one more on the way up.
        attention_levels: Whether each level has attention. The middle has it in any case.
        timestep_input_dim: Width of the sinusoid of c_noise; conv_in_channels if None.
        time_embedding_dim: Width of its embedding; 4 conv_in_channels if None.
        dropout: Probability.
        num_class_embeds: Number of classes, or None.
        preconditioning: "edm" (EDM's EDMPrecond) or "vp" (its VPPrecond).
        sigma_data: Standard deviation of the images, which "edm" assumes.
        sigma_min, sigma_max: The noise levels of the first and of the last timestep.
        num_train_timesteps: Number of timesteps.

    Raises:
        ValueError: If an argument is out of range, or has not one value for each level.
    """

    architecture = (
        "The DDPM++ U-Net (Song et al. 2021), with the preconditioning of EDM (Karras et al. 2022) "
        "and self-attention over pixels"
    )
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        conv_in_channels: int | None = None,
        block_out_channels: Sequence[int] = (128, 256, 256, 256),
        layers_per_block: int = 4,
        attention_levels: Sequence[bool] = (False, True, False, False),
        timestep_input_dim: int | None = None,
        time_embedding_dim: int | None = None,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        preconditioning: Literal["edm", "vp"] = "edm",
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        first = conv_in_channels or block_out_channels[0]
        width, temb_channels = timestep_input_dim or first, time_embedding_dim or 4 * first
        spec = ResnetSpec(
            temb_channels=temb_channels,
            groups=default_groups(first),
            eps=1e-6,
            dropout=dropout,
        )
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.class_embedding = None
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, width)
        self.time_embedding = TimestepEmbedding(width, temb_channels)
        above = [first, *block_out_channels[:-1]]
        levels = list(zip(above, block_out_channels, attention_levels, strict=True))
        self.down_blocks = nn.ModuleList(
            SongDownBlock2D(
                before,
                channels,
                num_layers=layers_per_block,
                spec=spec,
                attends=attends,
                halves=level > 0,
            )
            for level, (before, channels, attends) in enumerate(levels)
        )
        lowest = block_out_channels[-1]
        self.mid_block = UNetMidBlock2D(
            lowest,
            spec=scaled_spec(lowest, spec),
            make_attention=lambda channels: scaled_attention(channels, spec),
        )
        below = [*block_out_channels[1:], lowest]
        self.up_blocks = nn.ModuleList(
            SongUpBlock2D(
                below[level],
                before,
                channels,
                num_layers=layers_per_block + 1,
                spec=spec,
                attends=attends,
                doubles=level < len(levels) - 1,
            )
            for level, (before, channels, attends) in reversed(list(enumerate(levels)))
        )
        last = block_out_channels[0]
        self.conv_norm_out = nn.GroupNorm(default_groups(last), last, spec.eps)
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetOutput | tuple[Tensor]:
        """Predict from noisy images.

        Args:
            sample: x_t = (x_0 + sigma eps) / sqrt(1 + sigma²), (B, in_channels, H, W).
            timestep: t, one number for all images, or (B,).
            class_labels: (B,), int64, for a class-conditional network and only for one.
            return_dict: False returns a tuple of one.

        Returns:
            An output whose `.sample` is what the preconditioning predicts, (B, C, H, W).

        Raises:
            ValueError: If H or W cannot be halved at every level, or class_labels are given to an
                unconditional network, or missing for a conditional one.
        """
        config = self.config
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        sigma = geometric_sigma(
            t, config["sigma_min"], config["sigma_max"], config["num_train_timesteps"]
        )
        preconditioning = PRECONDITIONINGS[config["preconditioning"]](config["sigma_data"])
        of_images = sigma[:, None, None, None]
        x = preconditioning.c_in(of_images) * sample
        raw = self.raw(x.to(sample.dtype), preconditioning.c_noise(sigma), class_labels)
        out = preconditioning.prediction(sample, raw, of_images).to(sample.dtype)
        return UNetOutput(sample=out) if return_dict else (out,)

    def raw(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The network inside of the preconditioning, EDM's F_theta.

        Args:
            x: Scaled noisy images, (B, in_channels, H, W).
            c_noise: (B,).
            class_labels: As in `forward`.

        Returns:
            (B, out_channels, H, W).
        """
        self._check_size(x)
        temb = self._embed(c_noise, class_labels, x.dtype)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, temb)
            skips += more
        x = self.mid_block(x, temb)
        for block in self.up_blocks:
            count = len(block.resnets)  # pyright: ignore[reportArgumentType]
            x = block(x, skips[-count:], temb)
            skips = skips[:-count]
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _embed(self, c_noise: Tensor, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The activated embedding: (B,) -> (B, temb_channels)."""
        self._check_labels(class_labels, self.class_embedding is not None)
        width = self.time_embedding.linear_1.in_features
        waves = sinusoid(c_noise, width, flip_sin_to_cos=False, freq_shift=1).to(dtype)
        if self.class_embedding is not None and class_labels is not None:
            waves = waves + self.class_embedding(class_labels)
        return F.silu(self.time_embedding(waves))


def _check_config(config: Mapping[str, Any]) -> None:
    names = (
        *("in_channels", "out_channels", "conv_in_channels", "layers_per_block", "dropout"),
        *("timestep_input_dim", "time_embedding_dim", "num_class_embeds", "num_train_timesteps"),
    )
    sigmas = ("sigma_data", "sigma_min", "sigma_max")
    check_numbers(config, {name: RANGES[name] for name in names} | dict.fromkeys(sigmas, _POSITIVE))
    check_lists(config, ["block_out_channels"], ["attention_levels"])
    for level, attends in enumerate(config["attention_levels"]):
        check_choice(f"attention_levels[{level}]", attends, (True, False))
    check_choice("preconditioning", config["preconditioning"], PRECONDITIONINGS)
    low, high, timesteps = (
        config[name] for name in ("sigma_min", "sigma_max", "num_train_timesteps")
    )
    require(low < high, f"sigma_min={low} must be below sigma_max={high}")
    require(
        timesteps is not None and timesteps > 1,
        f"num_train_timesteps={timesteps} must be at least 2, from sigma_min to sigma_max",
    )
    # sinusoid divides by half its width less 1.
    first = config["conv_in_channels"] or config["block_out_channels"][0]
    width = config["timestep_input_dim"] or first
    require(width > 3, f"timestep_input_dim={width} must be at least 4")
