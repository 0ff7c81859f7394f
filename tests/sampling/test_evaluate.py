"""The program that measures sets of images."""

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_sa import NoiseSchedule, Pipeline, UNet
from ddpm_sa.data.load import split
from ddpm_sa.image_format import ImageFormat
from sampling import sample as sampling_program
from sampling.evaluate import main
from sampling.evaluation.real_data import read_run_data_config
from tests.support.runs import picture_folder
from tests.support.workers import Workers

SMALL = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
FEATURES = "tests.support.features:eight"


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A model, and folders of noise: real, another draw, dark, and of other kinds."""
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    Pipeline(UNet(**SMALL), DDPMScheduler()).save_pretrained(folder / "model")
    wide = SMALL | {"in_channels": 1, "out_channels": 1}
    Pipeline(UNet(**wide), DDPMScheduler()).save_pretrained(folder / "grey-model")
    random = np.random.default_rng(0)
    for name, count, size, factor in [
        ("real", 60, 8, 1.0),
        ("other", 60, 8, 1.0),
        ("dark", 60, 8, 0.5),
        ("few", 3, 8, 1.0),
        ("large", 12, 16, 1.0),
    ]:
        (folder / name).mkdir()
        for i in range(count):
            pixels = (random.random((size, size, 3)) * factor * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture
def evaluate(run_main):
    """Run the program: words -> (exit code, stdout, stderr)."""
    return partial(run_main, main)


def shared_main(argv: list[str]) -> None:
    sys.argv = ["evaluate.py", *argv]
    main()


def without_cache(folder: str, rank: int) -> None:
    """What one process knew is not found by others."""
    os.environ["XDG_CACHE_HOME"] = folder


def record(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def by_name(folder: Path) -> dict[str, dict]:
    return {Path(found["name"]).name: found for found in record(folder)["results"]}


def test_sets_are_measured_trainers(places, evaluate, tmp_path):
    sets = [word for name in ("real", "other", "dark") for word in ("--samples", places / name)]
    code, said, _ = evaluate(
        *sets, "--data", places / "real", "--features", FEATURES, "--output_dir", tmp_path
    )
    assert code == 0
    assert f"Fréchet distance in features of {FEATURES}" in said
    assert "FID" not in said
    with Image.open(tmp_path / "evaluation.png") as figure:
        assert min(figure.size) > 100
    found = by_name(tmp_path)
    assert abs(found["real"]["frechet"]) < 1e-9
    assert found["real"]["shares"]["precision"] == 1
    assert found["dark"]["frechet"] > 10 * found["other"]["frechet"]
    assert found["dark"]["kernel"] > 10 * abs(found["other"]["kernel"])
    # Half as bright: the mean falls by 0.25 of the range, whose spread is 1 / sqrt(12) of it.
    for channel in found["dark"]["tint"]:
        assert channel["shift"] == pytest.approx(-0.25 * 12**0.5, abs=5 * channel["error"] + 0.02)
        assert channel["spread_ratio"] == pytest.approx(0.5, abs=0.02)
    for channel in found["other"]["tint"]:
        assert abs(channel["shift"]) < 5 * channel["error"]


def test_a_model_is_measured_as_its_files_are(places, evaluate, run_main, tmp_path):
    spec = ["--model", places / "model", "--steps", 3, "--num_images", 20, "--seed", 3]
    common = ["--data", places / "real", "--features", FEATURES]
    assert evaluate(*spec, *common, "--output_dir", tmp_path / "fly")[0] == 0
    to_files = [*spec, "--output_dir", tmp_path / "files"]
    assert run_main(sampling_program.main, *to_files)[0] == 0
    words = ["--samples", tmp_path / "files", *common, "--output_dir", tmp_path / "read"]
    assert evaluate(*words)[0] == 0
    (fly,), (read,) = (record(tmp_path / name)["results"] for name in ("fly", "read"))
    assert fly["count"] == read["count"] == 20
    # Another batch size may round a pixel of 8 bits otherwise.
    assert fly["frechet"] == pytest.approx(read["frechet"], rel=1e-3)
    told = record(tmp_path / "fly")
    assert told["seed"] == 3
    assert "--num_images 20" in told["command"]
    assert told["environment"]["torch"] == torch.__version__
    assert told["environment"]["models"][str(places / "model")]["weights_sha256"]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(places, evaluate, tmp_path):
    words = ["--model", places / "model", "--steps", 2, "--num_images", 23, "--batch_size", 4]
    words += ["--samples", places / "dark", "--data", places / "real", "--features", FEATURES]
    words += ["--validation", "0.2"]
    assert evaluate(*words, "--output_dir", tmp_path / "one")[0] == 0
    argv = [*map(str, words), "--output_dir", str(tmp_path / "two")]
    before = partial(without_cache, str(tmp_path / "cache"))
    with Workers(argv, 2, tmp_path / "printed", before, shared_main) as workers:
        assert workers.wait() == [0, 0], workers.printed()
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert two["environment"]["processes"] == 2
    assert one["results"][0]["name"] == "held-out images"
    for alone, shared in zip(one["results"], two["results"], strict=True):
        for name in ("frechet", "kernel"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-6, abs=1e-9)
        assert shared["shares"] == alone["shares"]
    assert one["data"]["fingerprint"] == two["data"]["fingerprint"]


def test_real_images_are_summarised_once(places, evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["--samples", places / "dark", "--features", FEATURES]
    for name, data in (("a", "real"), ("b", "real"), ("c", "other")):
        arguments = [*words, "--data", places / data, "--output_dir", tmp_path / name]
        assert evaluate(*arguments)[0] == 0
    kept = list((tmp_path / "cache" / "ddpm_sa" / "summaries").iterdir())
    assert len(kept) == 2
    first, again, other = (record(tmp_path / name) for name in "abc")
    assert first["results"] == again["results"]
    assert (first["data"]["known"], again["data"]["known"]) == (False, True)
    assert first["data"]["fingerprint"] != other["data"]["fingerprint"]


def test_fewer_images_than_features_are_warned_of(places, evaluate, tmp_path):
    words = ["--samples", places / "few", "--data", places / "real"]
    code, said, _ = evaluate(
        *words, "--features", "tests.support.features:three", "--output_dir", tmp_path
    )
    assert code == 2
    few = ["--samples", places / "real", "--data", places / "other", "--output_dir", tmp_path]
    code, said, _ = evaluate(*few, "--features", "tests.support.features:all_pixels")
    assert code == 0
    assert "real: 60 images are fewer than the 192 features" in said
    assert len(record(tmp_path)["warnings"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "DIR/real"], "nothing to evaluate: give --model or --samples"),
        (["--model", "DIR/model"], "the model is not part of a run folder; give --data"),
        (
            ["--samples", "DIR/few", "--data", "DIR/real"],
            "few: 3 images have no 3 neighbours; give at least 4",
        ),
        (
            ["--samples", "DIR/real", "--samples", "DIR/large", "--data", "DIR/real"],
            "3 channels, 16 x 16 pixels of uint8; the model's images have 3, 8 x 8",
        ),
        (
            ["--model", "DIR/model", "--model", "DIR/grey-model", "--data", "DIR/real"],
            "only images of the same format can be compared",
        ),
        (["--samples", "DIR", "--data", "DIR/real"], "holds no image"),
        (["--samples", "DIR/real", "--data", "DIR/nowhere"], "neither a folder nor a file"),
        (["--model"], "--model needs a value"),
        (
            [
                "--samples",
                "DIR/real",
                "--data",
                "DIR/real",
                "--features",
                "tests.support.features:broken",
            ],
            "gave values that are not finite",
        ),
    ],
)
def test_mistakes_are_told_in_words(places, evaluate, tmp_path, words, said):
    words = [word.replace("DIR", str(places)) for word in words]
    words = words if "--features" in words else ["--features", FEATURES, *words]
    code, _, error = evaluate(*words, "--output_dir", tmp_path / "out")
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_images_of_a_run_are_those_of_its_config(places, evaluate, tmp_path):
    run = tmp_path / "run"
    Pipeline.from_pretrained(places / "model").save_pretrained(run / "model")
    (run / "config.yaml").write_text(
        f"data:\n  source: {places / 'real'}\n  size: 8\n  validation: 0.25\n"
    )
    words = ["--model", run / "model", "--steps", 2, "--num_images", 8, "--features", FEATURES]
    assert evaluate(*words, "--output_dir", tmp_path / "out")[0] == 0
    told = record(tmp_path / "out")
    assert told["data"]["images"] == 45
    assert [found["count"] for found in told["results"]] == [15, 8]


def test_a_model_or_a_checkpoint_of_a_run_knows_the_images_of_its_config(tmp_path):
    run = tmp_path / "run"
    for name in ("model", "checkpoints/step-00000001"):
        (run / name).mkdir(parents=True)
    (run / "config.yaml").write_text("data:\n  source: photographs\n")
    for folder in (run, run / "model", run / "checkpoints" / "step-00000001"):
        found = read_run_data_config(str(folder))
        assert found is not None
        assert found.source == "photographs"
    assert read_run_data_config(str(tmp_path)) is None


def test_images_of_any_kind_are_measured(evaluate, tmp_path):
    """Of 5 channels, floats, and no square: features of pixels, or the user's, know them."""
    random = np.random.default_rng(0)
    values = (random.normal(size=(40, 6, 9, 5)) * 100).astype(np.float32)
    np.save(tmp_path / "data.npy", values)
    torch.manual_seed(0)
    config = SMALL | {"in_channels": 5, "out_channels": 5, "sample_size": (6, 10)}
    kind = ImageFormat(
        channels=5,
        size=(6, 9),
        bit_depth=32,
        value_range=(float(values.min()), float(values.max())),
    )
    Pipeline(UNet(**config), DDPMScheduler(), kind).save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--data", tmp_path / "data.npy", "--steps", 2]
    words += ["--num_images", 20, "--output_dir", tmp_path / "out"]
    code, _, error = evaluate(*words)
    assert code == 2
    assert "features=efficientnet are of grey or RGB images, not of 5 channels" in error
    assert "give --features pixels, or a module of your own" in error
    for features in ("pixels", FEATURES):
        assert evaluate(*words, "--features", features)[0] == 0
        assert len(record(tmp_path / "out")["results"][0]["tint"]) == 5


