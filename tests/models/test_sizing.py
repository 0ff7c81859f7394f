"""The network that follows from the size of the images, over all sizes from 8 to 512."""

import inspect
import re
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_sa.models.presets import preset
from ddpm_sa.models.sizing import level_widths, norm_groups, num_levels, unet_for_size
from ddpm_sa.models.unet import UNet
from tests.support.pages import ROOT

SIDES = range(8, 513)
ATTENDS = "AttnDownBlock2D"
DEFAULTS = {name: value.default for name, value in inspect.signature(UNet).parameters.items()}


def by_hand(side: int) -> int:
    """Halvings, one after the other, until at most 8 pixels are left: the rule in its words."""
    halvings = 1
    while True:
        padded = side + -side % 2**halvings
        if padded // 2**halvings <= 8:
            return halvings
        halvings += 1


@cache
def tiny(channels: tuple[int, ...], down: tuple[str, ...], up: tuple[str, ...]) -> UNet:
    """The network without memory."""
    with torch.device("meta"):
        return UNet(
            block_out_channels=channels,
            down_block_types=down,
            up_block_types=up,
            layers_per_block=1,
            norm_num_groups=norm_groups(channels),
            attention_head_dim=None,
        )


def heights(arguments: dict) -> list[tuple[int, int, bool]]:
    """Height, width and attention of each level."""
    height, width = arguments["sample_size"]
    return [
        (height / 2**level, width / 2**level, kind == ATTENDS)
        for level, kind in enumerate(arguments["down_block_types"])
    ]


def check(size: tuple[int, int]) -> None:
    arguments = unet_for_size(size)
    levels = heights(arguments)
    padded = arguments["sample_size"]
    for before, after in zip(size, padded, strict=True):
        assert before <= after < before * 1.25 or before < 16
        assert after % 2 ** (len(levels) - 1) == 0
    lowest = min(levels[-1][:2])
    assert 4 <= lowest <= 8
    assert len(levels) == 1 + by_hand(min(size))
    # Attention at every level of at most 16 pixels: the lowest has that of the middle.
    for height, width, attends in levels[:-1]:
        assert attends == (min(height, width) <= 16)
    assert sum(attends for *_, attends in levels) == 1
    assert not levels[-1][2]
    assert arguments["up_block_types"] == tuple(
        kind.replace("Down", "Up") for kind in reversed(arguments["down_block_types"])
    )


@pytest.mark.parametrize("other", [None, 8, 61, 512])
def test_levels_end_in_4_to_8_pixels_with_attention_at_16_or_fewer(other) -> None:
    for side in SIDES:
        check((side, other or side))
        check((other or side, side))


@given(st.integers(8, 512), st.integers(8, 512))
def test_the_network_of_a_turned_image_is_the_same(height: int, width: int) -> None:
    check((height, width))
    one, other = unet_for_size((height, width)), unet_for_size((width, height))
    assert one.pop("sample_size") == other.pop("sample_size")[::-1]
    assert one == other


def test_a_network_of_every_size_is_built_and_evaluated() -> None:
    seen = set()
    sizes = [*((side, side) for side in SIDES), (13, 19), (45, 61), (8, 512), (300, 57)]
    for arguments in (unet_for_size(size, width=4) for size in sizes):
        shape, channels = arguments["sample_size"], arguments["block_out_channels"]
        if (shape, channels) not in seen:  # many sizes are padded to the same
            x = torch.empty(1, 3, *shape, device="meta")
            blocks = arguments["down_block_types"], arguments["up_block_types"]
            assert tiny(channels, *blocks)(x, 0).sample.shape == x.shape
        seen.add((shape, channels))
    assert {len(channels) for _, channels in seen} == {2, 3, 4, 5, 6, 7}


def test_at_64_it_is_the_papers_network_for_cifar10_with_attention_at_16() -> None:
    four_levels = preset("cifar10").unet | {
        "down_block_types": ("DownBlock2D", "DownBlock2D", ATTENDS, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "dropout": 0.0,
        "sample_size": (64, 64),
    }
    assert DEFAULTS | unet_for_size((64, 64)) == DEFAULTS | four_levels


def test_at_256_it_is_the_papers_network_for_256() -> None:
    paper = preset("lsun256").unet | {"sample_size": (256, 256)}
    assert DEFAULTS | unet_for_size((256, 256)) == DEFAULTS | paper


@pytest.mark.parametrize(
    ("size", "padded", "levels", "attention"),
    [
        ((8, 8), (8, 8), 2, 8),
        ((13, 19), (14, 20), 2, 14),
        ((28, 28), (28, 28), 3, 14),
        ((45, 61), (48, 64), 4, 12),
        ((48, 48), (48, 48), 4, 12),
        ((100, 100), (112, 112), 5, 14),
        ((224, 224), (224, 224), 6, 14),
        ((8, 512), (8, 512), 2, 8),
    ],
)
def test_sizes_that_people_have(size, padded, levels, attention) -> None:
    arguments = unet_for_size(size)
    assert arguments["sample_size"] == padded
    assert len(arguments["block_out_channels"]) == levels == num_levels(size)
    assert [h for h, _, attends in heights(arguments) if attends] == [attention]


def test_table_in_the_docs_is_the_rule() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) to (\d+) \| (\d) \| (\d+) \| ([\d, ]+) \|$", page, re.M)
    assert [int(first) for first, *_ in rows] == [8, 17, 33, 65, 129, 257]
    for first, last, levels, multiple, channels in rows:
        for side in range(int(first), int(last) + 1):
            assert num_levels((side, 600)) == int(levels)
        assert 2 ** (int(levels) - 1) == int(multiple)
        assert level_widths(int(levels)) == tuple(map(int, channels.split(", ")))


def test_widths_are_multiples_of_the_first_and_groups_hold_four_channels_or_more() -> None:
    assert level_widths(4, 32) == (32, 64, 64, 64)
    assert level_widths(7, 32) == (32, 32, 64, 64, 128, 128, 128)
    for width in range(4, 300):
        channels = level_widths(6, width)
        groups = norm_groups(channels)
        assert groups <= 32
        assert Counter(count % groups for count in channels) == {0: 6}
        assert min(channels) // groups >= 4
    assert norm_groups((128, 256)) == 32
    with pytest.raises(ValueError, match="width=3 must be 4 or more"):
        unet_for_size((32, 32), width=3)


def test_attention_follows_from_the_levels_that_a_user_gives() -> None:
    given_levels = unet_for_size((64, 64), block_out_channels=[8, 16, 16])
    # 64, 32, 16: the lowest is the only one of so few pixels.
    assert [h for h, _, attends in heights(given_levels) if attends] == [16]
    assert not any(
        attends for *_, attends in heights(unet_for_size((64, 64), block_out_channels=[8, 16]))
    )
