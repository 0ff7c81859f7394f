import numpy as np
import pytest
from PIL import Image, ImageOps

from ddpm_sa.data.resize import resize, scale

RANDOM = np.random.default_rng(0)
Y, X = np.indices((40, 60))
# So smooth that a bicubic does not overshoot, which 8 bits would clip on the way.
WAVES = np.stack([90 + 90 * np.sin(X / (7 + c) + Y / 9 + c) for c in range(3)], axis=2)
WAVES -= WAVES.min()
COARSE = WAVES.round().astype(np.uint8)


def test_pictures_are_resized_as_pillow_does():
    expected = ImageOps.fit(Image.fromarray(COARSE), (16, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(COARSE, (24, 16), "crop"), np.asarray(expected))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_images_are_resized_as_8_bits_are_but_finer(fit, dtype):
    deep = (WAVES * (257 if dtype == np.uint16 else 1)).astype(dtype)
    resized = resize(deep, (24, 20), fit)
    assert (resized.dtype, resized.shape) == (dtype, (24, 20, 3))
    shallow = resize(COARSE, (24, 20), fit).astype(float)
    fine = resized / (257 if dtype == np.uint16 else 1)
    # 8 bits are rounded before, between and after the two passes of a resize.
    assert abs(fine - shallow).max() <= 1.5
    assert np.unique(resized).size > 256


def test_no_value_is_beyond_those_of_the_image():
    edge = np.zeros((16, 16, 1), np.float32)
    edge[:, 8:] = 1000
    resized = resize(edge, (64, 64), "stretch")
    assert (resized.min(), resized.max()) == (0, 1000)
    deep = np.where(edge > 0, 4095, 17).astype(np.uint16)
    assert resize(deep, (64, 64), "crop").max() == 4095
    assert resize(deep, (64, 64), "crop").min() == 17


def test_an_image_of_that_size_is_left_alone():
    for channels in (1, 2, 3, 4, 7):
        image = RANDOM.integers(0, 2**16, (8, 6, channels), dtype=np.uint16)
        assert resize(image, (8, 6), "crop") is image


def test_ratio_is_kept_unless_it_is_stretched():
    """A disc stays as wide as it is high."""
    y, x = np.indices((80, 120))
    disc = (((y - 40) ** 2 + (x - 60) ** 2 < 30**2) * 255).astype(np.uint8)[..., None]
    extent = {
        fit: [
            np.ptp(np.flatnonzero(resize(disc, (40, 40), fit)[..., 0].max(axis) > 127))
            for axis in (0, 1)
        ]
        for fit in ("crop", "pad", "stretch")
    }
    assert extent["crop"][0] == pytest.approx(extent["crop"][1], abs=1)
    assert extent["pad"][0] == pytest.approx(extent["pad"][1], abs=1)
    assert extent["pad"][0] < extent["crop"][0]
    assert extent["stretch"][0] < extent["stretch"][1] - 5


def test_enlarging_is_told_from_shrinking():
    assert scale((10, 20), (10, 10), "crop") == 1
    assert scale((10, 20), (10, 10), "pad") == 0.5
    assert scale((5, 20), (10, 10), "stretch") == 2
