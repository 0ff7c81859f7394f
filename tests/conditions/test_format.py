"""How conditions become channels of the network's input, and how a model folder records them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_sa.conditions.config import ConditionConfig
from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.given import channels_of, read_given
from ddpm_sa.conditions.kinds import Downsample, Grey, Mask, Noise
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat

RGB = {"channels": 3, "size": (8, 8)}
SEVERAL = ConditionFormat(kinds=(Downsample(factor=2), Grey()), withholds=True, noise=0.5)


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_channels_are_conditions_then_whether_then_noise():
    small, grey, eps = draw(2, 3, 4, 4), draw(2, 1, 8, 8), draw(2, 4, 8, 8)
    levels = torch.tensor([0.0, 0.6])
    withheld = torch.tensor([False, False])
    channels = SEVERAL.assemble([small, grey], (8, 8), withheld=withheld, levels=levels, eps=eps)
    assert channels.shape == (2, SEVERAL.channels((3, 8, 8)), 8, 8) == (2, 6, 8, 8)
    clean = torch.cat([Downsample(factor=2).prepare(small, (8, 8)), grey], 1)
    assert channels[0, :4].equal(clean[0])
    torch.testing.assert_close(channels[1, :4], 0.8 * clean[1] + 0.6 * eps[1])
    assert (channels[:, 4] == 1).all()
    torch.testing.assert_close(channels[:, 5], levels[:, None, None].expand(2, 8, 8))
    hidden = torch.tensor([True, False])
    dropped = SEVERAL.assemble([small, grey], (8, 8), withheld=hidden, levels=levels, eps=eps)
    assert (dropped[0] == 0).all()
    assert dropped[1].equal(channels[1])


@pytest.mark.parametrize(
    "condition",
    [None, SEVERAL, ConditionFormat(kinds=(Mask(mask="strokes"), Noise(std=0.5)))],
)
def test_a_folder_records_its_condition(condition, tmp_path):
    saved = ImageFormat(**RGB, condition=condition)
    saved.save(tmp_path)
    assert ImageFormat.load(tmp_path) == saved
    assert ("condition" in json.loads((tmp_path / "images.json").read_text())) == bool(condition)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "condition=3 must be an object of"),
        ({"kinds": 3}, "kinds=3 of the condition must be a list"),
        ({"kinds": []}, "at least one"),
        ({"kinds": [{"kind": "magic"}]}, "kind='magic' is unknown; known are downsample"),
        ({"kinds": [{"kind": ["grey"]}]}, "is unknown; known are downsample"),
        ({"kinds": [{"kind": "grey", "factor": 2}]}, "condition grey: .*factor"),
        ({"kinds": [{"kind": "downsample", "factor": 1e9}]}, "factor=1000000000.0 must be"),
        ({"kinds": [{"kind": "downsample", "factor": 16}]}, "factor=16 does not divide"),
        ({"kinds": [{"kind": "grey"}], "noise": 1}, "noise=1 must be"),
        ({"kinds": [{"kind": "grey"}], "withholds": 2}, "withholds=2 is unknown"),
        ({"kinds": [{"kind": "grey"}], "more": 2}, "must be an object of"),
    ],
)
def test_a_record_that_is_none_is_refused_in_a_line(content, message, tmp_path):
    fields = {"channels": 3, "size": [8, 8], "condition": content}
    (tmp_path / "images.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"images\.json: .*{message}") as told:
        ImageFormat.load(tmp_path)
    assert "\n" not in str(told.value)


def test_settings_become_the_format():
    config = ConditionConfig(kind=["downsample", "grey"], factor=2, dropout=0.1, noise=0.5)
    assert config.format == SEVERAL
    assert ConditionConfig().format is None
    assert set(config.unused()) == {"mask", "sigma", "std", "quality"}
    assert "factor" in ConditionConfig(kind=["grey"]).unused()
    for settings, message in (
        ({"kind": ["grey", "gray"]}, "gray is unknown; known are downsample, grey"),
        ({"kind": ["grey", "grey"]}, "each kind once"),
        ({"kind": ["grey"], "noise": 1.0}, r"condition\.noise=1\.0"),
    ):
        with pytest.raises(UserError, match=message):
            ConditionConfig(**settings)


def test_conditions_are_given_as_pictures_values_or_tensors():
    image_format = ImageFormat(**RGB, condition=ConditionFormat(kinds=(Downsample(factor=2),)))
    values = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    (wanted,) = read_given(values, image_format)
    assert wanted.shape == (2, 3, 4, 4)
    pictures = [Image.fromarray(image) for image in values]
    for given in (pictures, wanted, {"downsample": pictures}, list(values)):
        assert read_given(given, image_format)[0].equal(wanted)
    assert read_given(pictures[0], image_format)[0].equal(wanted[:1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"needs a condition: downsample \(3 channels of 4 x 4 pixels\)"),
        (draw(1, 3, 8, 8), "is 3 channels of 8 x 8 pixels; it must be 3 channels of 4 x 4 pixels"),
        (draw(1, 1, 4, 4), "is 1 channel of 4 x 4 pixels"),
        (draw(4, 4), r"is an array of shape \(4, 4\)"),
        (draw(1, 3, 4, 4) * 127, r"has values up to 12\d"),
        (draw(1, 3, 4, 4) / 0, "is not finite everywhere"),
        (np.zeros((1, 4, 4, 3), np.uint16), "is of uint16, the images are of uint8"),
        ({"grey": draw(1, 1, 8, 8)}, "are given for grey; this network needs downsample"),
        (draw(3, 3, 4, 4), "3 images of a condition for 2 samples"),
    ],
)
def test_other_conditions_are_refused_in_a_line(given, message):
    image_format = ImageFormat(**RGB, condition=ConditionFormat(kinds=(Downsample(factor=2),)))
    with pytest.raises(UserError, match=message) as told:
        channels_of(given, image_format, (8, 8), [0, 1])
    assert "\n" not in str(told.value)


def test_noise_in_a_condition_is_that_of_the_sample_and_within_the_trainings():
    image_format = ImageFormat(**RGB, condition=SEVERAL)
    given = {"downsample": draw(1, 3, 4, 4), "grey": draw(1, 1, 8, 8)}
    both = channels_of(given, image_format, (8, 8), [5, 2], noise=0.5, seed=1)
    (alone,) = channels_of(given, image_format, (8, 8), [2], noise=0.5, seed=1)
    assert both[1].equal(alone)
    assert not both[0].equal(alone)
    assert (both[:, 5] == 0.5).all()
    with pytest.raises(UserError, match=r"condition_noise=0\.6 must be from 0 to 0\.5"):
        channels_of(given, image_format, (8, 8), [0], noise=0.6)
    with pytest.raises(UserError, match="this network is not conditioned on images"):
        channels_of(given, ImageFormat(**RGB), (8, 8), [0])
    with pytest.raises(UserError, match=r"needs 2 conditions, by name: downsample \("):
        channels_of(draw(1, 3, 4, 4), image_format, (8, 8), [0])
