"""Which of UNet2DModel's configurations `UNet` builds, and why it refuses the others."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddpm_sa.errors import UserError, require
from ddpm_sa.files.json_files import Number, shown
from ddpm_sa.models.attention import ATTENTION_KINDS
from ddpm_sa.models.blocks.levels import DownBlock2D, UpBlock2D
from ddpm_sa.models.blocks.resnet import ACTIVATIONS, default_groups
from ddpm_sa.models.blocks.types import blocks_by_level, check_flow

# Every other argument with a fixed set of values, and those that are supported.
CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
    "act_fn": tuple(ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "center_input_sample": (True, False),
    "flip_sin_to_cos": (True, False),
    "add_attention": (True, False),
    "conv_resample": (True, False),
}
# The arguments of `UNet` that UNet2DModel lacks. Their defaults mean "as UNet2DModel".
OURS = (
    *("attention_kind", "num_attention_heads", "num_attention_heads_up"),
    *("conv_in_channels", "timestep_input_dim", "conv_resample"),
)
# The numbers among the arguments. The upper limits are beyond any network that can be trained; a
# larger value in a file of weights is a mistake, or meant to fill the memory.
COUNT = Number(low=1, high=2**16, whole=True)
COUNT_OR_NULL = Number(low=1, high=2**16, whole=True, optional=True)
RANGES = {
    "in_channels": COUNT,
    "out_channels": COUNT,
    "layers_per_block": Number(low=1, high=100, whole=True),
    "norm_num_groups": COUNT_OR_NULL,
    "attn_norm_num_groups": COUNT_OR_NULL,
    "attention_head_dim": COUNT_OR_NULL,
    "num_attention_heads": COUNT_OR_NULL,
    "num_attention_heads_up": COUNT_OR_NULL,
    "conv_in_channels": COUNT_OR_NULL,
    "timestep_input_dim": COUNT_OR_NULL,
    "time_embedding_dim": COUNT_OR_NULL,
    "num_class_embeds": Number(low=1, high=10**7, whole=True, optional=True),
    "num_train_timesteps": Number(low=1, high=10**6, whole=True, optional=True),
    "freq_shift": Number(),
    "mid_block_scale_factor": Number(low=0, high=1e6, inside=True),
    "dropout": Number(low=0, high=1),
    "norm_eps": Number(low=0, high=1),
}
MOST_LEVELS = 16


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what `UNet` would not build as UNet2DModel does.

    Args:
        config: All arguments of `UNet` by name.

    Raises:
        UserError: One line that names the argument, its value, the rule and a way out.
    """
    # Looked up at every call: a kind of attention may be added to the registry at any time.
    for name, values in {**CHOICES, "attention_kind": tuple(ATTENTION_KINDS)}.items():
        if config[name] not in values:
            known = ", ".join(map(repr, values))
            raise UserError(f"{name}={shown(config[name])} is not built here; known are {known}")
    check_numbers(config, RANGES)
    require(
        config["time_embedding_type"] != "learned" or config["num_train_timesteps"] is not None,
        "time_embedding_type='learned' has one embedding for each timestep: num_train_timesteps="
        "None must say how many",
    )
    _check_levels(config)
    check_flow(config)
    _check_resampling(config)
    _check_groups(config)
    _check_attention(config)


def not_in_diffusers(config: Mapping[str, Any]) -> str | None:
    """Why UNet2DModel cannot represent a configuration of `UNet`, or None if it can.

    Args:
        config: Arguments by name; missing ones have their defaults.
    """
    reason = ATTENTION_KINDS[config.get("attention_kind", "pixel")].not_in_diffusers
    if reason is not None:
        return reason
    if config.get("num_attention_heads") is not None:
        return "UNet2DModel has one width for the heads of all levels, and no num_attention_heads"
    for name in ("conv_in_channels", "timestep_input_dim"):
        given = config.get(name)
        if given is not None and given != config["block_out_channels"][0]:
            return (
                f"UNet2DModel has no {name}: it is always the number of channels of the first level"
            )
    if not config.get("conv_resample", True):
        return "UNet2DModel resamples by convolutions and residual blocks alone"
    return None


def check_numbers(config: Mapping[str, Any], ranges: Mapping[str, Number]) -> None:
    """Check the arguments that are numbers, and sample_size."""
    for name, numbers in ranges.items():
        numbers.check(name, config[name])
    _check_sample_size(config["sample_size"])


def check_lists(config: Mapping[str, Any], counts: Sequence[str], others: Sequence[str]) -> None:
    """Check arguments that are lists with a value for each level, the first of which says how many.

    Args:
        counts: Names of lists of numbers.
        others: Names of lists of other values.
    """
    for name in (*counts, *others):
        fits = isinstance(config[name], tuple | list) and 1 <= len(config[name]) <= MOST_LEVELS
        require(fits, f"{name}={shown(config[name])} must be a list of 1 to {MOST_LEVELS} levels")
    for name in counts:
        for level, count in enumerate(config[name]):
            COUNT.check(f"{name}[{level}]", count)
    first = counts[0]
    for name in (*counts[1:], *others):
        if len(config[name]) != len(config[first]):
            raise UserError(
                f"{name} names {len(config[name])} levels and {first}={tuple(config[first])} "
                f"{len(config[first])}; give one value for each level"
            )


