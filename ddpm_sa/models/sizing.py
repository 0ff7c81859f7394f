"""The network that follows from the size of the images: levels, widths and attention.

The paper has one network for 32 x 32 and one for 256 x 256 (Ho et al. 2020, appendix B). These
rules continue them to other sizes. At 256 x 256 they give the paper's own network; at 64 x 64 its
network for CIFAR-10, with the same four levels and attention at 16 x 16.
"""

import math
from collections.abc import Sequence
from typing import Any

from ddpm_sa.errors import require
from ddpm_sa.image_format import padded_size
from ddpm_sa.models.presets import PAPER, block_types

# The name of this rule among the presets.
AUTO = "auto"
# Pixels of the shorter side: at most so many on the lowest level, and where attention is.
LOWEST, ATTENTION = 8, 16
WIDTH = 128
# From more levels than this on, widths grow as in the paper's network for 256 x 256.
FEW_LEVELS = 4
# As in the presets: with one channel a group, GroupNorm would take the timestep's shift out again.
CHANNELS_PER_GROUP, MAX_GROUPS = 4, 32


def unet_for_size(
    size: tuple[int, int], *, width: int = WIDTH, block_out_channels: Sequence[int] | None = None
) -> dict[str, Any]:
    """Arguments of `UNet` for images of this size, which `model.preset: auto` trains.

    Args:
        size: (height, width) of the images, in pixels. Sides that cannot be halved at each level
            must be padded, by less than a quarter, to the multiple that `UNet.size_multiple` says.
        width: Channels of the first level, 4 or more.
        block_out_channels: Channels of each level, in place of those that follow from size and
            width; attention then follows from their number.

    Returns:
        The arguments, but for those that follow from the channels and labels of the images.

    Raises:
        UserError: If `width` is below 4.
    """
    require(
        width >= CHANNELS_PER_GROUP, f"model.width={width} must be {CHANNELS_PER_GROUP} or more"
    )
    channels = tuple(block_out_channels or level_widths(num_levels(size), width))
    height, _ = padded = padded_size(size, 2 ** (len(channels) - 1))
    heights = [height // 2**level for level in attention_levels(min(padded), len(channels))]
    down, up = block_types(heights, height, len(channels))
    return {
        **PAPER,
        "sample_size": padded,
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": 2,
        "norm_num_groups": norm_groups(channels),
    }


def num_levels(size: tuple[int, int]) -> int:
    """The number of levels for images of this size: two or more, as few as the rule allows.

    The shorter side is halved until 4 to 8 pixels are left, at least once (of images below 7 pixels
    fewer are left).

    Args:
        size: (height, width), in pixels.
    """
    # Rounded up, for a side that cannot be halved is padded.
    halvings = math.ceil(math.log2(min(size) / LOWEST))
    return 1 + max(halvings, 1)


def level_widths(levels: int, width: int = WIDTH) -> tuple[int, ...]:
    """Channels of each level, the highest resolution first.

    Up to four levels: `width`, then twice as many, as in the paper's network for CIFAR-10. From
    five on: `width`, doubled at every second level up to four times as many, as in its network for
    256 x 256.
    """
    if levels <= FEW_LEVELS:
        return (width, *[2 * width] * (levels - 1))
    return tuple(width * min(2 ** (level // 2), 4) for level in range(levels))


def attention_levels(side: int, levels: int) -> list[int]:
    """The levels that have attention, counted from 0: those of 16 pixels or fewer.

    The lowest level has its attention in the middle of the network, as in the paper, and one of its
    own only if no other level has so few pixels.

    Args:
        side: The shorter side of the padded images, in pixels.
        levels: Number of levels; each but the lowest halves.
    """
    small = [level for level in range(levels) if side // 2**level <= ATTENTION]
    return small[:-1] or small


def norm_groups(channels: Sequence[int]) -> int:
    """Groups of every GroupNorm: as many up to 32 as leave 4 channels or more in each."""
    most = min(min(channels) // CHANNELS_PER_GROUP, MAX_GROUPS)
    shared = math.gcd(*channels)
    return max((count for count in range(1, most + 1) if shared % count == 0), default=1)