def trained_alone(places: Path, tmp_path: Path) -> list[object]:
    words = ["--data", places / "real", "--features", FEATURES, "--validation", "0.3"]
    return [*words, "--output_dir", tmp_path]


def test_copies_are_flagged_and_held_out_images_are_not(places, evaluate, tmp_path):
    planted = tmp_path / "planted"
    shutil.copytree(places / "other", planted)
    kept = np.setdiff1d(np.arange(60), split(60, 0.3)[0])
    for place, source in ((3, kept[0]), (40, kept[5])):
        shutil.copy(places / "real" / f"{source:03d}.png", planted / f"{place:03d}.png")
    words = [*trained_alone(places, tmp_path / "out"), "--nearest", 60, "--samples", planted]
    code, said, _ = evaluate(*words)
    assert code == 0
    found = record(tmp_path / "out")["nearest"]
    copies = found["sets"][str(planted)]
    assert {3, 40} <= set(copies["below"])
    assert [copies["nearest"][place] for place in (3, 40)] == [0, 5]
    assert copies["share_below"] == len(copies["below"]) / 60
    assert len(copies["below"]) <= 10  # noise, and 18 held-out images to compare with
    assert found["sets"]["held-out images"]["below"] == []
    assert f"{planted}: {len(copies['below'])} of 60" in said
    with Image.open(tmp_path / "out" / "nearest.png") as figure:
        assert min(figure.size) > 200


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_likelihood_and_losses_of_a_model(variance, places, evaluate, tmp_path):
    """A network of zeros: its loss is what F is, its terms follow from x_0's second moment."""
    channels = 6 if variance == "learned_range" else 3
    network = UNet(**SMALL | {"out_channels": channels})
    for parameter in network.parameters():
        parameter.data.zero_()
    scheduler = DDPMScheduler(40, 1e-3, 0.3, prediction_type="sample", variance_type=variance)
    Pipeline(network, scheduler).save_pretrained(tmp_path / "zeros")
    words = [*trained_alone(places, tmp_path / "out"), "--model", tmp_path / "zeros"]
    words += ["--steps", 2, "--num_images", 8, "--likelihood", 18, "--losses", 80]
    code, said, _ = evaluate(*words)
    assert code == 0
    told = record(tmp_path / "out")
    losses = told["losses"][str(tmp_path / "zeros")]
    assert losses["timesteps"][0] == "00-03"
    # Noise between black and white, twice as wide: E x² of 1/3, and as many as nothing is known of.
    for name in ("training", "held-out images"):
        np.testing.assert_allclose(losses[name], 1 / 3, rtol=0.15)
    assert losses["gaussian"][-1] == pytest.approx(1 / 3, rel=0.03)  # nothing is known there
    assert np.all(np.diff(losses["gaussian"]) > 0)

    found = told["likelihood"][str(tmp_path / "zeros")]
    assert found["images"] == 18
    schedule = NoiseSchedule.from_scheduler(scheduler)
    np.testing.assert_allclose(found["distortion_at"], 127.5 / 3**0.5, rtol=0.03)
    if variance == "fixed_large":
        gain = schedule.posterior_mean_coef1**2 / 3 / schedule.betas
        ratio = schedule.posterior_log_variance_clipped - schedule.betas.log()
        terms = 0.5 * (ratio.exp() - ratio - 1 + gain) / np.log(2)
        np.testing.assert_allclose(found["terms"][1:], terms[1:], rtol=0.06)
    assert found["rate"] == pytest.approx(found["prior"] + sum(found["terms"][1:]))
    assert found["bits_per_dimension"] == pytest.approx(found["rate"] + found["decoder"])
    assert [row["reverse_steps"] for row in found["table"]] == list(range(40, 0, -4))
    assert "bits per dimension for 18 held-out images" in said
    for name in ("losses", "likelihood"):
        with Image.open(tmp_path / "out" / f"{name}.png") as figure:
            assert min(figure.size) > 200


