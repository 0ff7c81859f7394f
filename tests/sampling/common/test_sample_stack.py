"""Samples as one stack: the library of each format reads the values that were sampled."""

import sys

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from ddpm_sa.data.load import open_images
from ddpm_sa.image_format import ImageFormat, to_tensor
from ddpm_sa.pipeline import Batch
from sampling.common.sample_folder import save_images
from sampling.common.sample_stack import FILES, require_writer, save_stack
from sampling.sample import main
from tests.support.runs import arguments, run_here
from training.config import DataConfig


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("channels", "bits", "value_range"),
    [(1, 16, (0, 4095)), (1, 32, (-1024, 3071)), (3, 8, (0, 255)), (2, 16, (0, 65535))],
)
def test_values_come_back_in_the_units_that_went_in(
    kind, channels, bits, value_range, tmp_path
) -> None:
    form = ImageFormat(channels=channels, size=(6, 5), bit_depth=bits, value_range=value_range)
    low, high = value_range
    values = np.random.default_rng(0).integers(low, high + 1, (4, 6, 5, channels))
    stored = values.astype(form.dtype)
    save_images(tmp_path, Batch([*range(4)], to_tensor(stored, value_range)), form)
    save_stack(tmp_path, range(4), form, kind)
    path = tmp_path / FILES[kind]
    if kind == "npy":
        other = np.load(path)
    elif kind == "tiff":
        other = tifffile.imread(path)
        other = other if channels == 3 else np.moveaxis(other.reshape(4, channels, 6, 5), 1, -1)
    else:
        volume = nibabel.load(path)
        other = np.asanyarray(volume.dataobj).reshape(5, 6, 4, channels)  # pyright: ignore
        other = other.transpose(2, 1, 0, 3)
        np.testing.assert_array_equal(volume.affine, np.eye(4))  # pyright: ignore
    assert other.dtype == form.dtype
    tolerance = (high - low) * 2**-23 if bits == 32 else 0  # of float32 in [-1, 1]
    np.testing.assert_allclose(other, stored, rtol=0, atol=tolerance)
    # A stack that was written is a source of images.
    config = DataConfig(source=str(path), size="6x5", value_range=(low, high))
    images = open_images(config)
    np.testing.assert_array_equal(images.read(np.arange(4)), other)


def test_a_16_bit_stack_in_gives_16_bit_samples_out(run_main, tmp_path) -> None:
    stack = np.random.default_rng(0).integers(100, 4096, (8, 8, 8), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "cells.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    settings = {"steps": 1, "batch_size": 4, "data__value_range": "[100, 4095]"}
    run_here(arguments(tmp_path / "cells.tif", tmp_path / "run", **settings))
    words = ["--model", tmp_path / "run" / "model", "--num_images", "3", "--steps", "2"]
    words += ["--format", "tiff", "--output_dir", tmp_path / "out"]
    code, _, problem = run_main(main, *words)
    assert code == 0, problem
    with tifffile.TiffFile(tmp_path / "out" / "images.tif") as file:
        assert file.series[0].axes == "ZYX"
        sampled = file.series[0].asarray()
    alone = [np.asarray(Image.open(tmp_path / "out" / f"{i:06d}.png")) for i in range(3)]
    np.testing.assert_array_equal(sampled, np.stack(alone))
    assert sampled.dtype == np.uint16
    assert sampled.min() >= 100
    assert sampled.max() <= 4095


def test_a_missing_writer_is_named_before_anything_is_sampled(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"nifti needs the package nibabel: pip install 'ddpm_sa"):
        require_writer("nifti")
