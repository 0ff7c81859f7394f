"""Samples as one stack: the library of each format reads the values that were sampled."""

import nibabel
import numpy as np
import pytest
import tifffile

from ddpm_sa.data.load import open_images
from ddpm_sa.image_format import ImageFormat, to_tensor
from ddpm_sa.pipeline import Batch
from sampling.common.sample_folder import save_images
from sampling.common.sample_stack import FILES, save_stack
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
