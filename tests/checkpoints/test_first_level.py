"""The paper's network where ch_mult does not begin with 1: the first level is wider than ch."""

import pytest
import torch

from ddpm_sa.checkpoints import from_ddpm_tf, from_pesser
from ddpm_sa.checkpoints.ddpm_tf import _spell
from ddpm_sa.models.unet import UNet
from tests.support.paper_network import Model
from tests.support.reference import Fixture, error_of_each_image


def test_the_network_of_these_tests_is_the_recorded_one() -> None:
    original, written = Fixture("pesser_unet"), Model()
    weights = {key: torch.from_numpy(array) for key, array in original.weights().items()}
    assert {key: tuple(w.shape) for key, w in weights.items()} == dict(written.shapes())
    out = written(weights, original["in/x"], original["in/t"])
    assert (error_of_each_image(out, original["out/y"]) < 1e-4).all()


@pytest.mark.parametrize("ch_mult", [(2, 1), (2, 2), (2, 4, 1), (3,)])
@pytest.mark.parametrize("spelling", ["pesser", "ddpm_tf"])
def test_a_first_level_of_several_times_ch_gives_the_originals_output(ch_mult, spelling) -> None:
    written = Model(ch_mult=ch_mult, attended=(0,), num_res_blocks=2)
    weights = written.weights()
    if spelling == "pesser":
        unet = from_pesser(weights, 16)
    else:
        spelt = {}
        for name, weight in weights.items():
            one_by_one = weight.ndim == 4 and weight.shape[2:] == (1, 1)
            theirs = weight.flatten(1) if one_by_one else weight
            axes = (2, 3, 1, 0) if theirs.ndim == 4 else tuple(range(theirs.ndim))[::-1]
            spelt[_spell(name, "")] = theirs.permute(axes)
        unet = from_ddpm_tf(spelt, 16)
    x, t = (
        torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
        torch.tensor([3, 741]),
    )
    with torch.no_grad():
        found, expected = unet(x, t).sample, written(weights, x, t)
    assert (error_of_each_image(found, expected) < 1e-4).all()
    reason = UNet.not_in_diffusers(unet.config)
    assert reason is not None
    assert reason.startswith("UNet2DModel has no conv_in_channels")


def test_a_first_level_of_ch_stays_as_diffusers_has_it() -> None:
    unet = from_pesser(Model().weights(), 16)
    assert unet.config["conv_in_channels"] is None
    assert unet.config["time_embedding_dim"] is None
    assert UNet.not_in_diffusers(unet.config) is None
