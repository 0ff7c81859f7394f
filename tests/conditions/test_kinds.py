"""What each kind of condition is made of, by the libraries that define it."""

import dataclasses
import io

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from ddpm_sa.conditions.kinds import (
    CONDITION_KINDS,
    Blur,
    ConditionKind,
    Downsample,
    Edges,
    Grey,
    Jpeg,
    Mask,
    Noise,
)
from ddpm_sa.conditions.masks import MASKS, draw_masks
from ddpm_sa.errors import UserError


def randoms(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(count)]


@pytest.fixture
def images() -> Tensor:
    """8-bit values of smooth RGB images, 16 x 24."""
    noise = torch.randn(3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic") / 2
    return ((smooth.clamp(-1, 1) * 127.5 + 127.5).round()) / 127.5 - 1


def as_pillow(image: Tensor) -> Image.Image:
    pixels = (image * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def test_area_is_the_mean_of_blocks_and_bicubic_is_pillows(images):
    small = Downsample(factor=4).measure(images, [])
    blocks = images.unflatten(3, (6, 4)).unflatten(2, (4, 4)).mean((3, 5))
    torch.testing.assert_close(small, blocks)
    bicubic = Downsample(factor=4, filter="bicubic").measure(images, [])
    for image, ours in zip(images, bicubic, strict=True):
        theirs = as_pillow(image).resize((6, 4), Image.Resampling.BICUBIC)
        theirs = torch.tensor(np.asarray(theirs)).permute(2, 0, 1) / 127.5 - 1
        assert (ours - theirs).abs().max() < 1.5 / 127.5  # Pillow rounds twice


def test_grey_is_pillows(images):
    ours = Grey().measure(images, [])
    for image, grey in zip(images, ours, strict=True):
        theirs = torch.tensor(np.asarray(as_pillow(image).convert("L"))) / 127.5 - 1
        assert (grey[0] - theirs).abs().max() < 1.01 / 127.5  # which cuts fractions off


def test_blur_is_scipys(images):
    ours = Blur(sigma=1.5).measure(images, [])
    theirs = scipy.ndimage.gaussian_filter(
        images.numpy(), 1.5, axes=(2, 3), mode="mirror", radius=5
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_edges_are_scipys(images):
    ours = Edges().measure(images, [])
    grey = Grey().measure(images, [])[:, 0].numpy() / 8
    for image, edges in zip(grey, ours[:, 0], strict=True):
        slopes = [scipy.ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1)]
        np.testing.assert_allclose(edges, (2 * np.hypot(*slopes) - 1).clip(-1, 1), atol=1e-5)
    step = torch.full((1, 1, 8, 8), -1.0)
    step[..., 4:] = 1.0
    edges = Edges().measure(step, [])
    assert edges[0, 0, 3].tolist() == [-1, -1, -1, 1, 1, -1, -1, -1]


def test_jpeg_is_pillows(images):
    ours = Jpeg(quality=10).measure(images, [])
    for image, kept in zip(images, ours, strict=True):
        file = io.BytesIO()
        as_pillow(image).save(file, "JPEG", quality=10)
        assert (
            (kept * 127.5 + 127.5).round().byte()
            == torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)
        ).all()


def test_noise_has_its_strength_and_each_image_its_own():
    noise = Noise(std=0.3).measure(torch.zeros(2, 1, 200, 200), randoms(2))
    assert abs(noise.std().item() - 0.3) < 0.003
    assert abs(torch.corrcoef(noise.flatten(1))[0, 1].item()) < 0.02
    again = Noise(std=0.3).measure(torch.zeros(1, 1, 200, 200), randoms(2)[1:])
    assert again.equal(noise[1:])


@pytest.mark.parametrize("name", MASKS)
def test_masks_hide_something_and_not_all(name, images):
    hidden = draw_masks(name, (32, 24), randoms(200))
    shares = hidden.float().mean((1, 2, 3))
    assert hidden.shape == (200, 1, 32, 24)
    assert shares.min() > 0
    assert shares.max() < 1
    assert shares.std() > 0.05
    assert hidden.float().mean(0).min() > 0  # no place is never hidden


def test_mask_shows_what_is_known_and_says_which(images):
    condition = Mask(mask="boxes").measure(images, randoms(3))
    known = condition[:, 3:] > 0
    assert (condition[:, :3] == torch.where(known, images, 0)).all()
    assert set(condition[:, 3].unique().tolist()) == {-1.0, 1.0}
    # A picture with transparency may hold anything where it is hidden.
    given = torch.cat([images, condition[:, 3:]], 1)
    assert Mask().prepare(given, (16, 24)).equal(condition)


def test_masks_of_a_folder_are_drawn_evenly(tmp_path):
    for number in range(3):
        picture = np.zeros((16, 12), np.uint8)
        picture[:, 4 * number : 4 * number + 4] = 255
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    hidden = draw_masks(str(tmp_path), (8, 12), randoms(300))
    columns = hidden[:, 0, 0].float().mean(0)
    assert ((columns - 1 / 3).abs() < 0.1).all()
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "all.png")
    with pytest.raises(UserError, match=r"all\.png hides everything"):
        draw_masks(str(tmp_path), (8, 11), randoms(1))
    with pytest.raises(UserError, match="neither a folder nor one of boxes, strokes, pixels"):
        draw_masks("circles", (8, 8), randoms(1))


@pytest.mark.parametrize("kind", [kind() for kind in CONDITION_KINDS.values()], ids=CONDITION_KINDS)
def test_every_kind_has_the_channels_and_the_range_that_it_says(kind: ConditionKind, images):
    shape = (3, 16, 24)
    kind.check(shape)
    condition = kind.measure(images, randoms(3))
    assert condition.shape == (3, *kind.given(shape))
    prepared = kind.prepare(condition, (16, 24))
    assert prepared.shape == (3, kind.channels(shape), 16, 24)
    assert prepared.dtype == torch.float32
    if kind.bounded:
        assert prepared.abs().max() <= 1.0001
    # An image's condition is its own.
    alone = kind.measure(images[1:2], randoms(3)[1:2])
    torch.testing.assert_close(alone, condition[1:2])


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (Downsample(factor=5), (3, 16, 24), "factor=5 does not divide the images' 16 x 24 pixels"),
        (Grey(), (1, 8, 8), "grey needs RGB images, not 1 channels"),
        (Blur(sigma=4), (1, 8, 8), "sigma=4 reaches 12 pixels, beyond images of 8 x 8"),
        (Jpeg(), (5, 8, 8), "jpeg needs grey or RGB images, not 5 channels"),
    ],
)
def test_images_that_cannot_have_a_condition_are_refused(kind, shape, message):
    with pytest.raises(UserError, match=message):
        kind.check(shape)


@pytest.mark.parametrize("kind", CONDITION_KINDS.values())
def test_settings_of_a_kind_are_checked(kind):
    for field in dataclasses.fields(kind):
        if field.name != "mask":
            with pytest.raises(UserError, match=field.name):
                kind(**{field.name: -1})
