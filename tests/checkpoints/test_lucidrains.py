"""Weights of denoising-diffusion-pytorch, against the numbers that its own code gave."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_sa.checkpoints import from_lucidrains, lucidrains_scheduler
from ddpm_sa.diffusion.schedule import NoiseSchedule
from tests.support.reference import Fixture, error_of_each_image

# What was recorded -> our module. Their attention leaves the residual to the caller.
RECORDED = {
    "mid/res0": "down_blocks.0.resnets.0",
    "mid/linattn0": "down_blocks.0.attentions.0",
    "mid/down0": "down_blocks.0.resample",
    "mid/attn0": "down_blocks.1.attentions.0",
}


def weights() -> dict[str, np.ndarray]:
    return Fixture("lucidrains_unet").weights()


def test_output_and_intermediates_are_those_of_the_original() -> None:
    original, unet = Fixture("lucidrains_unet"), from_lucidrains(weights(), 16)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for key, path in {**RECORDED, "mid/temb": "time_embedding"}.items():

        def hook(_: Any, inputs: tuple, out: Tensor, key: str = key) -> None:
            seen[key] = inputs[0], out

        unet.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        out = unet(original["in/x"], original["in/t"]).sample
    for key, path in RECORDED.items():
        x, y = seen[key]
        y = y - x if "attentions" in path else y
        assert (error_of_each_image(x, original[f"{key}_in"]) < 1e-4).all(), key
        assert (error_of_each_image(y, original[f"{key}_out"]) < 1e-4).all(), key
    assert (error_of_each_image(seen["mid/temb"][1], original["mid/temb_out"]) < 1e-4).all()
    assert (error_of_each_image(out, original["out/y"]) < 1e-4).all()
    assert not unet.training


def test_configuration_is_read_off_names_and_shapes() -> None:
    config = from_lucidrains(weights(), 16).config
    expected = {
        "sample_size": 16,
        "conv_in_channels": 16,
        "block_out_channels": (16, 32),
        "timestep_input_dim": 16,
        "attention_types": ("linear", "full"),
        "num_attention_heads": (4, 4),
        "attention_head_dim": (32, 32),
        "num_memory_tokens": 4,
    }
    assert {name: config[name] for name in expected} == expected


# The scheduler


@pytest.mark.parametrize(
    ("objective", "prediction"),
    [("pred_noise", "epsilon"), ("pred_x0", "sample"), ("pred_v", "v_prediction")],
)
def test_the_scheduler_has_their_betas_and_objective(objective: Any, prediction: str) -> None:
    betas = NoiseSchedule.cosine(50).betas.float()  # buffers are float32
    scheduler = lucidrains_scheduler(betas, objective)
    assert scheduler.config.prediction_type == prediction
    assert scheduler.config.variance_type == "fixed_small"
    found = NoiseSchedule.from_scheduler(scheduler)
    assert torch.equal(found.betas, betas.double())
    assert scheduler.config.clip_sample


def test_a_learned_variance_goes_with_the_noise_alone() -> None:
    betas = NoiseSchedule.cosine(50).betas
    scheduler = lucidrains_scheduler(betas, "pred_noise", learned_variance=True)
    assert scheduler.config.variance_type == "learned_range"
    with pytest.raises(ValueError, match="objective=pred_v with two outputs for each channel"):
        lucidrains_scheduler(betas, "pred_v", learned_variance=True)


@pytest.mark.parametrize("betas", [np.zeros(3), np.ones((2, 2)), np.zeros(0), np.array([np.nan])])
def test_betas_that_are_none_are_refused(betas: np.ndarray) -> None:
    with pytest.raises(ValueError, match="betas must be a vector of numbers"):
        lucidrains_scheduler(betas, "pred_v")


# Mistakes


def test_a_missing_weight_is_named_as_the_format_names_it() -> None:
    for variable in list(weights())[::3]:
        rest = {name: array for name, array in weights().items() if name != variable}
        with pytest.raises(ValueError, match=rf"^{re.escape(variable)}( \(q\))? is missing"):
            from_lucidrains(rest, 16)


def test_a_misshapen_weight_is_named() -> None:
    # With these, which the configuration is read off, the others do not fit any more.
    telling = re.compile(r"mem_kv|downs\.\d\.3(\.1)?\.weight|(init|final)_conv\.weight|time_mlp\.1")
    for variable, array in list(weights().items())[::3]:
        spoilt = {**weights(), variable: np.concatenate([array, array])}
        named = r"\S+" if telling.search(variable) else re.escape(variable)
        with pytest.raises(ValueError, match=rf"^{named}( \(q\))? has the shape "):
            from_lucidrains(spoilt, 16)


def test_an_unexpected_weight_is_named() -> None:
    with pytest.raises(ValueError, match=r"^classes_emb\.weight has no place in a network of"):
        from_lucidrains({**weights(), "classes_emb.weight": np.zeros((3, 4))}, 16)


def with_channels(channels: int, outputs: int) -> dict[str, np.ndarray]:
    """As if for other images."""
    made = weights()
    made["init_conv.weight"] = np.zeros((16, channels, 7, 7), np.float32)
    made["final_conv.weight"] = np.zeros((outputs, 16, 1, 1), np.float32)
    made["final_conv.bias"] = np.zeros(outputs, np.float32)
    return made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_channels(6, 3), r"takes 6 channels and gives 3: self_condition=True"),
        ({**weights(), "time_mlp.0.weights": np.zeros(8)}, "learned_sinusoidal_cond and random_f"),
        (
            {n.replace("norm.g", "norm.weight"): a for n, a in weights().items()},
            "blocks with GroupNorm are of a version of denoising-diffusion-pytorch before 2",
        ),
        ({"init_conv.weight": np.zeros((16, 3, 7))}, r"init_conv\.weight must have 4 axes, not 3"),
        (Fixture("pesser_unet").weights(), r"^init_conv\.weight is missing"),
    ],
)
def test_options_that_are_not_built_are_refused(content: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_lucidrains(content, 16)


def test_grey_images_and_a_learned_variance_are_read() -> None:
    unet = from_lucidrains(with_channels(1, 2), 16)
    assert (unet.config["in_channels"], unet.config["out_channels"]) == (1, 2)


def test_a_size_that_the_levels_cannot_halve_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size=15 cannot be halved at each of the 2 levels"):
        from_lucidrains(weights(), 15)