def _check_sample_size(size: Any) -> None:
    sides = size if isinstance(size, tuple | list) and len(size) == 2 else [size]
    require(
        size is None or all(map(COUNT.holds, sides)),
        f"sample_size={shown(size)} must be {COUNT}, (height, width), or null",
    )


def _check_levels(config: Mapping[str, Any]) -> None:
    check_lists(config, ["block_out_channels"], ["down_block_types", "up_block_types"])
    name = "block_out_channels[0]" if config["timestep_input_dim"] is None else "timestep_input_dim"
    width = config["timestep_input_dim"] or config["block_out_channels"][0]
    # sinusoid divides by this difference.
    if config["freq_shift"] == width // 2:
        raise UserError(f"freq_shift={config['freq_shift']} must not be half of {name}={width}")


def _check_resampling(config: Mapping[str, Any]) -> None:
    own = [
        block.__name__
        for blocks in blocks_by_level(config)
        for block in blocks
        if not issubclass(block, DownBlock2D | UpBlock2D)
    ]
    require(
        config["conv_resample"] or not own,
        f"conv_resample=False needs blocks that resample by convolutions; {', '.join(own[:1])} has "
        "filters of its own",
    )


def _check_groups(config: Mapping[str, Any]) -> None:
    groups, channels = config["norm_num_groups"], config["block_out_channels"]
    plain = (DownBlock2D, UpBlock2D)
    levels = [
        level
        for level, blocks in enumerate(zip(*blocks_by_level(config), strict=True))
        if any(issubclass(block, plain) for block in blocks)
    ]
    if groups is None:
        require(
            not levels,
            "norm_num_groups=None needs block types that have groups of their own, such as "
            "SkipDownBlock2D and SkipUpBlock2D; give a number",
        )
        groups_of_level = {0: default_groups(channels[0])}
        if config["mid_block_type"] is not None:
            groups_of_level[len(channels) - 1] = default_groups(channels[-1])
    else:
        # The middle and the last convolution have the groups of plain blocks.
        last = set() if config["mid_block_type"] is None else {len(channels) - 1}
        groups_of_level = dict.fromkeys(sorted({0, *levels, *last}), groups)
    for level, groups in groups_of_level.items():
        count = channels[level]
        require(groups >= 1, f"block_out_channels[{level}]={count} must be 4 or more")
        if count % groups:
            below, above = count // groups * groups, (count // groups + 1) * groups
            raise UserError(
                f"block_out_channels[{level}]={count} is not divisible by "
                f"norm_num_groups={groups}; use {above} channels{f' or {below}' if below else ''}, "
                f"or {math.gcd(*channels)} groups"
            )
    groups = config["attn_norm_num_groups"]
    if groups is not None and channels[-1] % groups:
        raise UserError(
            f"block_out_channels[-1]={channels[-1]} is not divisible by "
            f"attn_norm_num_groups={groups}; use {math.gcd(channels[-1], groups)}"
        )


def _check_attention(config: Mapping[str, Any]) -> None:
    channels, head_dim = config["block_out_channels"], config["attention_head_dim"]
    heads, heads_up = config["num_attention_heads"], config["num_attention_heads_up"]
    kind = config["attention_kind"]
    multi_head = ATTENTION_KINDS[kind].multi_head
    if heads is not None and not multi_head:
        raise UserError(
            f"num_attention_heads={heads} must be null for attention_kind={kind!r}, which has one"
        )
    require(
        heads_up is None or heads is not None,
        f"num_attention_heads_up={heads_up} needs num_attention_heads, for the other levels",
    )
    down, up = (
        {level for level, block in enumerate(blocks) if block.attends}
        for blocks in blocks_by_level(config)
    )
    if config["add_attention"] and config["mid_block_type"] is not None:
        down |= {len(channels) - 1}
    if heads is not None:
        _check_heads("num_attention_heads", heads, channels, down)
        name = "num_attention_heads" if heads_up is None else "num_attention_heads_up"
        _check_heads(name, heads_up or heads, channels, up)
        return
    for level in sorted(down | up):
        if multi_head and head_dim and channels[level] < head_dim:
            raise UserError(
                f"attention_head_dim={head_dim} leaves block_out_channels[{level}]="
                f"{channels[level]} without a head; use {channels[level]} or less, or null for a "
                "single head"
            )


def _check_heads(name: str, heads: int, channels: Sequence[int], levels: Iterable[int]) -> None:
    for level in sorted(levels):
        if channels[level] % heads:
            raise UserError(
                f"{name}={heads} does not divide block_out_channels[{level}]={channels[level]}; "
                f"use {math.gcd(channels[level], heads)}"
            )
