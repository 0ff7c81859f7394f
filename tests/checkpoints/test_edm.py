"""Weights of EDM's DDPM++, against the numbers that its own code gave."""

import math
import re
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_sa.checkpoints import edm_scheduler, from_edm
from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.models.families.preconditioning import PRECONDITIONINGS
from ddpm_sa.models.families.song import SongUNet
from tests.support.reference import Fixture, error_of_each_image

Preconditioning = Literal["edm", "vp"]
both = pytest.mark.parametrize("name", ["edm", "vp"])
RECORDED = {
    "mid/res_block0": "down_blocks.0.resnets.0",
    "mid/down_block0": "down_blocks.1.resnet_down",
    "mid/up_block0": "up_blocks.1.resnet_up",
}


def weights() -> dict[str, np.ndarray]:
    found = Fixture("edm_songunet").weights()
    return {name.removeprefix("model."): array for name, array in found.items()}


def timestep_of(sigma: Tensor, unet: SongUNet) -> Tensor:
    """The fractional timestep of a noise level: log sigma is linear in t."""
    low, high = unet.config["sigma_min"], unet.config["sigma_max"]
    share = (sigma.double().log() - math.log(low)) / math.log(high / low)
    return share * (unet.config["num_train_timesteps"] - 1)


def test_the_network_inside_and_its_intermediates_are_those_of_the_original() -> None:
    original, unet = Fixture("edm_songunet"), from_edm(weights(), "edm")
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for key, path in RECORDED.items():

        def hook(_: Any, inputs: tuple, out: Tensor, key: str = key) -> None:
            seen[key] = inputs[0], out

        unet.get_submodule(path).register_forward_hook(hook)
    attended: list[Tensor] = []
    unet.down_blocks[1].attentions[0].register_forward_hook(lambda *args: attended.append(args[2]))
    with torch.no_grad():
        out = unet.raw(original["in/x"], original["in/noise_labels"])
    for key, (x, y) in seen.items():
        assert (error_of_each_image(x, original[f"{key}_in"]) < 1e-4).all(), key
        assert (error_of_each_image(y, original[f"{key}_out"]) < 1e-4).all(), key
    # Their block with attention is our residual block and attention.
    assert (error_of_each_image(attended[0], original["mid/attn_block0_out"]) < 1e-4).all()
    assert (error_of_each_image(out, original["out/F"]) < 1e-4).all()
    assert not unet.training


@both
def test_the_denoiser_of_the_prediction_is_that_of_the_original(name: Preconditioning) -> None:
    """D(x, sigma) from x_t = a x and the timestep of sigma, at a small and at a large sigma."""
    original, unet = Fixture("edm_songunet"), from_edm(weights(), name)
    sigma = original["in/sigma"]
    a = ((1 + sigma**2) ** -0.5)[:, None, None, None]
    x_t, s = a * original["in/x"], a * sigma[:, None, None, None]
    with torch.no_grad():
        out = unet(x_t, timestep_of(sigma, unet)).sample
    kind = prediction(PRECONDITIONINGS[name].prediction_type)
    assert (error_of_each_image(kind.x_0(out, x_t, a, s), original[f"out/{name}"]) < 1e-4).all()


@both
def test_coefficients_are_those_of_the_original(name: Preconditioning) -> None:
    original = Fixture("edm_songunet")
    sigma = original["in/sigma"]
    _, _, c_in, c_noise = original[f"out/{name}_coef"].T
    found = PRECONDITIONINGS[name](0.5)
    torch.testing.assert_close(found.c_in(sigma) / (1 + sigma**2).sqrt(), c_in)
    # Theirs has float32's log(1 + sigma²), whose error at sigma = 0.05 is 2^-24 / 0.0025.
    torch.testing.assert_close(found.c_noise(sigma), c_noise, rtol=3e-5, atol=1e-5)


