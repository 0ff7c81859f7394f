"""The networks that people know by name, with the configurations of their repositories."""

import math
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_sa.errors import UserError
from ddpm_sa.models.blocks.types import DOWN_BLOCKS, UP_BLOCKS
from ddpm_sa.models.unet import UNet
from tests.support.reference import error_of_each_image, randomise_, twins

DDPM = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
CIFAR10 = {
    **DDPM,
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
DDPM_256 = {
    **DDPM,
    "sample_size": 256,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
NCSNPP = {
    **DDPM,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": math.sqrt(2),
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
}
NCSNPP_256 = {
    **NCSNPP,
    "sample_size": 256,
    "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
    "down_block_types": [
        *["SkipDownBlock2D"] * 4,
        "AttnSkipDownBlock2D",
        *["SkipDownBlock2D"] * 2,
    ],
    "up_block_types": [*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4],
}
NCSNPP_1024 = {
    **NCSNPP,
    "sample_size": 1024,
    "block_out_channels": [16, 32, 64, 128, 256, 512, 512, 512],
    "down_block_types": [
        *["SkipDownBlock2D"] * 6,
        "AttnSkipDownBlock2D",
        "SkipDownBlock2D",
    ],
    "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 6],
}
BY_NAME = {
    "google/ddpm-cifar10-32": CIFAR10,
    **dict.fromkeys(
        [f"google/ddpm-{kind}-256" for kind in ("celebahq", "church", "bedroom", "cat")], DDPM_256
    ),
    **dict.fromkeys(
        [f"google/ddpm-ema-{kind}-256" for kind in ("celebahq", "church", "bedroom", "cat")],
        DDPM_256,
    ),
    **dict.fromkeys(
        [f"google/ncsnpp-{kind}-256" for kind in ("celebahq", "church", "bedroom", "ffhq")],
        NCSNPP_256,
    ),
    "google/ncsnpp-ffhq-1024": NCSNPP_1024,
}
NETWORKS = {
    "google/ddpm-cifar10-32": CIFAR10,
    "google/ddpm-*-256": DDPM_256,
    "google/ncsnpp-*-256": NCSNPP_256,
    "google/ncsnpp-ffhq-1024": NCSNPP_1024,
}


@pytest.mark.parametrize("config", BY_NAME.values(), ids=BY_NAME)
def test_weights_have_the_names_order_and_shapes_of_diffusers(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours, theirs = UNet(**config), UNet2DModel(**config)
    shapes = [(name, tensor.shape) for name, tensor in ours.state_dict().items()]
    assert shapes == [(name, tensor.shape) for name, tensor in theirs.state_dict().items()]


@pytest.mark.slow
@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_outputs_are_those_of_diffusers(config: dict[str, Any]) -> None:
    """At the smallest size that the levels allow, 4 times as wide: the weights are the same."""
    ours, theirs = twins(config)
    height = ours.size_multiple
    x = torch.randn(2, 3, height, 4 * height, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 741])
    with torch.no_grad():
        out, expected = (network(x, t).sample for network in (ours, theirs))
    assert (error_of_each_image(out, expected) < 1e-5).all()


LEVELS = st.integers(1, 3)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Any arguments of UNet2DModel's constructor, most of which make a network."""
    levels = draw(LEVELS)
    many = {"min_size": levels, "max_size": levels}
    mark = draw(st.sampled_from(["Skip", "K", "", ""]))  # of any name, or of one family
    down, up = ([name for name in known if mark in name] for known in (DOWN_BLOCKS, UP_BLOCKS))
    return {
        "in_channels": draw(st.sampled_from([3, 3, 3, 1])),
        "out_channels": draw(st.sampled_from([3, 3, 3, 1])),
        "center_input_sample": draw(st.booleans()),
        "time_embedding_type": draw(st.sampled_from(["positional", "fourier", "learned"])),
        "num_train_timesteps": 800,
        "time_embedding_dim": draw(st.sampled_from([None, 20])),
        "freq_shift": draw(st.integers(0, 1)),
        "flip_sin_to_cos": draw(st.booleans()),
        "down_block_types": draw(st.lists(st.sampled_from(down), **many)),
        "mid_block_type": draw(st.sampled_from(["UNetMidBlock2D", None])),
        "up_block_types": draw(st.lists(st.sampled_from(up), **many)),
        "block_out_channels": draw(st.lists(st.sampled_from([32, 64]), **many)),
        "layers_per_block": draw(st.integers(1, 2)),
        "mid_block_scale_factor": draw(st.sampled_from([1, math.sqrt(2)])),
        "downsample_padding": draw(st.integers(0, 1)),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "act_fn": draw(st.sampled_from(["silu", "swish", "mish", "gelu", "relu"])),
        "attention_head_dim": draw(st.sampled_from([None, 3, 8, 40])),
        "norm_num_groups": draw(st.sampled_from([8, 8, 8, 5, None])),
        "attn_norm_num_groups": draw(st.sampled_from([None, 4])),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "add_attention": draw(st.booleans()),
        "class_embed_type": draw(st.sampled_from([None, "timestep"])),
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(config=configurations())
def test_a_network_is_built_exactly_where_diffusers_can_evaluate_one(
    config: dict[str, Any],
) -> None:
    x = torch.randn(2, config["in_channels"], 8, 12, generator=torch.Generator().manual_seed(0))
    arguments = {"sample": x, "timestep": torch.tensor([3, 741])}
    if config["class_embed_type"] == "timestep":
        arguments["class_labels"] = torch.tensor([4, 90])
    try:
        torch.manual_seed(0)
        theirs = UNet2DModel(**config).eval()
        with torch.no_grad():
            theirs(**arguments)
    except Exception:  # whatever it trips over
        with pytest.raises(UserError):
            UNet(**config)
        return
    torch.manual_seed(0)
    ours = UNet(**config).eval()
    for (name, weight), expected in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == expected[0]
        assert torch.equal(weight, expected[1])
    randomise_(theirs)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        out, expected = (network(**arguments).sample for network in (ours, theirs))
    assert (error_of_each_image(out, expected) < 1e-5).all()
