"""sampling/ablation.py"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from scipy.stats import energy_distance as energy_distance_of_numbers

from ddpm_sa import Pipeline, UNet, ablate_attention
from sampling.ablation import chance_distance, energy_distance, main
from tests.support.reference import SMALL, randomise_


@pytest.fixture
def ablation(run_main):
    """Run the program: words -> (exit code, stdout, stderr)."""
    return partial(run_main, main)


def model(folder):
    config = {"sample_size": (8, 12), "in_channels": 1, "out_channels": 1}
    unet = randomise_(UNet(**SMALL | config))
    for parameter in unet.mid_block.attentions[0].to_out.parameters():
        torch.nn.init.zeros_(parameter)
    Pipeline(unet, DDPMScheduler()).save_pretrained(folder)


def test_rows_are_the_replacements_and_a_layer_that_says_nothing_changes_nothing(
    ablation, tmp_path
):
    model(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--output_dir", tmp_path / "out"]
    code, said, error = ablation(*words, "--num_images", 3, "--steps", 2)
    assert code == 0, error
    assert said.startswith("15 replacements: ")
    names = ["ablation.json", "ablation.md", "ablation.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    rows = json.loads((tmp_path / "out/ablation.json").read_text())["rows"]
    assert [row["replacement"] for row in rows] == ["none", *["identity", "uniform", "local"] * 5]
    for row in rows:
        silent = row["layers"] in ([], ["mid_block.attentions.0"])
        assert (row["difference"] == 0) == silent
        assert (row["distance"] == rows[0]["distance"]) == silent
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    settings = {"num_images": 3, "steps": 2, "output_type": "np"}
    plain = np.asarray(pipeline(**settings).images)
    with ablate_attention(pipeline.unet, "uniform"):
        other = np.asarray(pipeline(**settings).images)
    assert rows[-2]["layers"] != []
    by_hand = np.sqrt(((plain - other) ** 2).mean((1, 2, 3))).mean()
    assert rows[-2]["difference"] == pytest.approx(by_hand, rel=1e-5)
    table = (tmp_path / "out/ablation.md").read_text()
    assert f"| all layers | uniform | {by_hand:.1%} |" in table
    with Image.open(tmp_path / "out/ablation.png") as drawn:
        assert min(drawn.size) > 300


def test_energy_distance_is_scipys_on_images_of_one_pixel():
    """scipy's is the root, of the biased estimate: what an image has to itself counts."""
    random = torch.Generator().manual_seed(0)
    one = torch.rand(30, 1, 1, 1, generator=random) * 2 - 1
    other = torch.rand(40, 1, 1, 1, generator=random) ** 2

    def spread(images):  # of the biased estimate over the unbiased one
        x = images.flatten().double()
        return (x[:, None] - x).abs().mean().item() / (len(x) - 1) / 2

    theirs = energy_distance_of_numbers(one.flatten(), other.flatten()) ** 2 / 2
    expected = theirs - spread(one) - spread(other)
    assert energy_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_sets_of_one_distribution_are_apart_by_chance_and_others_by_more():
    random = torch.Generator().manual_seed(0)
    images = torch.randn(80, 1, 4, 4, generator=random) / 3
    by_chance = chance_distance(images)
    assert abs(energy_distance(images[:40], images[40:])) < 2 * by_chance
    assert energy_distance(images[:40], images[40:] + 0.5) > 5 * by_chance


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_images", 1], "num_images=1 must be at least 2"),
        (["--seed", -1], "seed=-1 must be at least 0"),
        (["--steps", 0], "steps=0"),
        (["--batch_size", 0], "batch_size=0"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(words, message, ablation, tmp_path):
    model(tmp_path / "model")
    code, said, error = ablation(
        "--model", tmp_path / "model", "--output_dir", tmp_path / "out", *words
    )
    assert (code, said) == (2, "")
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()