@both
def test_the_scheduler_has_the_noise_levels_of_the_timesteps(name: Preconditioning) -> None:
    scheduler = edm_scheduler(from_edm(weights(), name))
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = torch.arange(1000, dtype=torch.float64)
    expected = 0.002 * (80 / 0.002) ** (t / 999)
    torch.testing.assert_close(schedule.s / schedule.a, expected, rtol=1e-8, atol=0)
    assert scheduler.config.prediction_type == PRECONDITIONINGS[name].prediction_type
    assert not scheduler.config.clip_sample


def test_configuration_is_read_off_names_and_shapes() -> None:
    config = from_edm(weights(), "vp").config
    expected = {
        "sample_size": 16,
        "conv_in_channels": 32,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_levels": (False, True),
        "timestep_input_dim": 32,
        "time_embedding_dim": 128,
        "num_class_embeds": None,
        "preconditioning": "vp",
    }
    assert {name: config[name] for name in expected} == expected


def test_labels_are_what_a_linear_layer_makes_of_scaled_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    table, bias = torch.randn(32, 5, generator=generator), torch.randn(32, generator=generator)
    conditional = {**weights(), "map_label.weight": table, "map_label.bias": bias}
    unet = from_edm(conditional, "edm")
    assert unet.config["num_class_embeds"] == 5
    assert unet.class_embedding is not None
    labels = torch.tensor([4, 0])
    units = torch.nn.functional.one_hot(labels, 5).float()
    expected = torch.nn.functional.linear(units * math.sqrt(5), table, bias)
    torch.testing.assert_close(unet.class_embedding(labels), expected)
    x = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        first, second = (unet(x, 500, given).sample for given in (labels, labels.flip(0)))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="class-conditional: give class_labels"):
        unet(x, 500)
    with pytest.raises(ValueError, match="unconditional: leave class_labels out"):
        from_edm(weights(), "edm")(x, 500, labels)


def test_labels_of_augmentations_are_left_out() -> None:
    augmented = {**weights(), "map_augment.weight": np.zeros((32, 9), np.float32)}
    found, expected = (from_edm(each, "edm").state_dict() for each in (augmented, weights()))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


# Mistakes


def test_a_missing_weight_is_named_as_the_format_names_it() -> None:
    for variable in [name for name in weights() if "resample_filter" not in name][::3]:
        rest = {name: array for name, array in weights().items() if name != variable}
        with pytest.raises(ValueError, match=rf"^{re.escape(variable)}( \(q\))? is missing"):
            from_edm(rest, "edm")


def test_a_misshapen_weight_is_named() -> None:
    telling = re.compile(r"_block0\.conv1\.bias|_conv\.weight|map_layer0\.weight|_aux_conv")
    for variable, array in list(weights().items())[::3]:
        if variable.endswith("resample_filter"):
            continue
        spoilt = {**weights(), variable: np.concatenate([array, array])}
        named = r"\S+" if telling.search(variable) else re.escape(variable)
        with pytest.raises(ValueError, match=rf"^{named}( \(q\))? has the shape "):
            from_edm(spoilt, "edm")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"map_noise.freqs": np.zeros(16)}, r"EDM's NCSN\+\+ \(embedding_type fourier\)"),
        ({"enc.8x8_aux_residual.weight": np.zeros((3, 3, 3, 3))}, r"EDM's NCSN\+\+"),
        ({"enc.8x8_down.conv0.resample_filter": np.zeros((1, 1, 4, 4))}, "more than two taps"),
        ({"out_conv.weight": np.zeros((3, 32, 3, 3))}, r"EDM's ADM \(DhariwalUNet\)"),
        ({"enc.8x8_block1.norm0.weight": np.zeros(64)}, r"^enc\.8x8_block1\.norm0\.weight has no"),
        ({"enc.2x2_down.norm0.weight": np.zeros(64)}, "each must be half of the one before"),
    ],
)
def test_other_networks_of_edm_are_refused_by_what_they_are(more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_edm({**weights(), **more}, "edm")


def test_another_format_or_preconditioning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^enc\.\*_conv\.\* is missing: this is another format"):
        from_edm(Fixture("pesser_unet").weights(), "edm")
    unknown: Any = "ve"
    with pytest.raises(ValueError, match="preconditioning='ve' is unknown; known are edm, vp"):
        from_edm(weights(), unknown)
