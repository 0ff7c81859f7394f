"""The block types by name, and whether those of a network fit together."""

from collections.abc import Mapping
from typing import Any

from ddpm_sa.errors import UserError, require
from ddpm_sa.models.blocks.k_diffusion import KDownBlock2D, KUpBlock2D
from ddpm_sa.models.blocks.levels import (
    AttnDownBlock2D,
    AttnUpBlock2D,
    Block,
    DownBlock2D,
    ResnetDownsampleBlock2D,
    ResnetUpsampleBlock2D,
    UpBlock2D,
)
from ddpm_sa.models.blocks.ncsnpp import (
    IMAGE_CHANNELS,
    AttnSkipDownBlock2D,
    AttnSkipUpBlock2D,
    SkipDownBlock2D,
    SkipUpBlock2D,
)

# All block types with which UNet2DModel makes a network that can be evaluated. Its constructor
# takes DownEncoderBlock2D, UpDecoderBlock2D and their kin too, and its forward then fails.
DOWN_BLOCKS: dict[str, type[Block]] = {
    block.__name__: block
    for block in (
        DownBlock2D,
        AttnDownBlock2D,
        ResnetDownsampleBlock2D,
        SkipDownBlock2D,
        AttnSkipDownBlock2D,
        KDownBlock2D,
    )
}
UP_BLOCKS: dict[str, type[Block]] = {
    block.__name__: block
    for block in (
        UpBlock2D,
        AttnUpBlock2D,
        ResnetUpsampleBlock2D,
        SkipUpBlock2D,
        AttnSkipUpBlock2D,
        KUpBlock2D,
    )
}


def block_type(name: str, known: Mapping[str, type[Block]]) -> type[Block]:
    """Look a name up; "UNetRes" before it, as in old repos, means nothing.

    Raises:
        UserError: If the name is not known.
    """
    bare = str(name).removeprefix("UNetRes")
    if bare not in known:
        raise UserError(f"block type {name!r} is not built here; known are {', '.join(known)}")
    return known[bare]


def blocks_by_level(config: Mapping[str, Any]) -> tuple[list[type[Block]], list[type[Block]]]:
    """The block types, both from the highest level to the lowest."""
    down = [block_type(name, DOWN_BLOCKS) for name in config["down_block_types"]]
    up = [block_type(name, UP_BLOCKS) for name in config["up_block_types"]]
    return down, up[::-1]


def check_flow(config: Mapping[str, Any]) -> None:
    """Follow channels and levels through the network, as UNet2DModel's forward does.

    Block types of the three families mix only where skips and images meet their like.
    """
    down, up = blocks_by_level(config)
    channels, layers = list(config["block_out_channels"]), config["layers_per_block"]
    first, lowest = config["conv_in_channels"] or channels[0], len(channels) - 1
    skips = [(first, 0)]  # channels and level of each
    for level, block in enumerate(down):
        skips += [(channels[level], level)] * layers
        if level < lowest and block is not KDownBlock2D:
            skips.append((channels[level], level + 1))
    skip_levels = [level for level in range(lowest) if issubclass(down[level], SkipDownBlock2D)]
    require(
        skip_levels == list(range(len(skip_levels))),
        f"down_block_types={tuple(config['down_block_types'])}: only skip blocks halve the image, "
        "so the block types before one must be skip blocks too",
    )
    width, image_level = channels[lowest], None
    for level in range(lowest, -1, -1):
        block, above = up[level], channels[level - 1] if level else first
        count = layers if block is KUpBlock2D else layers + 1
        taken, skips = skips[-count:], skips[:-count]
        if block is KUpBlock2D:
            expected, taken, comes, goes = [channels[level]], taken[-1:], channels[level], above
        else:
            expected, comes = [above] + [channels[level]] * layers, width
            goes = channels[level]
        if taken != [(width_of_skip, level) for width_of_skip in expected] or comes != width:
            raise UserError(
                f"{block.__name__} at level {level} does not fit the blocks below and beside it: "
                f"down_block_types={tuple(config['down_block_types'])}, "
                f"up_block_types={tuple(config['up_block_types'])}; K blocks go with K blocks"
            )
        width = goes
        if issubclass(block, SkipUpBlock2D) and (image_level is not None or level > 0):
            image_level = level
    if width != channels[0]:
        raise UserError(
            f"conv_in_channels={first} must be block_out_channels[0]={channels[0]}, or null, with "
            "KUpBlock2D, which ends with them"
        )
    if image_level:
        raise UserError(
            f"the image of SkipUpBlock2D ends at level {image_level} of up_block_types="
            f"{tuple(config['up_block_types'])}; the block types after it must be skip blocks too"
        )
    carries = {
        "in_channels": bool(skip_levels),
        "out_channels": image_level is not None,
    }
    for name, carried in carries.items():
        require(
            not carried or config[name] == IMAGE_CHANNELS,
            f"{name}={config[name]} must be {IMAGE_CHANNELS} for skip blocks, which carry an image "
            f"of {IMAGE_CHANNELS} channels",
        )
