import dataclasses
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from ddpm_sa import Pipeline, UNet
from ddpm_sa.image_format import ImageFormat
from sampling.common.model_loading import open_model
from sampling.common.sampler_settings import GuidanceSettings, SamplerSettings
from sampling.sample import main
from tests.support.runs import environment, same_bits, torchrun
from tests.support.workers import Workers

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method:DeprecationWarning"  # inductor's own
)

ROOT = Path(__file__).parents[2]
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
def sample(run_main):
    """Run the program: words -> (exit code, stdout, stderr)."""
    return partial(run_main, main)


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
    assert done.stderr.splitlines()[-1].startswith("sampling, step 9/9, took ")
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
    assert said.startswith("2 images made, 3 existed")
    assert_nearly_equal(pixels(tmp_path), whole)
    assert (tmp_path / "000002.png").stat().st_mtime_ns == kept
    assert sample(*arguments, "--indices", "4:7")[1].startswith("2 images made, 1 existed")
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


@pytest.fixture(scope="module")
def animals(models):
    """A model whose classes have names, one of them a number that is not its index."""
    pipeline = Pipeline.from_pretrained(models / "classes")
    names = ("cat", "3", "dog", "bird")
    pipeline.image_format = dataclasses.replace(pipeline.image_format, labels=names)
    pipeline.save_pretrained(models / "animals")
    return models / "animals"


def classes_of(folder):
    record = json.loads((folder / "samples.json").read_text())
    return [image["class_label"] for image in record["images"].values()]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["cat", "dog", "cat"], [0, 2, 0]),  # as many images as classes
        (["[cat, dog]"], [0, 2]),
        (["dog", "--num_images", 3], [2, 2, 2]),
        (["3", "--num_images", 2], [1, 1]),  # the class called 3, which is number 1
        (["2", "--num_images", 2], [2, 2]),  # no class is called 2
        (["bird", "0"], [3, 0]),
    ],
)
def test_classes_are_given_by_name(labels, expected, animals, sample, tmp_path):
    words = ["--model", animals, "--steps", 1, "--output_dir", tmp_path]
    code, _, error = sample(*words, "--class_labels", *labels)
    assert code == 0, error
    assert classes_of(tmp_path) == expected
    made = Pipeline.from_pretrained(animals)(
        num_images=len(expected), steps=1, class_labels=expected
    ).images
    for (name, image), picture in zip(pixels(tmp_path).items(), made, strict=True):
        assert abs(image - np.asarray(picture).astype(int)).max() <= 1, name


