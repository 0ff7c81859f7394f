"""`make demo`: its own recipe, with a shorter training, leaves what README says."""

import json
import os
import re
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.judge import moments, read, train_judge
from ddpm_sa.image_format import to_tensor
from ddpm_sa.metrics.distances import frechet_distance
from sampling.common.sample_folder import GRID
from tests.support.pages import DOCS, README
from tests.support.runs import ROOT

STEPS, FIRST = 300, 75
TEXT = README.read_text(encoding="utf-8")
SHORTER = (
    f"--steps {STEPS} --save_every {FIRST} --keep_every {FIRST} --sample_every 0 "
    f"--optim.decay_steps {STEPS} --time_limit null"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a demo, and what it printed; the user's own runs/demo is left alone."""
    home = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".venv"):
        (home / name).symlink_to(ROOT / name)
    for name in ("ddpm_sa", "training", "sampling"):
        (home / name).symlink_to(ROOT / name, target_is_directory=True)
    # This environment as it is, however old its stamp.
    command = ["make", "--old-file=.venv/installed", "demo", f"DEMO_TRAIN={SHORTER}"]
    # Not what a `make test-slow` around this tells its own programs.
    here = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=home, env=here, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "runs" / "demo", done


@pytest.mark.slow
def test_demo_leaves_its_digits_and_an_attention_picture(demo):
    run, done = demo
    assert done.stdout.endswith(
        "The digits: runs/demo/digits/grid.png\n"
        "The attention maps: runs/demo/attention/attention.png\n"
    )
    assert len(list((run / "digits").glob("0*.png"))) == 64
    with Image.open(run / "digits" / GRID) as grid:
        assert grid.size == (8 * 32, 8 * 32)
    first = f"runs/demo/checkpoints/step-{FIRST:08d}"
    guidance = json.loads((run / "digits" / "samples.json").read_text())["settings"]["guidance"]
    assert (guidance["kind"], guidance["scale"], guidance["model"]) == ("auto", 2.0, first)
    for name in ("attention.png", "measures.png"):
        with Image.open(run / "attention" / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    # The digit whose attention is drawn is the first of the grid.
    with np.load(run / "attention" / "attention.npz") as numbers:
        image = np.round((numbers["image"][0] / 2 + 0.5) * 255)
    digit = np.asarray(Image.open(run / "digits" / "000000.png")).astype(float)
    assert abs(image - digit).max() <= 2  # a batch of one is summed in another order


@pytest.fixture(scope="module")
def judge():
    """A classifier of real digits, and digits that it has not seen."""
    judge, unseen, labels = train_judge(epochs=15)
    sure, read_as = read(judge, unseen).max(1)
    assert (read_as == labels).double().mean() > 0.97
    assert (sure > 0.9).double().mean() > 0.95  # or it says nothing
    return judge, unseen


def digits_of(picture):
    """The 64 digits of a grid, (64, 1, 32, 32), in [-1, 1]."""
    grid = np.asarray(Image.open(picture))
    return to_tensor(grid.reshape(8, 32, 8, 32).swapaxes(1, 2).reshape(-1, 32, 32, 1))


@pytest.mark.slow
def test_digits_of_the_demo_are_near_to_real_ones(demo, judge):
    """By the Fréchet distance of features; the share read with certainty says less: the classifier
    is sure of half of the digits whose pixels are shuffled."""
    classifier, unseen = judge
    digits = digits_of(demo[0] / "digits" / GRID)

    def distance(images):
        return frechet_distance(moments(classifier, images), moments(classifier, unseen))

    # Seen: 0.4 for 64 real digits, 0.6 for the whole demo, 1.0 for this shorter one.
    assert distance(unseen[:64]) < 0.6
    assert distance(digits) < 1.6
    # What is none of the digits is farther away: mirrored along the diagonal, or with some noise.
    assert distance(digits.mT) > 1.8
    noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    assert distance((digits + 0.5 * noise).clamp(-1, 1)) > 10


@pytest.mark.slow
def test_readme_says_how_many_digits_of_its_picture_a_classifier_recognises(judge):
    sure, _ = read(judge[0], digits_of(DOCS / "digits.png")).max(1)
    said = re.search(r"recognises ([\d.]+) % of them with a probability above 0.9", TEXT)
    assert said is not None
    assert abs((sure > 0.9).double().mean().item() - float(said[1]) / 100) < 0.05
