"""The flags of OpenAI's programs, as their READMEs have them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_sa import Pipeline
from sampling.convert import main
from tests.support.openai_network import UNetModel
from tests.support.reference import error_of_each_image

# A network like OpenAI's of 512 x 512: the first level has half the width of the sinusoid.
NETWORK = UNetModel(
    model_channels=64,
    channel_mult=(0.5, 1, 1),
    attended=(1, 2),
    heads={64: 2},
    num_classes=5,
    resblock_updown=True,
)
README = (
    "--attention_resolutions 32,8,4 --class_cond True --diffusion_steps 1000 --image_size 16 "
    "--learn_sigma True --noise_schedule linear --num_channels 64 --num_head_channels 32 "
    "--num_res_blocks 1 --resblock_updown True --use_fp16 False --use_scale_shift_norm True "
    "--dropout 0.25"
)


@pytest.fixture
def convert(run_main):
    return partial(run_main, main)


def saved(folder: Path, network: UNetModel) -> Path:
    torch.save(network.weights(), folder / "ema.pt")
    return folder / "ema.pt"


def test_flags_of_a_readme_are_taken_as_they_are(convert, tmp_path):
    words = [saved(tmp_path, NETWORK), *README.split(), "--output_dir", tmp_path / "out"]
    code, said, error = convert(*words)
    assert code == 0, error
    assert "only ddpm_sa can open it: UNet2DModel has no timestep_input_dim" in said
    unet = Pipeline.from_pretrained(tmp_path / "out").unet
    assert unet.config["dropout"] == 0.25
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 741]), torch.tensor([4, 1])
    with torch.no_grad():
        found, expected = unet(x, t, y).sample, NETWORK(NETWORK.weights(), x, t, y)
    assert (error_of_each_image(found, expected) < 1e-4).all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "diffusers alone cannot open it: UNet2DModel has no timestep_input_dim" in card
    assert "use_fp16=False" in card


@pytest.mark.parametrize(
    ("flag", "wrong", "said"),
    [
        ("attention_resolutions", "16,8", "attention_resolutions=16,8, but the weights say 8,4"),
        ("attention_resolutions", "8", "attention_resolutions=8, but the weights say 8,4"),
        ("attention_resolutions", "all", "attention_resolutions=all must be heights in pixels"),
        ("attention_resolutions", "0", "attention_resolutions=0 must be heights in pixels"),
        ("class_cond", False, "class_cond=False, but the weights say True"),
        ("learn_sigma", False, "learn_sigma=False, but the weights say True"),
        ("num_channels", 32, "num_channels=32, but the weights say 64"),
        ("num_res_blocks", 2, "num_res_blocks=2, but the weights say 1"),
        ("resblock_updown", False, "resblock_updown=False, but the weights say True"),
        ("use_scale_shift_norm", False, "use_scale_shift_norm=False, but the weights say True"),
        ("num_head_channels", 48, "num_head_channels=48 does not divide the 64 channels"),
        ("num_heads", 2, "num_heads or num_head_channels must be given, and both are"),
        ("num_heads_upsample", 2, "num_heads_upsample=2 has no effect beside num_head_channels"),
    ],
)
def test_flags_that_contradict_the_weights_are_refused(flag, wrong, said, convert, tmp_path):
    words = [saved(tmp_path, NETWORK), *README.split(), f"--{flag}", wrong]
    code, out, error = convert(*words, "--output_dir", tmp_path / "out")
    assert (code, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_heads_on_the_way_up_are_a_flag(convert, tmp_path):
    network = UNetModel(heads={64: 2}, heads_up={64: 1})
    words: list[Any] = [saved(tmp_path, network), "--image_size", 16, "--num_heads", 2]
    words += ["--num_heads_upsample", 1, "--output_dir", tmp_path / "out"]
    code, said, error = convert(*words)
    assert code == 0, error
    assert "only ddpm_sa can open it: UNet2DModel has one width for the heads" in said
    assert "for the way up too" not in said
    unet = Pipeline.from_pretrained(tmp_path / "out").unet
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 741])
    with torch.no_grad():
        found, expected = unet(x, t).sample, network(network.weights(), x, t, None)
    assert (error_of_each_image(found, expected) < 1e-4).all()


def test_a_network_without_resampling_weights_is_written_and_opened(convert, tmp_path):
    network = UNetModel(heads={64: 2}, conv_resample=False)
    words: list[Any] = [saved(tmp_path, network), "--image_size", 16, "--num_heads", 2]
    code, said, error = convert(*words, "--output_dir", tmp_path / "out")
    assert code == 0, error
    assert "only ddpm_sa can open it: UNet2DModel resamples by" in said
    assert "num_heads=2 was taken for the way up too" in said
    pipeline = Pipeline.from_pretrained(tmp_path / "out")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 741])
    with torch.no_grad():
        found, expected = pipeline.unet(x, t).sample, network(network.weights(), x, t, None)
    assert (error_of_each_image(found, expected) < 1e-4).all()


def test_upsamplers_are_refused_with_a_way_out(convert, tmp_path):
    words: list[Any] = [saved(tmp_path, UNetModel(heads={64: 1}, in_channels=6))]
    words += ["--image_size", 16, "--num_heads", 1, "--output_dir", tmp_path / "out"]
    code, _, error = convert(*words)
    assert code == 2
    assert "is for super-resolution" in error
    assert "ddpm_sa.checkpoints.from_openai opens it in Python" in error
