"""Wrong values in every setting of the sampling programs: one line each, no traceback."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_sa import Pipeline, UNet
from ddpm_sa.__main__ import PROGRAMS
from ddpm_sa.cli import run_program
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.settings.words import flag_types
from tests.settings.test_ranges import settings_of

NETWORK = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
WRONG = ["", "no such thing", "-3", "7.5", "99999999999999999999", ".nan", "[a, 1]", "{a: b}"]
WRONG += ["[[", "/dev/null", "0:99999999999999999999999", "x" * 300]
FEATURES = "tests.support.features:eight"
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
SHORT = ["--model", "model", "--output_dir", "out", "--steps", "1"]
# A line of each program that works, and takes a moment.
LINES = {
    "sample": [*SHORT, "--num_images", "1"],
    "edit": [*SHORT, "--edit", "sdedit", "--image", "a.png"],
    "restore": [*SHORT, "--task", "deblur", "--image", "a.png", "--num_images", "1"],
    "evaluate": [*SHORT, "--num_images", "6", "--data", "pictures", "--features", FEATURES],
    "attention": SHORT,
    "ablation": [*SHORT, "--num_images", "2"],
    "app": ["--model", "model"],
    "convert": ["--source", WEIGHTS, "--output_dir", "out"],
    "export": ["--model", "model", "--output_dir", "out", "--format", "pt2"],
    "paper": [*SHORT, "--experiments", "figure6"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    torch.manual_seed(0)
    images = ImageFormat(channels=3, size=(8, 8), labels=("cat", "dog", "7"))
    unet = UNet(**NETWORK, num_class_embeds=3)
    Pipeline(unet, DDPMScheduler(), images).save_pretrained(folder / "model")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
        Image.fromarray(pixels).save(folder / "a.png")
    return folder


# Any text is a name of these, and works.
FREE = {("evaluate", "split"), *((name, "output_dir") for name in LINES)}
FLAGS = [
    pytest.param(name, flag, marks=[] if name in ("sample", "app") else pytest.mark.slow)
    for name in LINES
    for flag, _ in flag_types(settings_of(name))
    if (name, flag) not in FREE
]


@pytest.fixture
def run(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., tuple[int, str]]:
    """Run a program with its line and more words: (exit code, standard error)."""
    monkeypatch.chdir(place)

    def run(program: str, *more: str) -> tuple[int, str]:
        module = importlib.import_module(PROGRAMS[program][0])
        if program == "app":
            monkeypatch.setattr(module, "_import_layout", _no_page)
        out = str(tmp_path / str(len(list(tmp_path.iterdir()))))
        words = [out if word == "out" else word for word in LINES[program]]
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *words, *more])
        with pytest.raises(SystemExit) as end:
            run_program(module.main)
        assert isinstance(end.value.code, int)
        return end.value.code, capsys.readouterr().err

    return run


def assert_one_line(error: str) -> None:
    (line,) = [text for text in error.splitlines() if text.startswith("error: ")]
    assert len(line) < 2000
    assert "Traceback" not in error


@pytest.mark.parametrize(("program", "flag"), FLAGS)
def test_a_wrong_value_is_a_line_or_works_and_is_never_a_traceback(
    program: str, flag: str, run: Callable[..., tuple[int, str]]
) -> None:
    for value in WRONG:
        code, error = run(program, f"--{flag}={value}")
        assert code in (0, 2), f"--{flag}={value[:20]!r}: {error[-2000:]}"
        if code == 2:
            assert_one_line(error)


@pytest.mark.parametrize("program", ["sample", "edit", "restore", "convert", "export", "paper"])
@pytest.mark.parametrize("folder", ["/dev/null/x", "a.png", "x" * 300], ids=len)
def test_a_folder_that_cannot_be_written_is_a_line(
    program: str, folder: str, run: Callable[..., tuple[int, str]]
) -> None:
    code, error = run(program, "--output_dir", folder)
    assert code == 2
    assert_one_line(error)


def _no_page() -> None:
    raise UserError("everything is well, and a page would be served")
