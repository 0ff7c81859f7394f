"""What training hides from a network that learns inpainting."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ddpm_sa.data.resize import resize
from ddpm_sa.errors import UserError, require

Size = tuple[int, int]  # height, width


def draw_masks(kind: str, size: Size, randoms: Sequence[np.random.Generator]) -> Tensor:
    """Draw a mask for each image: (B, 1, H, W), bool, true where it is hidden.

    Args:
        kind: A key of `MASKS`, or a folder of pictures that are white where an image is hidden.
        size: (H, W).
        randoms: One generator for each image.

    Raises:
        UserError: If there is no such folder, or no picture in it.
    """
    if kind in MASKS:
        masks = [MASKS[kind](size, random) for random in randoms]
    else:
        pictures = _read_masks(kind, size)
        masks = [pictures[random.integers(len(pictures))] for random in randoms]
    return torch.from_numpy(np.stack(masks))[:, None]


def boxes(size: Size, random: np.random.Generator) -> np.ndarray:
    """One to three rectangles, each with sides of an eighth to two thirds of the image's."""
    mask = np.zeros(size, bool)
    for _ in range(random.integers(1, 4)):
        sides = [max(1, round(side * random.uniform(1 / 8, 2 / 3))) for side in size]
        y, x = (random.integers(whole - part + 1) for whole, part in zip(size, sides, strict=True))
        mask[y : y + sides[0], x : x + sides[1]] = True
    return mask


def strokes(size: Size, random: np.random.Generator) -> np.ndarray:
    """One to four strokes of a brush, each a line of three to eight points."""
    picture = Image.new("1", (size[1], size[0]))
    brush, extent = ImageDraw.Draw(picture), np.array([size[1] - 1, size[0] - 1])
    for _ in range(random.integers(1, 5)):
        # Some lie beyond the border, so that corners are hidden as often as the rest.
        points = random.uniform(-0.2, 1.2, (random.integers(3, 9), 2)) * extent
        width = max(1, round(min(size) * random.uniform(1 / 16, 1 / 6)))
        brush.line([tuple(point) for point in points.tolist()], fill=1, width=width, joint="curve")
    return np.asarray(picture)


def pixels(size: Size, random: np.random.Generator) -> np.ndarray:
    """Independent pixels, a tenth to nine tenths of them."""
    return random.random(size) < random.uniform(0.1, 0.9)


MASKS: dict[str, Callable[[Size, np.random.Generator], np.ndarray]] = {
    "boxes": boxes,
    "strokes": strokes,
    "pixels": pixels,
}
"""Masks by name, (size, random) -> (H, W), bool."""


@lru_cache(maxsize=1)
def _read_masks(folder: str, size: Size) -> list[np.ndarray]:
    names = ", ".join(MASKS)
    require(
        Path(folder).is_dir(), f"condition.mask={folder} is neither a folder nor one of {names}"
    )
    masks = []
    for path in sorted(Path(folder).iterdir()):
        try:
            with Image.open(path) as picture:
                grey = np.asarray(picture.convert("L"))[..., None]
        except OSError as error:
            raise UserError(f"condition.mask={folder}: {path.name} is no picture") from error
        mask = resize(grey, size, "stretch")[..., 0] >= 128
        require(not mask.all(), f"condition.mask={folder}: {path.name} hides everything")
        masks.append(mask)
    require(len(masks) > 0, f"condition.mask={folder} holds no picture")
    return masks
