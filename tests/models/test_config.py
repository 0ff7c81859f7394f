from typing import Any

import pytest
from diffusers import UNet2DModel

from ddpm_sa.models.unet import UNet
from tests.support.reference import SMALL


def test_small_configuration_is_accepted() -> None:
    UNet(**SMALL)


def test_arguments_and_defaults_are_diffusers_and_more() -> None:
    ours, theirs = (
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in cls().config.items()
            if not name.startswith("_")
        }
        for cls in (UNet, UNet2DModel)
    )
    more = {
        "attention_kind": "pixel",
        "num_attention_heads": None,
        "num_attention_heads_up": None,
        "conv_in_channels": None,
        "timestep_input_dim": None,
        "conv_resample": True,
    }
    assert ours == theirs | more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block_out_channels": (8, 16, 16)},
            r"down_block_types names 2 levels and block_out_channels=\(8, 16, 16\) 3; give one",
        ),
        ({"up_block_types": ("UpBlock2D",)}, r"up_block_types names 1 .*\(8, 16\) 2; give one"),
        (
            {"block_out_channels": (8, 18)},
            r"block_out_channels\[1\]=18 .* norm_num_groups=4; use 20 channels or 16, or 2 groups",
        ),
        (
            {"block_out_channels": (2, 16)},
            r"block_out_channels\[0\]=2 .* norm_num_groups=4; use 4 channels, or 2 groups",
        ),
        (
            {"attn_norm_num_groups": 6},
            r"block_out_channels\[-1\]=16.*attn_norm_num_groups=6; use 2",
        ),
        (
            {"attention_head_dim": 17},
            r"attention_head_dim=17 .*block_out_channels\[1\]=16 without a head; use 16 or less",
        ),
        (
            {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
            r"'CrossAttnDownBlock2D'.*AttnDownBlock2D, Res",
        ),
        (
            {"up_block_types": ("AttnUpBlock2D", "UpDecoderBlock2D")},
            r"'UpDecoderBlock2D'.*UpBlock2D, Attn",
        ),
        (
            {"up_block_types": ("SkipUpBlock2D", "UpBlock2D")},
            r"image of SkipUpBlock2D ends at level 1 .*must be skip blocks too",
        ),
        (
            {
                "block_out_channels": (8, 8, 8),
                "down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D",) * 3,
            },
            r"only skip blocks halve the image, so the block types before one must be skip blocks",
        ),
        (
            {"down_block_types": ("KDownBlock2D", "DownBlock2D"), "block_out_channels": (32, 32)},
            r"AttnUpBlock2D at level 1 does not fit .*K blocks go with K blocks",
        ),
        (
            {
                "down_block_types": ("SkipDownBlock2D", "DownBlock2D"),
                "in_channels": 1,
            },
            r"in_channels=1 must be 3 for skip blocks",
        ),
        (
            {
                "up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D"),
                "out_channels": 6,
            },
            r"out_channels=6 must be 3 for skip blocks",
        ),
        (
            {
                "down_block_types": ("DownBlock2D", "AttnSkipDownBlock2D"),
                "up_block_types": ("UpBlock2D", "UpBlock2D"),
            },
            r"32 groups of GroupNorm do not divide 16 channels",
        ),
        (
            {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2},
            r"0 groups of GroupNorm do not divide 8 channels",
        ),
        ({"norm_num_groups": None}, r"norm_num_groups=None needs block types .*give a number"),
        ({"norm_num_groups": 0}, r"norm_num_groups=0"),
        ({"attention_head_dim": 0}, r"attention_head_dim=0 must be a whole number from 1"),
        ({"time_embedding_type": "sine"}, r"time_embedding_type='sine'.*'positional'"),
        ({"time_embedding_type": "learned"}, r"num_train_timesteps=None must say how many"),
        (
            {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
            r"mid_block_type=.*'UNetMidBlock2D', None",
        ),
        ({"downsample_type": "pool"}, r"downsample_type='pool'.*'conv', 'resnet'"),
        ({"upsample_type": "pool"}, r"upsample_type='pool'.*'conv', 'resnet'"),
        ({"downsample_padding": 2}, r"downsample_padding=2.*0, 1"),
        ({"act_fn": "tanh"}, r"act_fn='tanh'.*'silu'"),
        (
            {"resnet_time_scale_shift": "spatial"},
            r"resnet_time_scale_shift='spatial'.*'scale_shift'",
        ),
        ({"class_embed_type": "projection"}, r"class_embed_type='projection'.*'timestep'"),
        ({"attention_kind": "linear"}, r"attention_kind='linear'.*'pixel', 'sagan'"),
        ({"layers_per_block": 0}, r"layers_per_block=0 must be a whole number from 1 to 100"),
        ({"in_channels": 0}, r"in_channels=0 must be a whole number from 1 to"),
        ({"num_attention_heads": 3}, r"num_attention_heads=3 does not divide .*use 1"),
        ({"num_attention_heads": 0}, r"num_attention_heads=0 must be a whole number from 1 to"),
        ({"num_attention_heads": 2, "attention_kind": "sagan"}, r"'sagan', which has one"),
        ({"num_attention_heads_up": 2}, "num_attention_heads_up=2 needs num_attention_heads"),
        (
            {"num_attention_heads": 2, "num_attention_heads_up": 3},
            r"num_attention_heads_up=3 does not divide block_out_channels\[1\]=16; use 1",
        ),
        ({"conv_in_channels": 0}, "conv_in_channels=0 must be a whole number from 1"),
        ({"timestep_input_dim": 2.5}, "timestep_input_dim=2.5 must be a whole number"),
        ({"timestep_input_dim": 4, "freq_shift": 2}, "freq_shift=2 must not be half of timestep_"),
        (
            {"conv_in_channels": 4, "down_block_types": ("KDownBlock2D",) * 2}
            | {"up_block_types": ("KUpBlock2D",) * 2},
            r"conv_in_channels=4 must be block_out_channels\[0\]=8, or null, with KUpBlock2D",
        ),
        (
            {"conv_resample": False, "down_block_types": ("SkipDownBlock2D", "DownBlock2D")}
            | {"up_block_types": ("UpBlock2D", "SkipUpBlock2D")},
            "conv_resample=False needs blocks that resample by convolutions; SkipDownBlock2D has",
        ),
        ({"conv_resample": "no"}, "conv_resample='no' is not built here; known are True, False"),
        ({"attention_kind": "sagan", "block_out_channels": (8, 12)}, r"divisible by 8, not 12"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_with_the_value_and_the_way_out(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        UNet(**{**SMALL, **changes})
    assert "\n" not in str(refusal.value)


def test_head_dims_matter_only_where_there_is_attention() -> None:
    UNet(**{**SMALL, "attention_head_dim": 16, "norm_num_groups": 4})
    with pytest.raises(ValueError, match=r"attention_head_dim=16 .*block_out_channels\[0\]=8 w"):
        UNet(
            **{
                **SMALL,
                "attention_head_dim": 16,
                "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            }
        )