def test_names_in_a_file_and_in_python_are_those_of_the_command_line(animals, sample, tmp_path):
    (tmp_path / "settings.yaml").write_text("class_labels: [dog, 3, '3']\nsteps: 1\n")
    words = ["--model", animals, "--config", tmp_path / "settings.yaml"]
    assert sample(*words, "--output_dir", tmp_path / "out")[0] == 0
    assert classes_of(tmp_path / "out") == [2, 3, 1]  # a bare 3 in YAML is a number
    pipeline = Pipeline.from_pretrained(animals)
    given = pipeline.condition(range(3), ["dog", 3, "3"]).class_labels
    assert given.tolist() == [2, 3, 1]
    assert pipeline.condition(range(2), "bird").class_labels.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "animals", "--class_labels", "kat"], "cat, 3, dog, bird, or 0 ... 3"),
        (["--model", "animals", "--class_labels", "cat", "9"], "no class is called '9'"),
        (["--model", "animals", "--class_labels", "cat", "dog", "--num_images", 3], "2 class_lab"),
        (["--class_labels", "cat"], "this network is unconditional"),
        (["--model", "classes", "--class_labels", "cat"], "have no names; give a number, 0 ... 3"),
        (["--indices", "0:99999999999999999999"], "must be START:STOP"),
        (
            [
                "--scheduler_options.clip_sample",
                "false",
                "--scheduler_options.clip_sample_range",
                2,
            ],
            "clip_sample_range has no effect without clip_sample=True",
        ),
        (["--scheduler_options.sample_max_value", 2.0], "no effect without thresholding=True"),
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
        (["--class_labels", 0], "this network is unconditional"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int4"], "dtype"),
        (["--scheduler_options.etta", 1], "no option 'etta'; its options are"),
        (["--scheduler", "unipc", "--scheduler_options.solver_type", "bh1"], "not finite"),
        (["--guidance.kind", "cfg"], "unconditional"),
        (["--guidance.scale", 2], "--guidance.scale has no effect: guidance.kind=none"),
        (["--guidance.kind", "pag", "--guidance.interval", "all"], "FROM:TO"),
        (["--guidance.kind", "cgf"], "guidance"),
        (["--cache_interval", 0], "cache_interval=0 must be at least 1"),
        (["--cache_interval", 2, "--compile", "true"], "a network that is not compiled"),
        (["--guidance.kind", "pag", "--compile", "true"], "the network is compiled"),
        (["--weights", "raw"], "keep_raw"),
        (["--model", "."], "not a model folder"),
        (["--model", "no/such/folder"], "no/such/folder is not a local folder"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    words, message, models, animals, sample, tmp_path, monkeypatch
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
    assert "1 images made, 3 existed" in sample(*words, "--num_images", 4)[1]
    assert path.stat().st_mtime_ns == before


def test_options_guidance_and_reuse_are_flags_and_recorded(models, sample, tmp_path):
    arguments = ["--model", models / "classes", "--steps", 4, "--num_images", 2]
    ways = {
        "plain": [],
        "eta": ["--scheduler_options.eta", 0.5],
        "pag": ["--guidance.kind", "pag", "--guidance.scale", 2],
        "cfg": ["--guidance.kind", "cfg", "--guidance.null_class", 3],
        "auto": ["--guidance.kind", "auto", "--guidance.model", models / "classes"],
        "reuse": ["--cache_interval", 2],
    }
    made = {}
    for name, words in ways.items():
        code, _, error = sample(*arguments, *words, "--output_dir", tmp_path / name)
        assert code == 0, error
        made[name] = pixels(tmp_path / name)["000001.png"]
        record = json.loads((tmp_path / name / "samples.json").read_text())["settings"]
        for flag, value in zip(words[::2], words[1::2], strict=True):
            kept = record
            for part in flag[2:].split("."):
                kept = kept[part]
            assert kept in (value, str(value))
    # A weaker network that is the same one is no guidance.
    assert abs(made["auto"] - made["plain"]).max() <= 1
    others = [made[name] for name in ("eta", "pag", "cfg", "reuse")]
    assert all(abs(other - made["plain"]).max() > 1 for other in others)
    code, _, error = sample(*arguments, "--output_dir", tmp_path / "pag")
    assert code == 2
    assert "guidance" in error


def test_a_record_makes_its_images_again(models, sample, tmp_path):
    words = ["--scheduler", "ddim", "--scheduler_options.eta", 0.5, "--cache_interval", 2]
    words += ["--guidance.kind", "seg", "--guidance.scale", 0.7, "--seed", 3, "--steps", 5]
    sample("--model", models / "classes", *words, "--indices", "2:5", "--output_dir", tmp_path)
    record = json.loads((tmp_path / "samples.json").read_text())
    settings, made = record["settings"], record["images"].values()
    pipeline = Pipeline.from_pretrained(record["environment"]["model"])
    guidance = settings["guidance"]
    again = pipeline(
        indices=[image["index"] for image in made],
        class_labels=[image["class_label"] for image in made],
        guide=pipeline.guidance(guidance["kind"], guidance["scale"]),
        **{n: settings[n] for n in ("seed", "steps", "scheduler", "scheduler_options")},
        cache_interval=settings["cache_interval"],
    ).images
    for (name, image), picture in zip(pixels(tmp_path).items(), again, strict=True):
        assert abs(image - np.asarray(picture).astype(int)).max() <= 1, name


def test_raw_weights_and_run_folders_are_found(models, sample, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(models / "grey", run / "model")
    (run / "config.yaml").write_text("steps: 1\n")
    arguments = ["--model", run, "--num_images", 1, "--steps", 2]
    assert sample(*arguments, "--output_dir", tmp_path / "ema")[0] == 0
    code, _, error = sample(*arguments, "--weights", "raw", "--output_dir", tmp_path / "raw")
    assert (code, error.count("\n")) == (2, 1)
    assert "keep_raw" in error
    raw = Pipeline.from_pretrained(models / "grey")
    raw.unet.conv_out.weight.data *= 2
    raw.save_pretrained(run / "model-raw")
    assert sample(*arguments, "--weights", "raw", "--output_dir", tmp_path / "raw")[0] == 0
    one, other = (pixels(tmp_path / name)["000000.png"] for name in ("ema", "raw"))
    assert abs(one - other).max() > 1


@pytest.mark.parametrize(("weights", "folder"), [("ema", "model"), ("raw", "model-raw")])
def test_a_checkpoint_is_a_model_with_the_weights_of_its_step(straight, weights, folder):
    first, last = (
        open_model(str(straight / "checkpoints" / f"step-{step:08d}"), weights).unet.state_dict()
        for step in (1, 6)
    )
    saved = Pipeline.from_pretrained(straight / folder).unet.state_dict()
    assert same_bits(last, saved)
    assert not same_bits(first, saved)


@pytest.fixture
def running(straight, tmp_path):
    """A run that has not ended: checkpoints, and no model."""
    run = tmp_path / "running"
    shutil.copytree(straight, run, ignore=shutil.ignore_patterns("model*"))
    return run


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_checkpoint_of_a_run_that_goes_on_is_a_model(straight, running, weights):
    name = "checkpoints/step-00000003"
    one, other = (open_model(str(run / name), weights) for run in (straight, running))
    assert same_bits(one.unet.state_dict(), other.unet.state_dict())
    saved = Pipeline.from_pretrained(straight / "model")
    assert not other.unet.training
    assert other.image_format == saved.image_format
    for mine, its in ((other.unet, saved.unet), (other.scheduler, saved.scheduler)):
        settings = {key: value for key, value in its.config.items() if not key.startswith("_")}
        assert json.dumps(settings) == json.dumps({key: mine.config[key] for key in settings})


def test_a_run_that_goes_on_is_sampled_from_its_newest_checkpoint(
    straight, running, sample, tmp_path
):
    arguments = ["--num_images", 1, "--steps", 2]
    code, said, _ = sample("--model", running, *arguments, "--output_dir", tmp_path / "one")
    assert code == 0
    newest = running / "checkpoints" / "step-00000006"
    assert f"no model/ before the run ends or is stopped: using {newest}\n" in said
    assert sample("--model", straight, *arguments, "--output_dir", tmp_path / "two")[0] == 0
    one, other = (pixels(tmp_path / name)["000000.png"] for name in ("one", "two"))
    assert (one == other).all()


def test_a_run_without_a_checkpoint_says_so(running, sample, tmp_path):
    shutil.rmtree(running / "checkpoints")  # as before the first one
    code, _, error = sample("--model", running, "--output_dir", tmp_path / "out")
    assert (code, error.count("\n")) == (2, 1)
    assert "holds no model and no checkpoint yet" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "ema.safetensors", "scheduler_config.json", None])
def test_a_checkpoint_that_is_removed_while_it_is_read_is_named(name, running, sample, tmp_path):
    """As the run does, which keeps the newest ones: when this file is about to be read."""
    folder, looking = running / "checkpoints" / "step-00000003", [True]

    def remove(event, arguments):
        if looking and event == "open" and str(arguments[0]) == str(folder / name):
            looking.clear()
            shutil.rmtree(folder)

    if name is None:
        shutil.rmtree(folder)
    elif name == "ema.safetensors":  # which is not read by Python
        (folder / name).unlink()
    else:
        sys.addaudithook(remove)
    code, _, error = sample("--model", folder, "--output_dir", tmp_path / "out")
    looking.clear()
    assert (code, error.count("\n")) == (2, 1)
    if name != "ema.safetensors":
        assert f"{folder} does not exist, or was removed" in error
        assert "step-00000006" in error
    assert str(folder) in error


def test_a_checkpoint_guides_its_own_model(straight, sample, tmp_path):
    words = ["--model", straight, "--num_images", 1, "--steps", 2]
    checkpoint = straight / "checkpoints" / "step-00000001"
    guide = ["--guidance.kind", "auto", "--guidance.scale", 9, "--guidance.model", checkpoint]
    assert sample(*words, "--output_dir", tmp_path / "plain")[0] == 0
    assert sample(*words, *guide, "--output_dir", tmp_path / "guided")[0] == 0
    one, other = (pixels(tmp_path / name)["000000.png"] for name in ("plain", "guided"))
    assert abs(one - other).max() > 0


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weaker_model_has_the_weights_and_precision_asked_for(straight, weights, dtype):
    checkpoint = straight / "checkpoints" / "step-00000001"
    settings = SamplerSettings(
        weights=weights, dtype=dtype, guidance=GuidanceSettings(kind="auto", model=str(checkpoint))
    )
    guide = settings.make_method(settings.open(str(straight))).guide
    stem = {"ema": "ema", "raw": "weights"}[weights]
    expected = load_file(checkpoint / f"{stem}.safetensors")
    for name, weight in guide.weaker.network.state_dict().items():
        assert weight.equal(expected[name].to(getattr(torch, dtype))), name
    assert guide.weaker.dtype == getattr(torch, dtype)


def test_a_weaker_model_without_the_weights_asked_for_is_named(models, straight, sample, tmp_path):
    words = ["--model", straight, "--weights", "raw", "--num_images", 1, "--steps", 2]
    words += ["--guidance.kind", "auto", "--guidance.model", models / "grey"]
    code, _, error = sample(*words, "--output_dir", tmp_path / "out")
    assert (code, error.count("\n")) == (2, 1)
    assert f"guidance.model={models / 'grey'}: " in error
    assert "grey-raw does not exist" in error
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_cannot_be_opened_is_named(straight, sample, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight / "checkpoints", run / "checkpoints")
    for path in run.glob("checkpoints/*/*config.json"):  # as the first versions wrote them
        path.unlink()
    words = ["--model", run / "checkpoints" / "step-00000001", "--output_dir", tmp_path / "out"]
    code, _, error = sample(*words)
    assert (code, error.count("\n")) == (2, 1)
    assert "is written when the run ends or is stopped" in error
    shutil.copytree(straight / "model", run / "model")
    damaged = run / "checkpoints" / "step-00000001" / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    code, _, error = sample(*words)
    assert (code, error.count("\n")) == (2, 1)
    assert str(damaged) in error
    assert not (tmp_path / "out").exists()


def test_an_array_and_an_animation_are_written_where_asked_for(models, sample, tmp_path):
    arguments = ["--model", models / "classes", "--num_images", 3, "--steps", 4]
    arguments += ["--npz", "true", "--output_dir", tmp_path]
    assert sample(*arguments, "--animation", "gif")[0] == 0
    assert sample(*arguments, "--animation", "webp")[0] == 0
    array = np.load(tmp_path / "images.npz")["arr_0"]
    assert (array.shape, array.dtype) == ((3, 8, 8, 3), np.uint8)
    for name, image in zip(sorted(pixels(tmp_path)), array, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(tmp_path / name)))
    grid = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    with Image.open(tmp_path / "denoising.webp") as moving:
        assert (moving.n_frames, moving.size) == (4, grid.shape[1::-1])
        moving.seek(3)
        assert abs(np.asarray(moving.convert("RGB")).astype(int) - grid).max() <= 1
    with Image.open(tmp_path / "denoising.gif") as moving:
        assert moving.n_frames == 4


