"""Images of any size train and sample with the commands of the README."""

import numpy as np
import pytest
from PIL import Image

from ddpm_sa.models.unet import UNet
from sampling.sample import main as sample
from tests.support.pages import README, commands_of, split_command
from tests.support.runs import run_here

SIZES = ["8", "13x19", "28", "45x61", "48"]
LARGE = ["8x512", "512x9", "24", "33", "57x300", "96", "100", "224", "257", "512"]
# A narrow network and few updates, which the README's command does not ask for.
SHORT = {
    "model.width": "4",
    "steps": "2",
    "batch_size": "2",
    "num_samples": "2",
    "sample_steps": "2",
    "tracker": "none",
    "mixed_precision": "no",
}


def readme_command(program: str) -> dict[str, str]:
    """The flags of the README's command for a program."""
    (words,) = [
        words
        for name, words in map(split_command, commands_of(README))
        if name == program and ("folder.yaml" in " ".join(words) or "sample" in program)
    ]
    return {
        flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)
    }


def words_of(flags: dict[str, str]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Noise of several sizes, larger and smaller than what is trained."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, (height, width) in enumerate([(70, 90), (30, 20), (64, 64), (9, 40)]):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "size", [*SIZES, *(pytest.param(size, marks=pytest.mark.slow) for size in LARGE)]
)
def test_images_of_a_size_train_and_sample_as_in_the_readme(
    size, photographs, tmp_path, capsys, run_main
):
    run, out = tmp_path / "run", tmp_path / "out"
    flags = readme_command("training/train.py") | SHORT
    flags |= {"data.source": str(photographs), "data.size": size, "output_dir": str(run)}
    run_here(words_of(flags))
    report = capsys.readouterr().out
    assert "from the size of the images (model.preset=auto)" in report
    flags = readme_command("sampling/sample.py") | {"num_images": "2", "steps": "2"}
    flags |= {"model": str(run / "model"), "output_dir": str(out)}
    code, _, stderr = run_main(sample, *words_of(flags))
    assert code == 0, stderr
    height, _, width = size.partition("x")
    with Image.open(out / "000000.png") as image:
        assert image.size == (int(width or height), int(height))
    # The folder holds the network's arguments, not the rule.
    config = UNet.load_config(run / "model", subfolder="unet")
    assert len(config["down_block_types"]) == len(config["block_out_channels"])
    assert "AttnDownBlock2D" in config["down_block_types"]
