import json
from functools import partial

import numpy as np
import pytest
import tifffile
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image, ImageOps

from ddpm_sa import Pipeline, UNet
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat
from sampling.common.image_files import read_images
from sampling.edit import main
from tests.support.reference import SMALL, randomise_

EDITS = {
    "sdedit": ["--image", "[a.png]", "--strength", 0.5],
    "interpolate": ["--image", "[a.png,b.png]", "--level", 400, "--count", 3],
    "inpaint": ["--image", "[a.png]", "--mask", "mask.png", "--repeats", 2, "--scheduler", "ddpm"],
    "variations": ["--index", 4, "--level", 400, "--count", 3, "--scheduler", "ddpm"],
    "progressive": ["--count", 3],
    "reconstruct": ["--image", "[a.png,b.png]"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model that diffusers saved, two pictures and a mask."""
    folder = tmp_path_factory.mktemp("place")
    network = randomise_(UNet2DModel(**SMALL | {"sample_size": 8}))
    network.conv_out.weight.data *= 0.3
    base = DDPMScheduler(prediction_type="v_prediction")
    DDPMPipeline(network, base).save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask).save(folder / "grey.png")
    Image.fromarray(mask[:4]).save(folder / "small.png")
    wide = random.integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(wide).save(folder / "wide.png")
    bright = np.zeros((12, 20), np.uint8)
    bright[:, 4:10] = 255  # the left half of what the crop leaves
    Image.fromarray(bright).save(folder / "bright.png")
    return folder


@pytest.fixture
def edit(place, monkeypatch, run_main):
    monkeypatch.chdir(place)
    return partial(run_main, main)


def pixels(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in folder.glob("[0-9]*.png")}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_writes_its_images_a_grid_and_what_repeats_it(name, edit, tmp_path):
    words = ["--model", "model", "--edit", name, *EDITS[name], "--steps", 6, "--output_dir"]
    code, said, error = edit(*words, tmp_path / "out")
    assert code == 0, error
    made = pixels(tmp_path / "out")
    assert said.startswith(f"{len(made)} images made")
    assert len(made) == {"sdedit": 1, "inpaint": 1, "reconstruct": 2}.get(name, 3)
    given = {"sdedit": 1, "inpaint": 1, "reconstruct": 2, "interpolate": 2}.get(name, 0)
    side = int(np.ceil(np.sqrt(given + len(made))))
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width == 8 * side
    settings = json.loads((tmp_path / "out" / "edit.json").read_text())["settings"]
    (tmp_path / "again.json").write_text(json.dumps(settings))
    code, _, error = edit("--config", tmp_path / "again.json", "--output_dir", tmp_path / "again")
    assert code == 0, error
    again = pixels(tmp_path / "again")
    assert again.keys() == made.keys()
    assert all((again[file] == made[file]).all() for file in made)


def test_known_pixels_are_kept_in_the_file(edit, place, tmp_path):
    words = ["--model", "model", "--edit", "inpaint", *EDITS["inpaint"], "--steps", 4]
    assert edit(*words, "--output_dir", tmp_path)[0] == 0
    known = np.asarray(Image.open(place / "a.png")).astype(int)
    made = pixels(tmp_path)["000000.png"]
    assert (made[:, 4:] == known[:, 4:]).all()
    assert abs(made[:, :4] - known[:, :4]).max() > 10


def test_strength_0_gives_the_file_back(edit, place, tmp_path):
    words = ["--model", "model", "--edit", "sdedit", "--image", "[a.png]", "--strength", 0]
    assert edit(*words, "--output_dir", tmp_path)[0] == 0
    assert (pixels(tmp_path)["000000.png"] == np.asarray(Image.open(place / "a.png"))).all()


def test_photographs_of_another_size_are_resized_as_in_training(edit, place, tmp_path):
    words = ["--model", "model", "--image", "wide.png", "--fit", "crop", "--steps", 4]
    sdedit = ["--edit", "sdedit", "--strength", 0]
    assert edit(*words, *sdedit, "--output_dir", tmp_path / "out")[0] == 0
    with Image.open(place / "wide.png") as wide:
        cropped = np.asarray(ImageOps.fit(wide, (8, 8), Image.Resampling.BICUBIC)).astype(int)
    assert (pixels(tmp_path / "out")["000000.png"] == cropped).all()
    inpaint = ["--edit", "inpaint", "--mask", "bright.png", "--scheduler", "ddpm"]
    assert edit(*words, *inpaint, "--output_dir", tmp_path / "filled")[0] == 0
    filled = pixels(tmp_path / "filled")["000000.png"]
    assert (filled[:, 4:] == cropped[:, 4:]).all()
    assert abs(filled[:, :4] - cropped[:, :4]).max() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--edit", "paint"], "edit"),
        (["--edit", "sdedit"], "takes an image or more, not 0"),
        (["--edit", "interpolate", "--image", "[a.png]"], "takes two images, not 1"),
        (["--edit", "progressive", "--image", "[a.png]"], "takes no image, not 1"),
        (["--edit", "sdedit", "--image", "[c.png]"], "c.png cannot be read as a picture"),
        (["--edit", "sdedit", "--image", "[grey.png]"], "has 1 channels"),
        (["--edit", "sdedit", "--image", "[small.png]"], "4 x 8"),
        (["--edit", "sdedit", "--image", "[a.png]", "--strength", 2], "strength=2.0"),
        (["--edit", "inpaint", "--image", "[a.png]"], "mask"),
        (["--edit", "inpaint", "--image", "[a.png]", "--mask", "small.png"], "another size than"),
        (
            ["--edit", "inpaint", *EDITS["inpaint"], "--scheduler", "heun"],
            "'heun' cannot go back a step",
        ),
        (["--edit", "variations"], "draws no noise"),
        (["--edit", "variations", "--scheduler", "ddpm", "--level", 1000], "level=1000"),
        (["--edit", "progressive", "--guidance.kind", "cfg"], "unconditional"),
        (["--edit", "progressive", "--count", 0], "count=0"),
        (["--edit", "progressive", "--class_label", 1], "this network is unconditional"),
        (["--edit", "sdedit", "--image", "[wide.png]"], "8 x 8 of uint8; --fit crop resizes it"),
        (["--edit", "variations", "--fit", "crop"], "--fit has no effect"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(words, message, edit, tmp_path):
    words = ["--model", "model", *words, "--steps", 4, "--output_dir", tmp_path / "out"]
    code, said, error = edit(*words)
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_folders_of_other_things_are_left_alone(edit, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    words = ["--model", "model", "--edit", "progressive", "--steps", 2]
    code, _, error = edit(*words, "--output_dir", tmp_path)
    assert code == 2
    assert "is not empty and holds no edit" in error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_edit_replaces_the_first_and_keeps_files_of_the_user(edit, tmp_path):
    words = ["--model", "model", "--edit", "progressive", "--steps", 4, "--output_dir", tmp_path]
    assert edit(*words, "--count", 3)[0] == 0
    mine = ("2026-review.pdf", "7.png", "000009.png", "notes.txt")
    for name in mine:
        (tmp_path / name).write_text("years of work")
    code, _, error = edit(*words, "--count", 2)
    assert code == 0, error
    assert {path.name for path in tmp_path.iterdir()} == {
        *("000000.png", "000001.png", "grid.png", "edit.json"),
        *mine,
    }
    assert all((tmp_path / name).read_text() == "years of work" for name in mine)


def test_a_record_never_names_files_elsewhere(edit, tmp_path):
    words = ["--model", "model", "--edit", "progressive", "--steps", 4]
    (tmp_path / "mine.png").write_text("years of work")
    assert edit(*words, "--output_dir", tmp_path / "out")[0] == 0
    record = json.loads((tmp_path / "out" / "edit.json").read_text())
    record["images"] = ["../mine.png"]
    (tmp_path / "out" / "edit.json").write_text(json.dumps(record))
    code, _, error = edit(*words, "--output_dir", tmp_path / "out")
    assert code == 2
    assert "edit.json" in error
    assert (tmp_path / "mine.png").read_text() == "years of work"


def test_an_edit_never_overwrites_a_file_of_the_user(edit, tmp_path):
    words = ["--model", "model", "--edit", "progressive", "--steps", 4, "--output_dir", tmp_path]
    assert edit(*words, "--count", 2)[0] == 0
    (tmp_path / "000002.png").write_text("years of work")
    code, _, error = edit(*words, "--count", 3)
    assert code == 2
    assert "000002.png exists and was not written by the edit in this folder" in error
    assert (tmp_path / "000002.png").read_text() == "years of work"
    assert (tmp_path / "000001.png").exists()


def test_all_frames_of_an_interpolation_have_one_class(edit, tmp_path):
    network = randomise_(UNet(**SMALL | {"sample_size": 8, "num_class_embeds": 2}))
    names = ImageFormat(channels=3, size=(8, 8), labels=("cat", "dog"))
    Pipeline(network, DDPMScheduler(prediction_type="v_prediction"), names).save_pretrained(
        tmp_path / "model"
    )
    made = {}
    for label in ([], ["--class_label", "cat"], ["--class_label", "dog"]):
        words = ["--model", tmp_path / "model", "--edit", "interpolate", *EDITS["interpolate"]]
        out = tmp_path / "".join(["out", *label[1:]])
        code, _, error = edit(*words, "--steps", 4, *label, "--output_dir", out)
        assert code == 0, error
        made[out.name] = pixels(out)
    assert all((made["out"][name] == made["outcat"][name]).all() for name in made["out"])
    assert any((made["outdog"][name] != made["outcat"][name]).any() for name in made["out"])


def test_a_tiff_of_many_channels_is_read_as_in_training(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (5, 6, 7), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    kind = ImageFormat(channels=5, size=(6, 7), bit_depth=16, value_range=(0, 65535))
    read = read_images([str(tmp_path / "a.tif")], kind)
    assert np.allclose((read[0].numpy() + 1) / 2 * 65535, values, atol=0.01)
    (tmp_path / "b.tif").write_bytes(b"II*\0 broken")
    with pytest.raises(UserError, match=r"image=.*b\.tif cannot be read"):
        read_images([str(tmp_path / "b.tif")], kind)
