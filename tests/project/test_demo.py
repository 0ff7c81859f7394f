"""`make demo`: its own recipe, with a shorter training, leaves what README says."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from benchmarks.judge import read, train_judge
from ddpm_sa.image_format import to_tensor
from sampling.common.sample_folder import GRID
from tests.support.runs import ROOT

STEPS, FIRST = 300, 75
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
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_demo_leaves_its_digits_and_an_attention_picture(demo):
    run, done = demo
    assert done.stdout.endswith(
        "The digits: runs/demo/digits/grid.png\n"
        "Where their pixels look: runs/demo/attention/attention.png\n"
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_classifier_of_real_digits_is_sure_of_most_of_the_grid(demo):
    run, _ = demo
    grid = np.asarray(Image.open(run / "digits" / GRID))
    digits = grid.reshape(8, 32, 8, 32).swapaxes(1, 2).reshape(-1, 32, 32, 1)
    judge, real, labels = train_judge(epochs=15)
    sure, _ = read(judge, to_tensor(digits)).max(1)
    real_sure, real_read_as = read(judge, real).max(1)
    assert (real_read_as == labels).double().mean() > 0.97
    assert (real_sure > 0.9).double().mean() > 0.95  # or it says nothing
    noise, _ = read(judge, to_tensor(np.random.default_rng(0).permuted(digits, axis=1))).max(1)
    print((sure > 0.9).double().mean(), (noise > 0.9).double().mean())
    assert (noise > 0.9).double().mean() < 0.5
    assert (sure > 0.9).double().mean() >= 0.6
