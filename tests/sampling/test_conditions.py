"""sampling/sample.py with networks that are conditioned on images."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_sa import Pipeline, UNet
from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.kinds import Downsample, Grey, Mask
from ddpm_sa.image_format import ImageFormat
from sampling import attention, edit, evaluate
from sampling.common.conditions import SAMPLES
from sampling.sample import main
from tests.support.reference import SMALL, randomise_


def save(folder, condition, size=8, **network):
    image_format = ImageFormat(channels=3, size=(size, size), condition=condition)
    config = SMALL | {"sample_size": size, "in_channels": image_format.in_channels} | network
    unet = randomise_(UNet(**config))
    unet.conv_out.weight.data *= 0.3
    Pipeline(unet, DDPMScheduler(), image_format).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models, the images of a condition, and true images."""
    root = tmp_path_factory.mktemp("place")
    save(root / "sr", ConditionFormat(kinds=(Downsample(factor=2),), noise=0.5))
    save(root / "two", ConditionFormat(kinds=(Grey(), Mask())))
    save(root / "small", None, size=4)
    save(root / "plain", None)
    random = np.random.default_rng(0)
    for name, shape in (
        ("low", (4, 4, 3)),
        ("true", (8, 8, 3)),
        ("grey", (8, 8)),
        ("holes", (8, 8, 4)),
    ):
        (root / name).mkdir()
        for number in range(3):
            picture = Image.fromarray(random.integers(0, 256, shape, np.uint8))
            picture.save(root / name / f"{number}.png")
    return root


@pytest.fixture
def sample(place, monkeypatch, run_main):
    monkeypatch.chdir(place)

    def run(*words):
        return run_main(main, "--steps", 3, *words)

    return run


def test_samples_of_each_condition_are_named_by_both(sample, place, tmp_path):
    words = ["--model", "sr", "--condition", "low", "--num_images", 2, "--output_dir"]
    code, said, error = sample(*words, tmp_path / "out")
    assert code == 0, error
    assert said.startswith("6 images made, 0 existed")
    names = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert names == [f"{c:06d}-{n:03d}.png" for c in range(3) for n in range(2)]
    pipeline = Pipeline.from_pretrained(place / "sr")
    picture = Image.open(place / "low" / "1.png")
    image, second = pipeline(indices=[1, SAMPLES + 1], steps=3, condition=picture).images
    for ours, name in ((image, "000001-000.png"), (second, "000001-001.png")):
        difference = np.asarray(ours).astype(int) - np.asarray(Image.open(tmp_path / "out" / name))
        assert abs(difference).max() <= 1
    # More samples of each leave those that are there.
    before = (tmp_path / "out" / "000001-001.png").read_bytes()
    words[5] = 3
    assert sample(*words, tmp_path / "out")[1].startswith("3 images made, 6 existed")
    assert (tmp_path / "out" / "000001-001.png").read_bytes() == before
    # Rows of a condition, samples, mean and spread, each with a border.
    with Image.open(tmp_path / "out" / "posterior.png") as posterior:
        assert posterior.size == (10 * (1 + 3 + 2), 10 * 3)


def test_other_conditions_are_not_mixed_into_a_folder(sample, tmp_path):
    words = ["--model", "sr", "--num_images", 1, "--output_dir", tmp_path / "out"]
    assert sample(*words, "--condition", "low/0.png")[0] == 0
    code, _, error = sample(*words, "--condition", "low/1.png")
    assert code == 2
    assert "holds images made with condition_sha256=" in error


def test_conditions_are_made_of_true_images(sample, place, tmp_path):
    words = ["--model", "sr", "--num_images", 1]
    assert sample(*words, "--truth", "true", "--output_dir", tmp_path / "made")[0] == 0
    true = torch.stack(
        [torch.tensor(np.asarray(Image.open(place / "true" / f"{i}.png"))) for i in range(3)]
    )
    low = torch.nn.functional.avg_pool2d(true.permute(0, 3, 1, 2).float(), 2)
    pipeline = Pipeline.from_pretrained(place / "sr")
    ours = pipeline(num_images=3, steps=3, condition=low / 127.5 - 1).images
    for number, image in enumerate(ours):
        made = np.asarray(Image.open(tmp_path / "made" / f"{number:06d}-000.png")).astype(int)
        assert abs(np.asarray(image) - made).max() <= 1
    with Image.open(tmp_path / "made" / "posterior.png") as posterior:
        assert posterior.size == (10 * 5, 10 * 3)  # the truth too


def test_several_conditions_are_named(sample, tmp_path):
    words = ["--model", "two", "--num_images", 1, "--output_dir", tmp_path / "out"]
    code, _, error = sample(*words, "--condition", "grey=grey", "mask=holes")
    assert code == 0, error
    assert len(list((tmp_path / "out").glob("0*.png"))) == 3


def test_a_cascade_feeds_one_model_with_the_other_ones_samples(sample, place, tmp_path):
    words = ["--model", "small", "--then", "sr", "--then_noise", 0.3, "--num_images", 2]
    code, _, error = sample(*words, "--output_dir", tmp_path / "out")
    assert code == 0, error
    low = Pipeline.from_pretrained(place / "small")(num_images=2, steps=3, output_type="pt").images
    ours = Pipeline.from_pretrained(place / "sr")(
        num_images=2, steps=3, condition=low * 2 - 1, condition_noise=0.3
    ).images
    for number, image in enumerate(ours):
        made = np.asarray(Image.open(tmp_path / "out" / f"{number:06d}-000.png")).astype(int)
        assert abs(np.asarray(image) - made).max() <= 1
    record = json.loads((tmp_path / "out" / "samples.json").read_text())["settings"]
    assert record["then"]["noise"] == 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "sr"], "this network needs --condition: downsample (3 channels of 4 x 4"),
        (["--model", "sr", "--condition", "true"], "image=true/0.png has 3 channels, 8 x 8"),
        (["--model", "sr", "--condition", "nowhere"], "nowhere cannot be read"),
        (["--model", "sr", "--condition", "grey=low"], "--condition needs downsample=PATH"),
        (["--model", "sr", "--condition", "low", "--truth", "true/0.png"], "numbers of images"),
        (["--model", "sr", "--condition", "low", "--condition_noise", 0.6], "from 0 to 0.5"),
        (["--model", "sr", "--condition", "low", "--guidance.kind", "condition"], "dropout"),
        (["--model", "two", "--condition", "grey"], "--condition needs grey=PATH mask=PATH"),
        (["--model", "plain", "--condition", "low"], "this network is not conditioned on images"),
        (["--model", "plain", "--then", "sr"], "--then needs downsample (3 channels of 4 x 4"),
        (["--model", "plain", "--then", "plain"], "--then needs a model that is conditioned"),
        (["--model", "plain", "--then_noise", 0.1], "--then_noise has no effect"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(words, message, sample, tmp_path):
    code, said, error = sample(*words, "--num_images", 1, "--output_dir", tmp_path / "out")
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (attention, []),
        (edit, ["--edit", "progressive"]),
        (evaluate, ["--data", "true", "--num_images", 2]),
    ],
)
def test_programs_that_give_no_condition_say_so(
    program, words, place, run_main, tmp_path, monkeypatch
):
    monkeypatch.chdir(place)
    code, _, error = run_main(
        program.main, "--model", "sr", "--steps", 2, "--output_dir", tmp_path / "out", *words
    )
    assert code == 2
    assert "this network needs a condition: downsample" in error
    assert error.count("\n") == 1
