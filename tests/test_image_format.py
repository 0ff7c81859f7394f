import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_sa.image_format import (
    ImageFormat,
    from_pil,
    from_tensor,
    image_grid,
    padded_size,
    to_pil,
    to_tensor,
    to_uint8,
    visible,
)

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


@pytest.mark.parametrize("value_range", [(0, 65535), (100, 40000)])
def test_all_65536_values_come_back_exactly(value_range):
    low, high = value_range
    images = np.arange(low, high + 1, dtype=np.uint16).reshape(1, -1, 1, 1)
    x = to_tensor(images, value_range)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    deep = ImageFormat(channels=1, size=(images.size, 1), bit_depth=16, value_range=value_range)
    again = from_tensor(x, deep)
    assert again.dtype == np.uint16
    np.testing.assert_array_equal(again, images)


def test_floats_come_back_to_float32s_precision_of_their_range():
    images = np.random.default_rng(0).uniform(-1000, 3000, (2, 4, 5, 6)).astype(np.float32)
    hounsfield = ImageFormat(channels=6, size=(4, 5), bit_depth=32, value_range=(-1000, 3000))
    again = from_tensor(to_tensor(images, (-1000, 3000)), hounsfield)
    assert again.dtype == np.float32
    # -1000 .. 3000 in the 24 bits of float32 that [-1, 1] has
    np.testing.assert_allclose(again, images, rtol=0, atol=4000 * 2**-23)


def test_what_lies_outside_the_range_is_clipped():
    deep = ImageFormat(channels=1, size=(1, 3), bit_depth=16, value_range=(10, 20))
    x = torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 1, 1, 3)
    assert from_tensor(x, deep).ravel().tolist() == [10, 15, 20]


def test_numbers_of_unknown_range_or_type_are_refused():
    with pytest.raises(ValueError, match="uint16 need their value_range"):
        to_tensor(EVERY_VALUE.astype(np.uint16))
    with pytest.raises(ValueError, match="int64"):
        to_tensor(EVERY_VALUE.astype(np.int64))


def test_what_is_no_colour_is_looked_at_in_its_first_channel():
    x = torch.linspace(-1, 1, 2 * 5 * 4 * 4).reshape(2, 5, 4, 4)
    np.testing.assert_array_equal(visible(x), to_uint8(x[:, :1]))
    assert visible(x[:, :3]).shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    ("size", "padded"), [((45, 61), (48, 64)), ((8, 16), (8, 16)), ((1, 9), (8, 16))]
)
def test_padded_size_is_the_least_that_can_be_halved(size, padded):
    assert padded_size(size, 8) == padded


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (1, "I;16"), (3, "RGB"), (4, "RGBA")])
def test_pictures_hold_the_pixels_through_a_png_file(channels, mode, tmp_path):
    dtype, top = (np.uint16, 2**16) if mode == "I;16" else (np.uint8, 2**8)
    images = np.random.default_rng(0).integers(0, top, (2, 4, 6, channels), dtype=dtype)
    for index, picture in enumerate(to_pil(images)):
        assert picture.mode == mode
        picture.save(tmp_path / f"{index}.png")
    pictures = [Image.open(tmp_path / f"{index}.png") for index in range(2)]
    np.testing.assert_array_equal(from_pil(pictures), images)


@pytest.mark.parametrize(("channels", "dtype"), [(2, np.uint8), (3, np.uint16), (1, np.float32)])
def test_what_a_png_cannot_hold_is_no_picture(channels, dtype):
    with pytest.raises(ValueError, match="cannot be Pillow images"):
        to_pil(np.zeros((1, 4, 4, channels), dtype))


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
    "change",
    [
        {"channels": 0},
        {"bit_depth": 12},
        {"size": (4,)},
        {"value_range": (255, 0)},
        {"value_range": (0, 65535)},
        {"value_range": (0, float("inf"))},
    ],
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
    fields = {field.name for field in dataclasses.fields(ImageFormat)}
    assert written.keys() == fields - {"condition"}
    assert (written["bit_depth"], written["value_range"]) == (8, [0, 255])


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_lie_in_memory_as_their_shape_says(channels):
    """A network computes in the order of what it is given, which another one would slow down."""
    x = to_tensor(np.zeros((2, 4, 6, channels), np.uint8))
    assert x.stride() == (24 * channels, 24, 6, 1)
