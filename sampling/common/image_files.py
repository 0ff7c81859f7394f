"""Images and masks as users keep them, for a model whose images are of one kind."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddpm_sa.image_format import ImageFormat, from_pil, to_tensor


def read_images(paths: Sequence[str], image_format: ImageFormat) -> Tensor:
    """Pictures, or .npy arrays (H, W, C), as tensors (N, C, H, W) in [-1, 1].

    Raises:
        ValueError: If one cannot be read, or has other channels, another size or type.
    """
    arrays = [_checked(path, _values(path), image_format) for path in paths]
    if not arrays:
        return torch.empty(0, *image_format.shape)
    return to_tensor(np.stack(arrays), image_format.value_range)


def read_mask(path: str, size: tuple[int, int]) -> Tensor:
    """A picture's bright pixels, (H, W), bool.

    Raises:
        ValueError: If it cannot be read, or is of another size.
    """
    with _opened(path) as picture:
        bright = torch.from_numpy(np.asarray(picture.convert("L")) >= 128)
    if bright.shape != size:
        raise ValueError(
            f"mask={path} of {bright.shape[0]} x {bright.shape[1]} pixels is of another size than "
            f"the model's images, {size[0]} x {size[1]}"
        )
    return bright


def _values(path: str) -> np.ndarray:
    if Path(path).suffix == ".npy":
        try:
            array = np.load(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"image={path} cannot be read: {error}") from error
        return array[..., None] if array.ndim == 2 else array
    with _opened(path) as picture:
        return from_pil([picture])[0]


def _opened(path: str) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return picture


def _checked(path: str, array: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    channels, height, width = image_format.shape
    if array.shape != (height, width, channels) or array.dtype != image_format.dtype:
        raise ValueError(
            f"image={path} has {array.shape[-1]} channels, {array.shape[0]} x {array.shape[1]} "
            f"pixels of {array.dtype}; the model's have {channels}, {height} x {width} of "
            f"{np.dtype(image_format.dtype)}"
        )
    return array
