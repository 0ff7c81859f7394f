"""The paper's networks, schedules and training numbers, by name, and two small ones for a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_sa.errors import UserError

# Where the paper's code and UNet2DModel's defaults differ: padding as TensorFlow's "SAME", one
# head, the sinusoid [sin | cos] over half - 1, and GroupNorm's epsilon (nn.py, unet.py).
PAPER = {
    "downsample_padding": 0,
    "attention_head_dim": None,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
# Ho et al. 2020, section 4: T = 1000, beta from 1e-4 to 0.02, x_0 clipped to [-1, 1].
PAPER_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "clip_sample": True,
    "prediction_type": "epsilon",
}


def predicting(prediction_type: str) -> dict[str, Any]:
    """The arguments of DDPMScheduler for a network of this prediction type.

    A network of eps is sampled as in the paper: at the noisiest timesteps its predicted x_0,
    (x_t - s eps) / a, has large errors and is clipped. A network of v or of x_0 has no such errors;
    clipping its x_0 would only make it inconsistent with the eps of the same step, and DDIM would
    miss its solution (docs/recipe.md). With "trailing", few steps start at the noise level of x_T
    (Lin et al. 2024, section 3.3).
    """
    as_the_paper = prediction_type == "epsilon"
    return {
        "prediction_type": prediction_type,
        "clip_sample": as_the_paper,
        "timestep_spacing": "leading" if as_the_paper else "trailing",
    }


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One network and how to train it.

    Attributes:
        unet: Arguments of `UNet`.
        scheduler: Arguments of diffusers' DDPMScheduler.
        training: batch_size (images a step, over all processes), optimizer (adam or muon), lr,
            warmup_steps, steps, ema_decay, grad_clip (largest norm of the gradient), flip (left to
            right).
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    training: dict[str, Any]


def block_types(
    attention_resolutions: Sequence[int], image_size: int, num_levels: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Say where attention goes by resolution, as the paper does.

    Args:
        attention_resolutions: Heights, in pixels, of the feature maps that get attention on the
            way down and up, such as (16,); the middle has its own in any case.
        image_size: Height of the images, in pixels.
        num_levels: Number of levels; each but the last halves.

    Returns:
        down_block_types and up_block_types for `UNet`.

    Raises:
        ValueError: If no level has one of the resolutions.
    """
    sizes = [image_size // 2**level for level in range(num_levels)]
    absent = sorted(set(attention_resolutions) - set(sizes))
    if absent:
        nearest = min(sizes, key=lambda size: abs(size - absent[0]))
        raise UserError(
            f"attention_resolutions={tuple(attention_resolutions)}: no level is {absent[0]} pixels "
            f"high; with images of {image_size} the {num_levels} levels are "
            f"{', '.join(map(str, sizes))}, of which {nearest} is the nearest"
        )
    attends = [size in attention_resolutions for size in sizes]
    down = tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends)
    up = tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends))
    return down, up


def _unet(
    image_size: int, image_channels: int, channels: tuple[int, ...], attention: int, **more: Any
) -> dict[str, Any]:
    down, up = block_types([attention], image_size, len(channels))
    return {
        **PAPER,
        "sample_size": image_size,
        "in_channels": image_channels,
        "out_channels": image_channels,
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": 2,
        **more,
    }


# Ho et al. 2020, appendix B; run_cifar.py, run_lsun.py and run_celebahq.py.
_CIFAR10 = {
    "batch_size": 128,
    "optimizer": "adam",
    "lr": 2e-4,
    "warmup_steps": 5000,
    "steps": 800_000,
    "ema_decay": 0.9999,
    "grad_clip": 1.0,
    "flip": True,
}
# The paper trains each 256² set for its own number of steps; this is LSUN Church's.
_LSUN256 = {**_CIFAR10, "batch_size": 64, "lr": 2e-5, "steps": 1_200_000}
_CPU = {
    "batch_size": 32,
    "optimizer": "muon",
    "lr": 4e-3,
    "warmup_steps": 40,
    "steps": 1_300,
    "ema_decay": 0.99,
    "grad_clip": 1.0,
    "flip": False,
}
# The reverse process of the paper's CIFAR-10 runs has variance beta, of its 256² runs the
# posterior's (section 4.1).
_LARGE = {**PAPER_SCHEDULE, "variance_type": "fixed_large"}
_SMALL = {**PAPER_SCHEDULE, "variance_type": "fixed_small"}
_V = {**_SMALL, **predicting("v_prediction")}

_CHANNELS_256 = (128, 128, 256, 256, 512, 512)
_CHANNELS_256_LARGE = (192, 192, 384, 384, 768, 768)

PRESETS = {
    "cifar10": Preset(
        unet=_unet(32, 3, (128, 256, 256, 256), 16, dropout=0.1),
        scheduler=_LARGE,
        training=_CIFAR10,
    ),
    "lsun256": Preset(unet=_unet(256, 3, _CHANNELS_256, 16), scheduler=_SMALL, training=_LSUN256),
    "lsun256_large": Preset(
        unet=_unet(256, 3, _CHANNELS_256_LARGE, 16),
        scheduler=_SMALL,
        training={**_LSUN256, "steps": 1_150_000},
    ),
    "celebahq256": Preset(
        unet=_unet(256, 3, _CHANNELS_256, 16),
        scheduler=_SMALL,
        training={**_LSUN256, "steps": 500_000},
    ),
    # Groups of at least 4 channels: with one channel a group, GroupNorm takes the shift by the
    # timestep out again, and the network cannot know t.
    "mnist": Preset(
        unet=_unet(32, 1, (16, 32, 64), 16, norm_num_groups=4, layers_per_block=1),
        scheduler={**_V, "beta_schedule": "squaredcos_cap_v2"},
        training=_CPU,
    ),
    "tiny": Preset(
        unet=_unet(16, 3, (16, 32), 8, norm_num_groups=4, layers_per_block=1),
        scheduler=_V,
        training=_CPU,
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in PRESETS:
        raise UserError(
            f"preset {name!r} is unknown; known are {', '.join(PRESETS)}, and auto for training"
        )
    return PRESETS[name]
