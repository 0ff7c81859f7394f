"""The scripts of examples/ do what they show."""

import ast
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm_sa
from ddpm_sa import NoiseSchedule
from examples.ddpm_from_scratch import load_digits, sample, save_grid
from tests.support.runs import ROOT, environment

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_examples_are_short_and_use_public_names_alone(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpm_sa"):
            assert node.module == "ddpm_sa"
            assert {name.name for name in node.names} <= set(ddpm_sa.__all__)
        if isinstance(node, ast.Import):
            assert not [name for name in node.names if name.name.startswith("ddpm_sa.")]


def test_sampler_of_the_example_finds_the_only_image_there_is():
    """If all data are one image c, the noise in x_t is known: (x_t - a c) / s."""
    schedule = NoiseSchedule.linear(50, 1e-3, 0.3)
    c = torch.linspace(-0.9, 0.9, 16).reshape(1, 1, 4, 4)

    def network(x_t, t):
        return SimpleNamespace(sample=(x_t - schedule.a[t] * c) / schedule.s[t])

    torch.manual_seed(0)
    made = sample(network, schedule, (3, 1, 4, 4))  # type: ignore[arg-type]
    torch.testing.assert_close(made, c.expand(3, 1, 4, 4).to(made.dtype), rtol=0, atol=1e-5)


def test_step_of_the_example_is_line_4_of_algorithm_2():
    """The mean of eq. 7 with the x_0 of eq. 15 is that of eq. 11, where nothing is clamped."""
    schedule, t = NoiseSchedule.linear(1000, 1e-4, 0.02), 300
    torch.manual_seed(0)
    x_t, eps = torch.randn(2, 8, dtype=torch.float64).unbind()
    x_0 = (x_t - schedule.s[t] * eps) / schedule.a[t]
    mean = schedule.posterior_mean_coef1[t] * x_0 + schedule.posterior_mean_coef2[t] * x_t
    beta = schedule.betas[t]
    expected = (x_t - beta / schedule.s[t] * eps) / (1 - beta).sqrt()
    torch.testing.assert_close(mean, expected)


def test_grid_of_the_example_is_row_by_row(tmp_path):
    images = torch.linspace(-1, 1, 4).reshape(4, 1, 1, 1).expand(4, 1, 2, 3)
    save_grid(images, str(tmp_path / "grid.png"))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (4, 6)
    assert grid[::2, ::3].tolist() == [[0, 85], [170, 255]]


@pytest.mark.slow
def test_example_makes_digits(tmp_path):
    """Strokes on black, with the mean, the spread and the share of ink that real digits have."""
    output = tmp_path / "digits.png"
    script = str(ROOT / "examples" / "ddpm_from_scratch.py")
    done = subprocess.run(
        [sys.executable, script, "--steps", "800", "--output", str(output)],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The loss of a network that predicts no noise at all is 1.
    loss = float(done.stdout.partition("tenth of the steps: ")[2].split()[0])
    assert loss < 0.05
    made = np.asarray(Image.open(output)) / 127.5 - 1
    assert made.shape == (5 * 28, 5 * 28)
    digits = made.reshape(5, 28, 5, 28).swapaxes(1, 2).reshape(25, 28, 28)
    real = load_digits().numpy()[:, 0]
    assert abs(digits.mean() - real.mean()) < 0.1
    assert abs(digits.std() - real.std()) < 0.1
    # Real digits leave the first and the last row black.
    assert digits[:, [0, -1]].mean() < -0.9
    least, most = np.quantile((real > 0).mean((1, 2)), (0.01, 0.99))
    ink = (digits > 0).mean((1, 2))
    assert ((least <= ink) & (ink <= most)).sum() >= 20