def test_a_model_of_classes_is_told_those_of_the_images(evaluate, tmp_path):
    data = picture_folder(tmp_path / "data", ("cat", "dog"), each=20)
    torch.manual_seed(0)
    network = UNet(**SMALL | {"num_class_embeds": 2})
    kind = ImageFormat(channels=3, size=(8, 8), labels=("cat", "dog"))
    Pipeline(network, DDPMScheduler(4), kind).save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--data", data, "--features", FEATURES]
    words += ["--steps", 2, "--num_images", 8, "--losses", 8, "--likelihood", 4]
    assert evaluate(*words, "--validation", "0.2", "--output_dir", tmp_path / "out")[0] == 0
    told = record(tmp_path / "out")
    assert told["likelihood"][str(tmp_path / "model")]["images"] == 4
    (data / "cat").rename(data / "bird")
    code, _, error = evaluate(*words, "--validation", "0.2", "--output_dir", tmp_path / "other")
    assert code == 2
    assert "only images of the same format can be compared" in error


@pytest.mark.parametrize("look", ["nearest", "likelihood"])
def test_looks_at_held_out_images_need_some(look, places, evaluate, tmp_path):
    words = ["--model", places / "model", "--data", places / "real", "--features", FEATURES]
    code, _, error = evaluate(*words, f"--{look}", 4, "--output_dir", tmp_path)
    assert code == 2
    assert "need held-out images; give --validation, such as 0.1" in error


