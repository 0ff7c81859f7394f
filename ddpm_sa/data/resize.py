"""Resize images at their own depth."""

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

Fit = Literal["crop", "pad", "stretch"]


def resize(image: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Resize an image with an antialiased bicubic filter; one of that size is returned unchanged.

    Args:
        image: uint8, uint16 or float32, (H, W, C).
        size: (height, width) of the result.
        fit: `crop`: resize the shorter side to fit and crop the centre. `pad`: resize the longer
            side to fit and pad with black (for floats, the image's lowest value). `stretch`:
            resize each side independently.

    Returns:
        (height, width, C), of the same dtype. Bicubic filters overshoot: 8-bit values are clipped
        to 0 .. 255, as Pillow does, other values to the range of the image.
    """
    if image.shape[:2] == size:
        return image
    if image.dtype == np.uint8 and image.shape[2] in (1, 3, 4):
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        return np.asarray(_resize_picture(picture, size, fit, 0)).reshape(*size, -1)
    is_float = image.dtype == np.float32
    low, high = image.min().item(), image.max().item()
    black = low if is_float else 0
    # Pillow resizes 32-bit floats like 8 bits, without the rounding.
    planes = [
        _resize_picture(Image.fromarray(plane.astype(np.float32)), size, fit, black)
        for plane in np.moveaxis(image, 2, 0)
    ]
    values = np.stack([np.asarray(plane) for plane in planes], axis=2)
    values = values.clip(black if fit == "pad" else low, high)
    return (values if is_float else values.round()).astype(image.dtype)


def scale(old: tuple[int, int], new: tuple[int, int], fit: Fit) -> float:
    """The factor by which `resize` scales an image; above 1 it is enlarged."""
    ratios = [after / before for before, after in zip(old, new, strict=True)]
    return min(ratios) if fit == "pad" else max(ratios)


def _resize_picture(
    image: Image.Image, size: tuple[int, int], fit: Fit, black: float
) -> Image.Image:
    width_height = size[1], size[0]  # Pillow's order
    if fit == "crop":
        return ImageOps.fit(image, width_height, Image.Resampling.BICUBIC)
    if fit == "stretch":
        return image.resize(width_height, Image.Resampling.BICUBIC)
    return ImageOps.pad(image, width_height, Image.Resampling.BICUBIC, color=black)  # type: ignore[arg-type]
