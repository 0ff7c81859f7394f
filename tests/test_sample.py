import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_sa import Pipeline, UNet
from ddpm_sa.cli import run_program
from ddpm_sa.images import ImageFormat
from sampling.sample import main

ROOT = Path(__file__).parents[1]
SMALL = {
    "sample_size": 8,
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of untrained networks: grey, coloured with classes, and of two channels."""
    folder = tmp_path_factory.mktemp("models")
    for name, channels, classes in [("grey", 1, None), ("classes", 3, 4), ("two", 2, None)]:
        torch.manual_seed(0)
        config = {"in_channels": channels, "out_channels": channels, "num_class_embeds": classes}
        scheduler = DDPMScheduler(prediction_type="v_prediction")
        Pipeline(UNet(**SMALL | config), scheduler).save_pretrained(folder / name)
    return folder


@pytest.fixture
def sample(monkeypatch, capsys):
    """Run the program in this process: words -> (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            run_program(main)
        return end.value.code, *capsys.readouterr()

    return run


def pixels(folder, names=None):
    files = sorted(folder.glob("[0-9]*.png")) if names is None else [folder / n for n in names]
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in files}


def assert_nearly_equal(images, others):
    assert images.keys() == others.keys()
    for name in images:
        # equal to 1e-4 before rounding: to 1 of 255 after
        assert abs(images[name] - others[name]).max() <= 1


def test_program_writes_images_a_grid_and_how_to_make_them(models, tmp_path):
    program = [sys.executable, ROOT / "sampling" / "sample.py", "--model", models / "grey"]
    more = ["--num_images", "5", "--steps", "3", "--batch_size", "2", "--output_dir", "out"]
    done = subprocess.run(program + more, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out"
    names = [f"{index:06d}.png" for index in range(5)]
    assert sorted(path.name for path in out.iterdir()) == [*names, "grid.png", "samples.json"]
    assert "sampling: 100%" in done.stderr
    images = pixels(out)
    grid = np.asarray(Image.open(out / "grid.png"))
    assert grid.shape == (16, 24)
    np.testing.assert_array_equal(grid[8:, 8:16], images["000004.png"])
    assert not grid[8:, 16:].any()

    record = json.loads((out / "samples.json").read_text())
    again = Pipeline.from_pretrained(record["environment"]["model"])
    settings = {name: record["settings"][name] for name in ("scheduler", "steps", "seed")}
    indices = [image["index"] for image in record["images"].values()]
    pictures = again(indices=indices, **settings).images
    assert_nearly_equal(
        images, {n: np.asarray(p).astype(int) for n, p in zip(names, pictures, strict=True)}
    )


def test_indices_make_exactly_those(models, sample, tmp_path):
    arguments = ["--model", models / "grey", "--steps", 3, "--scheduler", "ddpm"]
    assert sample(*arguments, "--num_images", 6, "--output_dir", tmp_path / "all")[0] == 0
    assert sample(*arguments, "--indices", "3:5", "--output_dir", tmp_path / "some")[0] == 0
    some = pixels(tmp_path / "some")
    assert list(some) == ["000003.png", "000004.png"]
    assert_nearly_equal(some, pixels(tmp_path / "all", some))


def test_an_interrupted_run_goes_on_and_more_can_be_added(models, sample, tmp_path):
    arguments = ["--model", models / "classes", "--steps", 2, "--output_dir", tmp_path]
    assert sample(*arguments, "--num_images", 5)[0] == 0
    whole = pixels(tmp_path)
    (tmp_path / "000001.png").unlink()
    (tmp_path / "000004.png").unlink()
    kept = (tmp_path / "000002.png").stat().st_mtime_ns
    code, said, _ = sample(*arguments, "--num_images", 5)
    assert code == 0
    assert said.startswith("2 images made, 3 were there")
    assert_nearly_equal(pixels(tmp_path), whole)
    assert (tmp_path / "000002.png").stat().st_mtime_ns == kept
    assert sample(*arguments, "--indices", "4:7")[1].startswith("2 images made, 1 were there")
    record = json.loads((tmp_path / "samples.json").read_text())
    classes = [image["class_label"] for image in record["images"].values()]
    assert classes == [index % 4 for index in range(7)]


@pytest.mark.parametrize(
    "change",
    [
        ["--steps", 4],
        ["--seed", 1],
        ["--scheduler", "unipc"],
        ["--dtype", "bfloat16"],
        ["--class_labels", 1],
    ],
)
def test_a_folder_of_other_images_is_left_alone(change, models, sample, tmp_path):
    arguments = ["--model", models / "classes", "--steps", 3, "--num_images", 2]
    arguments += ["--output_dir", tmp_path]
    assert sample(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, error = sample(*arguments, *change)
    assert code == 2
    assert "another output_dir" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_classes_are_given_by_one_number_or_a_list(models, sample, tmp_path):
    arguments = ["--model", models / "classes", "--steps", 2, "--num_images", 3]
    for name, labels in [("ones", "1"), ("list", "[2,1,0]"), ("cycle", None)]:
        more = [] if labels is None else ["--class_labels", labels]
        assert sample(*arguments, "--output_dir", tmp_path / name, *more)[0] == 0
    ones, given, cycle = (pixels(tmp_path / name) for name in ("ones", "list", "cycle"))
    for others in (given, cycle):
        assert abs(ones["000001.png"] - others["000001.png"]).max() <= 1
    assert abs(given["000000.png"] - cycle["000000.png"]).max() > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schedulr", "ddim"], "--schedulr"),
        (["--scheduler", "none"], "known are ddpm, ddim, dpmsolver++"),
        (["--steps", 1001], "1000 timesteps of the training"),
        (["--steps", "many"], "steps"),
        (["--num_images", 0], "num_images=0 must be at least 1"),
        (["--indices", "5"], "'5' must be START:STOP"),
        (["--indices", "5:5"], "'5:5' must be START:STOP"),
        (["--indices", "0:2", "--num_images", 2], "give one"),
        (["--seed", -1], "seed=-1"),
        (["--batch_size", 0], "batch_size=0"),
        (["--class_labels", 0], "num_class_embeds"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int4"], "dtype"),
        (["--model", "."], "no model folder"),
        (["--model", "no/such/folder"], "no/such/folder is no folder here"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    words, message, models, sample, tmp_path, monkeypatch
):
    monkeypatch.chdir(models)
    code, said, error = sample("--model", "grey", "--output_dir", tmp_path / "out", *words)
    assert code == 2
    assert said == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_output_folder(models, sample, tmp_path):
    (tmp_path / "out").write_text("")
    code, _, error = sample("--model", models / "grey", "--output_dir", tmp_path / "out")
    assert (code, error.count("\n")) == (2, 1)
    assert "is a file" in error


def test_pictures_of_unknown_origin_are_left_alone(models, sample, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "holiday.png")
    code, _, error = sample("--model", models / "grey", "--output_dir", tmp_path)
    assert code == 2
    assert "holds images but no samples.json" in error
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


@pytest.mark.parametrize(
    ("image_format", "file"),
    [
        (ImageFormat(channels=1, size=(7, 5), bit_depth=16, value_range=(0, 4095)), "000000.png"),
        (ImageFormat(channels=2, size=(8, 8)), "000000.npy"),
        (ImageFormat(channels=1, size=(7, 5), bit_depth=32, value_range=(-5, 5)), "000000.npy"),
    ],
)
def test_files_hold_the_values_that_were_trained_on(image_format, file, sample, tmp_path):
    torch.manual_seed(0)
    channels = image_format.channels
    unet = UNet(**SMALL | {"in_channels": channels, "out_channels": channels})
    pipeline = Pipeline(unet, DDPMScheduler(prediction_type="v_prediction"), image_format)
    pipeline.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    words = ("--model", tmp_path / "model", "--output_dir", out, "--steps", 2)
    assert sample(*words, "--num_images", 3)[0] == 0
    path = out / file
    stored = np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
    (values,) = pipeline(num_images=1, steps=2, output_type="values").images
    assert stored.dtype == values.dtype == image_format.dtype
    assert stored.reshape(values.shape).shape == (*image_format.size, channels)
    # An image of a batch is that image to 1e-4 of the range, before rounding.
    low, high = image_format.value_range
    atol = 1e-4 * (high - low) + (image_format.bit_depth < 32)
    np.testing.assert_allclose(stored.reshape(values.shape).astype(float), values, atol=atol)
    with Image.open(out / "grid.png") as grid:
        assert grid.mode == "L"
    # What is there is left alone.
    before = path.stat().st_mtime_ns
    assert "1 images made, 3 were there" in sample(*words, "--num_images", 4)[1]
    assert path.stat().st_mtime_ns == before
