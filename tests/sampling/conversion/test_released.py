"""Every network that OpenAI released, in full size and without memory, by its README's flags.

The flags are those of docs/openai-networks.md, and the original structure is built from them as the
two repositories' script_util.py does.
"""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_sa.checkpoints import from_openai
from ddpm_sa.cli import parse
from ddpm_sa.models.unet import UNet
from sampling.conversion.openai import check_flags
from sampling.conversion.settings import Settings
from tests.support.openai_network import UNetModel

PAGE = Path(__file__).parents[3] / "docs" / "openai-networks.md"
# create_model and sr_create_model: channel_mult follows from the size.
CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
# Millions of parameters: the hyperparameters in Dhariwal & Nichol 2021, and the README.
PUBLISHED: dict[str, float] = {
    "64x64_diffusion.pt": 296,
    "128x128_diffusion.pt": 422,
    "256x256_diffusion.pt": 554,
    "512x512_diffusion.pt": 559,
    "64_256_upsampler.pt": 312,
    "128_512_upsampler.pt": 309,
    "upsample_cond_500K.pt": 280,
}
# The upsamplers' flags, of the READMEs too, and the six channels of their input.
UPSAMPLERS = {
    "upsample_cond_500K.pt": (
        "--image_size 256 --num_channels 192 --num_res_blocks 2 --learn_sigma True --class_cond "
        "True --diffusion_steps 4000 --noise_schedule linear --rescale_timesteps False "
        "--num_heads 4"
    ),
    "64_256_upsampler.pt": (
        "--attention_resolutions 32,16,8 --class_cond True --image_size 256 --learn_sigma True "
        "--num_channels 192 --num_heads 4 --num_res_blocks 2 --resblock_updown True --use_fp16 "
        "True --use_scale_shift_norm True"
    ),
    "128_512_upsampler.pt": (
        "--attention_resolutions 32,16 --class_cond True --image_size 512 --learn_sigma True "
        "--num_channels 192 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True "
        "--use_fp16 True --use_scale_shift_norm True"
    ),
}


def documented() -> dict[str, str]:
    """File -> flags, of the tables."""
    rows = re.findall(r"^\| `(\S+\.pt)` \| `(.+?)` \| (?:`(.+?)`)? ?\|$", PAGE.read_text(), re.M)
    return {file: f"{flags} {more}" for file, flags, more in rows}


def settings_of(flags: str) -> Settings:
    return parse(Settings, ["--source", "x", "--output_dir", "x", *flags.split()])


def original(settings: Settings, upsampler: bool = False) -> UNetModel:
    """Their create_model, with its defaults."""
    size = settings.image_size
    assert size is not None
    mult = (1, 1, 2, 2, 4, 4) if upsampler else CHANNEL_MULT[size]
    heights = [int(h) for h in (settings.attention_resolutions or "16,8").split(",")]
    return UNetModel(
        model_channels=settings.num_channels or 128,
        channel_mult=mult,
        num_res_blocks=settings.num_res_blocks or 2,
        attended=tuple(level for level in range(len(mult)) if size // 2**level in heights),
        heads={},
        in_channels=6 if upsampler else 3,
        out_channels=6 if settings.learn_sigma else 3,
        num_classes=1000 if settings.class_cond else None,
        scale_shift=settings.use_scale_shift_norm is not False,
        resblock_updown=bool(settings.resblock_updown),
    )


def opened(settings: Settings, structure: UNetModel) -> UNet:
    assert settings.image_size is not None
    weights: dict[str, Any] = {
        name: torch.empty(shape, dtype=torch.float16, device="meta")
        for name, shape in structure.shapes()
    }
    return from_openai(
        weights,
        settings.image_size,
        num_heads=settings.num_heads,
        num_head_channels=settings.num_head_channels,
        use_new_attention_order=settings.use_new_attention_order,
    )


def test_the_tables_have_every_released_network() -> None:
    assert len(documented()) == 16
    assert set(PUBLISHED) <= set(documented()) | set(UPSAMPLERS)


@pytest.mark.parametrize("file", [*documented(), *UPSAMPLERS])
def test_a_released_network_has_a_place_for_each_weight_and_no_other(file: str) -> None:
    """Names and shapes are compared while loading; every number of the file is there once."""
    settings = settings_of({**documented(), **UPSAMPLERS}[file])
    structure = original(settings, upsampler=file in UPSAMPLERS)
    unet = opened(settings, structure)
    assert all(parameter.is_meta for parameter in unet.parameters())
    count = sum(math.prod(shape) for _, shape in structure.shapes())
    assert sum(parameter.numel() for parameter in unet.parameters()) == count
    check_flags(unet.config, settings)
    if file in PUBLISHED:
        assert round(count / 1e6) == PUBLISHED[file]


def test_the_first_level_of_the_512_pixel_network_has_half_the_width_of_its_sinusoid() -> None:
    settings = settings_of(documented()["512x512_diffusion.pt"])
    unet = opened(settings, original(settings))
    expected = {
        "block_out_channels": (128, 256, 256, 512, 512, 1024, 1024),
        "timestep_input_dim": 256,
        "time_embedding_dim": 1024,
        "attention_head_dim": 64,
    }
    assert {name: unet.config[name] for name in expected} == expected
    assert unet.conv_in.out_channels == 128


def test_what_the_page_says_of_diffusers_is_so() -> None:
    text = PAGE.read_text().partition("## Which of them diffusers opens")[2]
    ours = set()
    for file, flags in documented().items():
        settings = settings_of(flags)
        if UNet.not_in_diffusers(opened(settings, original(settings)).config) is not None:
            ours.add(file)
    four_heads = {file for file in ours if "imagenet64" in file}
    assert ours - four_heads == {"512x512_diffusion.pt", "128x128_diffusion.pt"}
    assert len(four_heads) == 3
    assert all(file in text for file in ours - four_heads)
