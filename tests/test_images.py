import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_sa.images import ImageFormat, from_pil, image_grid, to_pil, to_tensor, to_uint8

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_all_256_values_come_back_exactly(channels):
    images = np.concatenate([np.roll(EVERY_VALUE, 7 * c, axis=1) for c in range(channels)], axis=-1)
    x = to_tensor(images)
    assert x.dtype == torch.float32
    assert x.shape == (1, channels, 16, 16)
    assert (x.min(), x.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(x), images)
    np.testing.assert_array_equal(to_uint8(to_tensor(images[0])), images[0])


def test_values_scale_as_in_the_papers_code():
    expected = EVERY_VALUE.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    # float32 has 24 bits
    np.testing.assert_allclose(to_tensor(EVERY_VALUE).numpy(), expected, atol=2**-23)


def test_rounding_is_to_the_nearest_and_clips():
    x = torch.tensor([-7.0, -1.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 1.0, 7.0]).reshape(1, 1, 1, 6)
    assert to_uint8(x).ravel().tolist() == [0, 0, 0, 1, 255, 255]


def test_numbers_that_are_not_uint8_are_refused():
    with pytest.raises(ValueError, match="float32"):
        to_tensor(EVERY_VALUE.astype(np.float32))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_hold_the_pixels_through_a_png_file(channels, mode, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, channels), dtype=np.uint8)
    for index, picture in enumerate(to_pil(images)):
        assert picture.mode == mode
        picture.save(tmp_path / f"{index}.png")
    pictures = [Image.open(tmp_path / f"{index}.png") for index in range(2)]
    np.testing.assert_array_equal(from_pil(pictures), images)


def test_two_channels_are_no_picture():
    with pytest.raises(ValueError, match="1 or 3"):
        to_pil(np.zeros((1, 4, 4, 2), np.uint8))


def test_grid_places_images_row_by_row():
    images = np.stack([np.full((2, 3, 1), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    grid = image_grid(images)
    assert grid.size == (9, 4)
    corners = [[grid.getpixel((3 * c, 2 * r)) for c in range(3)] for r in range(2)]
    assert corners == [[10, 20, 30], [40, 50, 0]]
    assert image_grid(images, columns=1).size == (3, 10)


@pytest.mark.parametrize("columns", [None, 0])
def test_grids_of_nothing_are_refused(columns):
    with pytest.raises(ValueError, match="grid of 0"):
        image_grid(np.zeros((0, 2, 2, 1), np.uint8), columns)


def test_format_survives_its_file(tmp_path):
    deep = ImageFormat(
        channels=4, size=(5, 6), bit_depth=16, value_range=(0, 65535), labels=("left", "right")
    )
    deep.save(tmp_path)
    assert ImageFormat.load(tmp_path) == deep
    assert not deep.is_picture
    assert ImageFormat(channels=3, size=(5, 6)).is_picture


@pytest.mark.parametrize(
    "change", [{"channels": 0}, {"bit_depth": 12}, {"size": (4,)}, {"value_range": (255, 0)}]
)
def test_impossible_formats_are_refused_by_their_value(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ImageFormat(**{"channels": 1, "size": (4, 4)} | change)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"chanels": 1}', '{"channels": 0, "size": [4, 4]}']
)
def test_damaged_format_files_are_named(text, tmp_path):
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(ValueError, match=r"images\.json"):
        ImageFormat.load(tmp_path)


def test_format_file_says_depth_and_range(tmp_path):
    ImageFormat(channels=1, size=(4, 4)).save(tmp_path)
    written = json.loads((tmp_path / "images.json").read_text())
    assert written.keys() == {field.name for field in dataclasses.fields(ImageFormat)}
    assert (written["bit_depth"], written["value_range"]) == (8, [0, 255])
