"""An image of any size made one of a given size, at its own depth."""

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

Fit = Literal["crop", "pad", "stretch"]


def fitted(image: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Resize by an antialiased bicubic; an image of that size already is returned as it is.

    Args:
        image: uint8, uint16 or float32, (H, W, C).
        size: (height, width) to give it.
        fit: `crop`: the shorter side is resized to fit, the centre is kept. `pad`: the longer side
            is, with black (of floats, the image's lowest value) around. `stretch`: both are.

    Returns:
        (height, width, C), of the same type. Bicubics overshoot: at 8 bits what lies beyond 0 and
        255 is clipped, as Pillow does; else what lies beyond the image's own values.
    """
    if image.shape[:2] == size:
        return image
    if image.dtype == np.uint8 and image.shape[2] in (1, 3, 4):
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        return np.asarray(_resized(picture, size, fit, 0)).reshape(*size, -1)
    floats = image.dtype == np.float32
    low, high = image.min().item(), image.max().item()
    black = low if floats else 0
    # Pillow resizes 32-bit floats exactly as it does 8 bits, but for the rounding.
    planes = [
        _resized(Image.fromarray(plane.astype(np.float32)), size, fit, black)
        for plane in np.moveaxis(image, 2, 0)
    ]
    values = np.stack([np.asarray(plane) for plane in planes], axis=2)
    values = values.clip(black if fit == "pad" else low, high)
    return (values if floats else values.round()).astype(image.dtype)


def scale(old: tuple[int, int], new: tuple[int, int], fit: Fit) -> float:
    """By how much an image is enlarged, where above 1."""
    ratios = [after / before for before, after in zip(old, new, strict=True)]
    return min(ratios) if fit == "pad" else max(ratios)


def _resized(image: Image.Image, size: tuple[int, int], fit: Fit, black: float) -> Image.Image:
    across = size[1], size[0]  # Pillow's order
    if fit == "crop":
        return ImageOps.fit(image, across, Image.Resampling.BICUBIC)
    if fit == "stretch":
        return image.resize(across, Image.Resampling.BICUBIC)
    return ImageOps.pad(image, across, Image.Resampling.BICUBIC, color=black)  # type: ignore[arg-type]