def test_images_that_the_run_did_not_hold_out_are_said_to_be_seen(places, evaluate, tmp_path):
    run = tmp_path / "run"
    Pipeline.from_pretrained(places / "model").save_pretrained(run / "model")
    (run / "config.yaml").write_text(f"data:\n  source: {places / 'real'}\n  size: 8\n")
    words = ["--model", run, "--steps", 2, "--num_images", 8, "--features", FEATURES]
    code, said, _ = evaluate(*words, "--validation", "0.2", "--output_dir", tmp_path / "out")
    assert code == 0
    assert (
        "was trained with data.validation=None: it may have seen the images that are held out here"
        in said
    )


@pytest.fixture
def split_run(places, tmp_path) -> Path:
    """A run on the split train, 12 images, with 7 held out as test; there are 8 in validation."""
    for name, count in (("train", 12), ("test", 7), ("val", 8)):
        for i in range(count):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(
                places / "real" / f"{i + len(name) * 7:03d}.png", tmp_path / "photos" / name
            )
    run = tmp_path / "run"
    shutil.copytree(places / "model", run / "model")
    (run / "config.yaml").write_text(
        f"data:\n  source: {tmp_path / 'photos'}\n  size: 8\n  validation: test\n"
    )
    return run


@pytest.mark.parametrize(
    ("flags", "real", "held_out", "said"),
    [
        ([], 12, 7, "data: split train, 12 images; left out: validation (8)"),
        (["--validation", "validation"], 12, 8, "left out: test (7)"),
        (["--split", "validation"], 8, 7, "data: split validation, 8 images; left out: train (12)"),
        (["--split", "test", "--validation", "train"], 7, 12, "may have seen the images"),
        (["--data", "PHOTOS", "--split", "test"], 7, None, "left out: train (12), validation (8)"),
        (["--data", "PHOTOS"], 12, None, "left out: validation (8), test (7)"),
        (["--data", "PHOTOS", "--validation", "test"], 12, 7, "left out: validation (8)"),
    ],
)
def test_real_images_are_those_of_a_split(split_run, evaluate, flags, real, held_out, said):
    flags = [flag.replace("PHOTOS", str(split_run.parent / "photos")) for flag in flags]
    words = ["--model", split_run / "model", "--steps", 2, "--num_images", 6, *flags]
    code, out, error = evaluate(*words, "--features", FEATURES, "--output_dir", split_run / "out")
    assert code == 0, error
    assert said in out
    told = record(split_run / "out")
    assert told["data"]["images"] == real
    assert [found["count"] for found in told["results"]] == [held_out, 6][held_out is None :]
    assert ("may have seen" in out) == ("train" in flags)


def test_a_split_that_is_not_there_is_named(split_run, evaluate):
    words = ["--model", split_run / "model", "--features", FEATURES, "--output_dir", "out"]
    code, _, error = evaluate(*words, "--split", "valid")
    assert code == 2
    assert "has no split 'valid', only train (12), validation (8), test (7)" in error
    code, _, error = evaluate(*words, "--split", "test")
    assert code == 2
    assert "data.validation=test is the split that is taken" in error