def test_two_processes_make_the_images_of_one(models, sample, tmp_path):
    words = ["--model", models / "classes", "--num_images", "5", "--steps", "4"]
    words += ["--scheduler", "ddpm", "--output_dir"]
    assert sample(*words, tmp_path / "one")[0] == 0
    done = subprocess.run(
        [
            *(sys.executable, *torchrun(2), "sampling/sample.py", *map(str, words)),
            *(str(tmp_path / "two"), "--batch_size", "2"),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("5 images made") == 1
    assert_nearly_equal(pixels(tmp_path / "two"), pixels(tmp_path / "one"))
    record = json.loads((tmp_path / "two" / "samples.json").read_text())
    assert record["environment"]["processes"] == 2


def program(argv):
    """The program in a process of its own."""
    sys.argv = ["sample.py", *argv]
    main()


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "euler_ancestral", "dpmsolver++sde"])
def test_processes_agree_before_rounding(scheduler, tmp_path):
    torch.manual_seed(0)
    image_format = ImageFormat(channels=1, size=(8, 8), bit_depth=32, value_range=(-1.0, 1.0))
    unet = UNet(**SMALL | {"in_channels": 1, "out_channels": 1})
    Pipeline(unet, DDPMScheduler(clip_sample=False), image_format).save_pretrained(tmp_path / "m")
    words = ["--model", tmp_path / "m", "--num_images", 5, "--steps", 4, "--scheduler", scheduler]
    made = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        argv = [*map(str, words), "--output_dir", str(out)]
        with Workers(argv, processes, tmp_path / "printed", program=program) as workers:
            assert workers.wait() == [0] * processes, workers.printed()
        made.append(np.stack([np.load(out / f"{index:06}.npy") for index in range(5)]))
    assert made[0].std() > 0.1
    assert abs(made[0] - made[1]).max() < 1e-4


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler on a CPU")
@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images(models, sample, tmp_path):
    words = ["--model", models / "grey", "--num_images", "3", "--steps", "2"]
    assert sample(*words, "--output_dir", tmp_path / "eager")[0] == 0
    assert sample(*words, "--output_dir", tmp_path / "compiled", "--compile", "true")[0] == 0
    assert_nearly_equal(pixels(tmp_path / "compiled"), pixels(tmp_path / "eager"))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_keeps_what_was_done(models, sample, tmp_path):
    words = ["--model", models / "grey", "--num_images", "40", "--steps", "60"]
    words += ["--scheduler", "euler_ancestral"]
    assert sample(*words, "--output_dir", tmp_path / "whole")[0] == 0
    out = tmp_path / "killed"
    words += ["--batch_size", "2", "--output_dir", out]
    run = subprocess.Popen([sys.executable, "sampling/sample.py", *map(str, words)], cwd=ROOT)
    while len(list(out.glob("[0-9]*.png"))) < 4:
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("[0-9]*.png")}
    assert 4 <= len(done) < 40
    assert sample(*words)[0] == 0
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    assert_nearly_equal(pixels(out), pixels(tmp_path / "whole"))


@pytest.mark.slow
def test_memory_stays_flat_however_many_images_are_made(models, tmp_path):
    peaks = []
    for count in (50, 1000):
        program = f"""
import resource, sys
sys.argv = ["sample.py", "--model", {str(models / "grey")!r}, "--num_images", "{count}",
            "--steps", "1", "--batch_size", "10", "--output_dir", "{tmp_path / str(count)}"]
from sampling.common.model_loading import open_model
from sampling.common.sampler_settings import GuidanceSettings, SamplerSettings
from sampling.sample import main
from tests.support.runs import environment, same_bits, torchrun
main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment() | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] * 1.05
