"""State dicts of EDM's preconditioners."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_sa import Pipeline
from sampling.convert import main
from tests.support.reference import Fixture, error_of_each_image


@pytest.fixture
def convert(run_main, tmp_path):
    """Convert what torch.save writes of a content: (code, stdout, stderr)."""

    def run(content: Any, *words: Any):
        torch.save(content, tmp_path / "edm.pt")
        return partial(run_main, main)(
            tmp_path / "edm.pt", *words, "--output_dir", tmp_path / "out"
        )

    return run


def weights(**more: Tensor) -> dict[str, Tensor]:
    """As `network.state_dict()` of an EDMPrecond or VPPrecond gives them."""
    found = Fixture("edm_songunet").weights()
    return {name: torch.from_numpy(array) for name, array in found.items()} | more


@pytest.mark.parametrize("preconditioning", ["edm", "vp"])
def test_a_folder_gives_the_originals_denoiser(preconditioning, convert, tmp_path):
    """D of x_t, t and the scheduler's own a and s, where a timestep has nearly their sigma."""
    code, said, error = convert(weights(), "--preconditioning", preconditioning)
    assert code == 0, error
    assert "only ddpm_sa can open it: diffusers has no SongUNet" in said
    pipeline, original = Pipeline.from_pretrained(tmp_path / "out"), Fixture("edm_songunet")
    sigma = original["in/sigma"].double()
    t = 999 * (sigma / 0.002).log() / math.log(80 / 0.002)
    a = (1 + sigma**2) ** -0.5
    a, s = (scale.float()[:, None, None, None] for scale in (a, a * sigma))
    x_t = a * original["in/x"]
    with torch.no_grad():
        out = pipeline.unet(x_t, t).sample
    found = pipeline.prediction.x_0(out, x_t, a, s)
    assert (error_of_each_image(found, original[f"out/{preconditioning}"]) < 1e-4).all()
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_images=2, steps=4, output_type="pt").images.isfinite().all()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The DDPM++ U-Net (Song et al. 2021), with the preconditioning of EDM" in card
    assert "diffusers alone cannot open it: diffusers has no SongUNet." in card
    assert f"preconditioning={preconditioning}" in card


@pytest.mark.parametrize(
    ("more", "words", "message"),
    [
        ({}, [], "preconditioning must be given: the weights do not say it"),
        ({}, ["--preconditioning", "ve"], "preconditioning"),
        ({}, ["--preconditioning", "edm", "--image_size", 32], "the names of the weights say 16"),
        ({}, ["--preconditioning", "edm", "--objective", "pred_v"], "objective does not apply"),
        (
            {"model.out_conv.weight": torch.zeros(3, 32, 3, 3)},
            ["--preconditioning", "edm"],
            "this is EDM's ADM (DhariwalUNet)",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(more, words, message, convert, tmp_path):
    code, said, error = convert(weights(**more), *words)
    assert (code, said) == (2, "")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
