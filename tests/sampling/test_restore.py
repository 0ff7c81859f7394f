import json
from functools import partial

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from ddpm_sa import Pipeline, UNet
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.restoration import LinearOperator
from sampling.restore import main
from tests.support.reference import SMALL, randomise_

TASKS = {
    "superres": ["--factor", 2, "--downsampling", "bicubic"],
    "inpaint": ["--mask", "mask.png"],
    "deblur": ["--blur", 0.7],
    "colorize": [],
    "mri": ["--acceleration", 2],
    "custom": ["--operator", "tests.sampling.test_restore:RowMean"],
}
METHODS = {
    "ddnm": [],
    "pigdm": ["--pigdm_step", "score"],
    "dps": ["--step_size", 0.5],
    "diffpir": ["--prior_weight", 2, "--zeta", 1],
    "repaint": ["--repeats", 2],
}
SHORT = ["--model", "model", "--steps", 4]


class RowMean(LinearOperator):
    def forward(self, x):
        return x.mean(3)


class Crooked(RowMean):
    def adjoint(self, y):
        return 2 * super().adjoint(y)


def no_operator(shape):
    return np.zeros(shape)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model that diffusers saved, two pictures, measurements, and masks."""
    folder = tmp_path_factory.mktemp("place")
    network = randomise_(UNet2DModel(**SMALL | {"sample_size": 8}))
    network.conv_out.weight.data *= 0.3
    base = DDPMScheduler(prediction_type="v_prediction")
    DDPMPipeline(network, base).save_pretrained(folder / "model")
    random = np.random.default_rng(0)

    def save(name, pixels):
        Image.fromarray(pixels).save(folder / name)

    for name in ("a.png", "b.png"):
        save(name, random.integers(0, 256, (8, 8, 3), np.uint8))
    save("small.png", random.integers(0, 256, (4, 4, 3), np.uint8))
    save("wide.png", random.integers(0, 256, (12, 20, 3), np.uint8))
    save("grey.png", random.integers(0, 256, (8, 8), np.uint8))
    mask = np.zeros((8, 8), np.uint8)
    save("nothing.png", mask)
    mask[:, :4] = 255
    save("mask.png", mask)
    save("everything.png", np.full((8, 8), 255, np.uint8))
    np.save(folder / "a.npy", np.asarray(Image.open(folder / "a.png")))
    np.save(folder / "k-space.npy", random.normal(size=(3, 8, 8)) * (1 + 1j))
    np.save(folder / "means.npy", random.normal(size=(3, 8)).astype(np.float32))
    np.save(folder / "other.npy", np.zeros((3, 5), np.float32))
    return folder


@pytest.fixture
def restore(place, monkeypatch, run_main):
    monkeypatch.chdir(place)
    return partial(run_main, main)


def pixels(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in folder.glob("[0-9]*.png")}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_writes_samples_their_moments_a_figure_and_what_repeats_it(
    task, restore, tmp_path
):
    words = [*SHORT, "--task", task, *TASKS[task], "--degrade", "true", "--image", "a.png", "b.png"]
    words += ["--num_images", 3, "--sigma", 0.1, "--method", "pigdm", "--batch_size", 4]
    code, said, error = restore(*words, "--output_dir", tmp_path / "out")
    assert code == 0, error
    assert "<A x, y> = " in said
    assert "a.png: residual " in said
    assert " psnr " in said
    made = pixels(tmp_path / "out")
    kinds = ("000", "001", "002", "mean")
    assert sorted(made) == [f"00000{i}-{kind}.png" for i in (0, 1) for kind in kinds]
    samples = np.stack([made[f"000000-00{j}.png"] for j in range(3)])
    assert abs(made["000000-mean.png"] - samples.mean(0)).max() < 128  # samples are clipped alone
    deviation = np.load(tmp_path / "out" / "000001-std.npy")
    assert deviation.shape == (8, 8, 3)
    assert 1 < deviation.mean() < 255
    with Image.open(tmp_path / "out" / "restoration.png") as figure:
        assert figure.width > figure.height > 300
    record = json.loads((tmp_path / "out" / "restore.json").read_text())
    assert record["adjoint"]["measured"] == pytest.approx(record["adjoint"]["adjoint"], rel=1e-4)
    assert record["summary"][0]["residual"] > 0
    (tmp_path / "again.json").write_text(json.dumps(record["settings"]))
    repeated = restore("--config", tmp_path / "again.json", "--output_dir", tmp_path / "again")
    assert repeated[0] == 0, repeated[2]
    again = pixels(tmp_path / "again")
    assert all((again[name] == made[name]).all() for name in made)
    # Its measurement, given as such, leads to the same samples.
    task_words = [*SHORT, "--task", task, *TASKS[task], "--num_images", 3, "--sigma", 0.1]
    files = [tmp_path / "out" / f"00000{i}-measurement.npy" for i in (0, 1)]
    code, said, error = restore(*task_words, "--image", *files, "--output_dir", tmp_path / "given")
    assert code == 0, error
    assert "psnr" not in said
    given = pixels(tmp_path / "given")
    assert all((given[name] == made[name]).all() for name in made)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_restores_and_its_settings_matter(method, restore, tmp_path):
    words = [*SHORT, "--task", "inpaint", "--mask", "mask.png", "--image", "a.png"]
    words += ["--method", method, "--num_images", 2]
    for name, more in (("plain", []), ("set", METHODS[method])):
        code, _, error = restore(*words, *more, "--output_dir", tmp_path / name)
        assert code == 0, error
    plain, changed = pixels(tmp_path / "plain"), pixels(tmp_path / "set")
    assert len(plain) == 3
    assert (plain["000000-000.png"] != plain["000000-001.png"]).any()
    if METHODS[method]:
        assert any((plain[name] != changed[name]).any() for name in plain)


@pytest.mark.parametrize("method", ["ddnm", "repaint"])
def test_known_pixels_are_kept_in_the_files(method, restore, place, tmp_path):
    words = [*SHORT, "--task", "inpaint", "--mask", "mask.png", "--image", "a.png"]
    code, _, error = restore(*words, "--method", method, "--output_dir", tmp_path)
    assert code == 0, error
    known = np.asarray(Image.open(place / "a.png")).astype(int)
    for made in pixels(tmp_path).values():
        assert (made[:, 4:] == known[:, 4:]).all()
        assert abs(made[:, :4] - known[:, :4]).max() > 10


@pytest.mark.parametrize(
    ("task", "file"),
    [("superres", "small.png"), ("deblur", "a.png"), ("deblur", "a.npy"), ("colorize", "grey.png")],
)
def test_pictures_are_taken_for_measurements(task, file, restore, place, tmp_path):
    words = [*SHORT, "--task", task, *TASKS[task], "--image", file, "--num_images", 1]
    code, _, error = restore(*words, "--output_dir", tmp_path)
    assert code == 0, error
    measured = np.load(tmp_path / "000000-measurement.npy")
    picture = file.replace("npy", "png")
    values = np.asarray(Image.open(place / picture)).reshape(*measured.shape[1:], -1)
    assert np.abs((measured.transpose(1, 2, 0) + 1) * 127.5 - values).max() < 1e-3
    assert not (tmp_path / "000000-std.npy").exists()


def test_k_space_is_read_with_frequency_0_in_the_centre(restore, place, tmp_path):
    words = [*SHORT, "--task", "mri", "--mask", "mask.png", "--image", "k-space.npy"]
    code, _, error = restore(*words, "--num_images", 1, "--output_dir", tmp_path)
    assert code == 0, error
    measured = np.load(tmp_path / "000000-measurement.npy")
    whole = np.load(place / "k-space.npy")
    # White, the left half of the picture, is missing: the right half has columns 0 ... 3.
    assert measured.shape == (3, 32, 2)
    known = np.fft.ifftshift(whole, axes=(1, 2))[:, :, :4].reshape(3, 32)
    assert np.abs(measured[..., 0] + 1j * measured[..., 1] - known).max() < 1e-5


def test_a_truth_beside_measurements_is_compared_with(restore, tmp_path):
    words = [*SHORT, "--task", "superres", "--factor", 2, "--image", "small.png"]
    code, said, error = restore(*words, "--truth", "a.png", "--output_dir", tmp_path)
    assert code == 0, error
    assert " psnr " in said
    assert "psnr" in json.loads((tmp_path / "restore.json").read_text())["summary"][0]


def test_clean_images_of_another_size_are_resized_as_in_training(restore, tmp_path):
    words = [*SHORT, "--task", "superres", "--image", "wide.png", "--degrade", "true"]
    code, _, error = restore(*words, "--output_dir", tmp_path / "out")
    assert code == 2
    assert "--fit crop resizes it" in error
    assert restore(*words, "--fit", "crop", "--output_dir", tmp_path / "out")[0] == 0


def test_classes_restore_by_class(restore, tmp_path):
    network = randomise_(UNet(**SMALL | {"sample_size": 8, "num_class_embeds": 2}))
    names = ImageFormat(channels=3, size=(8, 8), labels=("cat", "dog"))
    base = DDPMScheduler(prediction_type="v_prediction")
    Pipeline(network, base, names).save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--steps", 4, "--task", "deblur", "--image", "a.png"]
    made = []
    for label in ("cat", "dog"):
        code, _, error = restore(*words, "--class_label", label, "--output_dir", tmp_path / label)
        assert code == 0, error
        made.append(pixels(tmp_path / label)["000000-000.png"])
    assert (made[0] != made[1]).any()


SUPERRES = ["--task", "superres", "--image", "small.png", "--factor", 2]
DEBLUR = ["--task", "deblur", "--image", "a.png"]
INPAINT = ["--task", "inpaint", "--image", "a.png", "--mask", "mask.png"]
CUSTOM = ["--task", "custom", "--image", "means.npy", "--operator"]
HERE = "tests.sampling.test_restore"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "sharpen", "--image", "a.png"], "task"),
        (["--task", "deblur", "--image", "[]"], "image=[] must name at least one file"),
        (["--task", "inpaint", "--image", "a.png"], "task=inpaint needs a --mask"),
        (["--task", "custom", "--image", "a.png"], "task=custom needs an --operator"),
        ([*SUPERRES[:4], "--factor", 3], "factor=3 must be at least 2 and divide"),
        ([*SUPERRES[:2], "--image", "a.png", "--factor", 2], "measurements of this task have 3"),
        ([*SUPERRES[:2], "--image", "a.png", "--factor", 2], "with --degrade true a clean image"),
        ([*SUPERRES, "--blur", 2], "--blur has no effect: task=superres does not use it; deblur"),
        ([*DEBLUR, "--sigma", -0.1], "sigma=-0.1 must be at least 0"),
        ([*DEBLUR, "--class_label", 1], "this network is unconditional"),
        ([*DEBLUR, "--method", "repaint"], "method=repaint fills in hidden pixels"),
        ([*INPAINT, "--method", "repaint", "--sigma", 0.1], "with sigma=0.1 their noise too"),
        ([*DEBLUR, "--method", "dps", "--scheduler", "heun"], "method=dps changes single steps"),
        (
            [*DEBLUR, "--method", "ddnm", "--sigma", 0.1, "--scheduler", "ddim"],
            "use ddpm, or ddim with eta above 0",
        ),
        ([*DEBLUR, "--zeta", 1], "--zeta has no effect: method=pigdm does not use it; diffpir"),
        ([*DEBLUR, "--truth", "a.png", "b.png"], "2 truths for 1 images; give one for each"),
        ([*DEBLUR, "--truth", "a.png", "--degrade", "true"], "--truth has no effect"),
        ([*DEBLUR, "--fit", "crop"], "--fit has no effect"),
        ([*INPAINT[:4], "--mask", "everything.png"], "the mask hides all pixels"),
        ([*INPAINT[:4], "--mask", "small.png"], "another size than the model's images"),
        ([*INPAINT[:4], "--mask", "nothing.png", "--method", "repaint"], "must leave some pixels"),
        (["--task", "mri", "--image", "a.png"], "a.png is a picture, and must be a .npy file"),
        (["--task", "mri", "--image", "other.npy"], "float32 of shape (3, 5), and must be"),
        ([*CUSTOM, f"{HERE}:Crooked"], "the adjoint of Crooked is none: <A x, y> = "),
        ([*CUSTOM, f"{HERE}:no_operator"], "gives a ndarray; it must be, or give, a ddpm_sa"),
        ([*CUSTOM, f"{HERE}:SHORT"], "is a list, no LinearOperator"),
        ([*CUSTOM, f"{HERE}:Nothing"], "cannot be imported"),
        ([*CUSTOM, "RowMean"], "operator='RowMean' must be package.module:name"),
        (
            [*CUSTOM, f"{HERE}:RowMean", "--method", "ddnm", "--sigma", 0.1],
            "the singular values of RowMean are not known",
        ),
        (["--task", "custom", "--image", "other.npy", "--operator", f"{HERE}:RowMean"], "(3, 8)"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(words, message, restore, tmp_path):
    code, said, error = restore(*SHORT, *words, "--output_dir", tmp_path / "out")
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_colorize_needs_three_channels(restore, tmp_path):
    network = randomise_(UNet(**SMALL | {"sample_size": 8, "in_channels": 1, "out_channels": 1}))
    Pipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--task", "colorize", "--image", "grey.png"]
    code, _, error = restore(*words, "--output_dir", tmp_path / "out")
    assert code == 2
    assert "colorize takes images of 3 channels, and these have 1" in error


def test_a_second_restoration_replaces_the_first_and_keeps_files_of_the_user(restore, tmp_path):
    words = [*SHORT, *DEBLUR, "--output_dir", tmp_path / "out"]
    assert restore(*words, "--num_images", 3)[0] == 0
    mine = ("review.pdf", "000000-005.png")
    for name in mine:
        (tmp_path / "out" / name).write_text("years of work")
    code, _, error = restore(*words, "--num_images", 1)
    assert code == 0, error
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("000000-000.png", "000000-mean.png", "000000-measurement.npy"),
        *("restoration.png", "restore.json", *mine),
    }
    code, _, error = restore(*words, "--num_images", 6)
    assert code == 2
    assert "000000-005.png exists and was not written by the restoration in this folder" in error
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    code, _, error = restore(*words[:-1], tmp_path / "thesis")
    assert code == 2
    assert "is not empty and holds no restoration" in error
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
