"""Y and X are the image, C and S its channels, every other axis counts images."""

import sys

import numpy as np
import pytest

from ddpm_sa.data.load import open_images
from training.config import DataConfig

LENGTHS = {"Y": 6, "X": 5, "Z": 3, "T": 2, "C": 4, "S": 3}
# The axes of an array -> how many images and channels, and what numpy makes of image 1 (or 0).
ARRANGEMENTS = {
    "YX": (1, 1, lambda a: a[..., None]),
    "XY": (1, 1, lambda a: a.T[..., None]),
    "ZYX": (3, 1, lambda a: a[1][..., None]),
    "YXZ": (3, 1, lambda a: a[:, :, 1][..., None]),
    "XYZ": (3, 1, lambda a: a[:, :, 1].T[..., None]),
    "CYX": (1, 4, lambda a: a.transpose(1, 2, 0)),
    "YXC": (1, 4, lambda a: a),
    "TCYX": (2, 4, lambda a: a[1].transpose(1, 2, 0)),
    "CZYX": (3, 4, lambda a: a[:, 1].transpose(1, 2, 0)),
    "TZYX": (6, 1, lambda a: a[0, 1][..., None]),
    "TZCYX": (6, 4, lambda a: a[0, 1].transpose(1, 2, 0)),
    "XYZT": (6, 1, lambda a: a[:, :, 0, 1].T[..., None]),
    "TCYXS": (2, 12, lambda a: np.concatenate(list(a[1]), axis=-1)),
}


def opened(source, **settings):
    return open_images(DataConfig(source=str(source), **{"size": "6x5"} | settings))


@pytest.mark.parametrize("axes", ARRANGEMENTS)
def test_axes_say_what_is_an_image(axes, tmp_path) -> None:
    number, channels, expected = ARRANGEMENTS[axes]
    shape = tuple(LENGTHS[axis] for axis in axes)
    array = np.random.default_rng(0).integers(0, 2**16, shape, dtype=np.uint16)
    np.save(tmp_path / "stack.npy", array)
    images = opened(tmp_path / "stack.npy", axes=axes)
    assert (images.length, images.format.channels) == (number, channels)
    got = images.read(np.array([min(1, number - 1)]))[0]
    np.testing.assert_array_equal(got, expected(array))
    (line,) = [line for line in images.describe("x") if line.startswith("axes ")]
    assert f"{axes} by data.axes: {number} image" in line
    assert f"{channels} channel" in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"axes": "TCYX"},
            r"is a \.npy file of 3 axes, 3x6x5 .*; data\.axes=TCYX names 4",
        ),
        ({"axes": "ZY"}, r"data\.axes=ZY must name Y, the height, and X, the width"),
        ({"axes": "ZYXX"}, r"data\.axes=ZYXX must name each axis once"),
        ({"axes": "zyx"}, r"data\.axes=zyx must be capital letters"),
        ({"slices": "2"}, r"data\.slices=2 must be every:STEP or FROM:TO"),
        ({"slices": "every:0"}, r"data\.slices=every:0 must be every:STEP or FROM:TO"),
        ({"slices": "7:9"}, r"no image left: 3 are outside of data\.slices=7:9"),
        ({"dataset": "a"}, r"is a \.npy file, one array without a name; leave out 'a'"),
        ({"value_range": "99%:1%"}, r"data\.value_range=99%:1% must be two numbers, or two perc"),
        ({"clip": True}, r"data\.clip=true needs data\.value_range"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(settings, message, tmp_path) -> None:
    np.save(tmp_path / "stack.npy", np.zeros((3, 6, 5), np.uint8))
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path / "stack.npy", **settings)
    assert "\n" not in str(error.value)


def test_settings_of_stacks_are_refused_without_one() -> None:
    with pytest.raises(ValueError, match=r"data\.axes=ZYX is for stacks .*=mnist5k holds"):
        opened("mnist5k", size=28, axes="ZYX")


def test_slices_are_taken_and_empty_images_left_out_and_counted(tmp_path) -> None:
    array = np.zeros((10, 6, 5), np.float32)
    array[3:9] = np.arange(30).reshape(6, 5)
    array[0] = 0.001 * np.arange(30).reshape(6, 5)  # noise around the background
    np.save(tmp_path / "stack.npy", array)
    images = opened(tmp_path / "stack.npy", slices="every:3", drop_empty=0.01)
    assert images.length == 2
    np.testing.assert_array_equal(images.read(np.arange(2))[..., 0], array[[3, 6]])
    report = "\n".join(images.describe("x"))
    assert "data.slices=every:3 takes 4 of 10 images" in report
    assert "2 images are empty and left out" in report
    assert opened(tmp_path / "stack.npy", slices="2:5").length == 3


def test_percentiles_are_those_of_numpy_and_clipping_is_counted(tmp_path) -> None:
    array = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)
    np.save(tmp_path / "stack.npy", array)
    images = opened(tmp_path / "stack.npy", value_range="5%:95%")
    low = np.percentile(array, 5, method="lower")
    high = np.percentile(array, 95, method="higher")
    assert images.format.value_range == (low, high)
    outside = np.count_nonzero((array < low) | (array > high))
    assert f"clipped     {outside} of 210 values" in "\n".join(images.describe("x"))
    np.testing.assert_array_equal(images.read(np.arange(7))[..., 0], array.clip(low, high))
    with pytest.raises(ValueError, match=r"data\.memory=0 GiB; give two numbers"):
        opened(tmp_path / "stack.npy", value_range="5%:95%", memory=0)


@pytest.mark.parametrize("memory", [0, 1])
def test_clipping_to_numbers_is_asked_for_and_counted(memory, tmp_path) -> None:
    array = np.arange(60, dtype=np.uint16).reshape(2, 6, 5)
    np.save(tmp_path / "stack.npy", array)
    settings = {"value_range": (9.5, 40), "memory": memory}
    if memory:
        with pytest.raises(ValueError, match=r"outside data\.value_range.* set data\.clip true"):
            opened(tmp_path / "stack.npy", **settings)
    images = opened(tmp_path / "stack.npy", clip=True, **settings)
    np.testing.assert_array_equal(images.read(np.arange(2))[..., 0], array.clip(10, 40))
    assert "clipped     29 of 60 values" in "\n".join(images.describe("x"))


def test_nan_is_refused_or_replaced(tmp_path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(2, 6, 5)
    array[1, 2, 3] = np.nan
    np.save(tmp_path / "stack.npy", array)
    with pytest.raises(ValueError, match=r"image 1 of .* not finite .*; set data\.nan"):
        opened(tmp_path / "stack.npy")
    images = opened(tmp_path / "stack.npy", nan=-1.0)
    np.testing.assert_array_equal(images.read(np.arange(2))[..., 0], np.nan_to_num(array, nan=-1))
    array[1, 2, 3] = np.inf
    np.save(tmp_path / "stack.npy", array)
    with pytest.raises(ValueError, match="not finite"):
        opened(tmp_path / "stack.npy", nan=-1.0)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("nibabel", "a.nii"),
        ("pydicom", "a.dcm"),
        ("h5py", "a.h5"),
        ("zarr", "a.zarr"),
        ("astropy.io", "a.fits"),
        ("tifffile", "a.tif"),
    ],
)
def test_a_missing_package_is_named_with_the_extra(package, name, monkeypatch, tmp_path) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = rf"{name} is a.* needs the package {package}.*: pip install 'ddpm_sa\[science\]'"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / name)
