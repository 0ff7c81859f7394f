"""Read image and mask files, and check that they match the model's image format."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddpm_sa.data.decode import inspect
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat, from_pil, to_tensor


def read_images(paths: Sequence[str], image_format: ImageFormat) -> Tensor:
    """Read picture files, TIFFs, or .npy arrays (H, W, C), as a tensor (N, C, H, W) in [-1, 1].

    Raises:
        ValueError: If a file cannot be read, or differs from the format in channels, size or dtype.
    """
    arrays = [
        _check_format(path, _read_array(path, image_format.channels), image_format)
        for path in paths
    ]
    if not arrays:
        return torch.empty(0, *image_format.shape)
    return to_tensor(np.stack(arrays), image_format.value_range)


def read_mask(path: str, size: tuple[int, int]) -> Tensor:
    """Read a mask, (H, W), bool: True where the picture is bright.

    Raises:
        ValueError: If it cannot be read, or has another size.
    """
    with _open_picture(path) as picture:
        bright = torch.from_numpy(np.asarray(picture.convert("L")) >= 128)
    if bright.shape != size:
        raise UserError(
            f"mask={path} has {bright.shape[0]} x {bright.shape[1]} pixels, another size than the "
            f"model's images, {size[0]} x {size[1]}"
        )
    return bright


def _read_array(path: str, channels: int) -> np.ndarray:
    if Path(path).suffix == ".npy":
        try:
            array = np.load(path)
        except (OSError, ValueError) as error:
            raise UserError(f"image={path} cannot be read: {error}") from error
        return array[..., None] if array.ndim == 2 else array
    if Path(path).suffix.lower() in (".tif", ".tiff"):
        return _read_tiff(path, channels)
    with _open_picture(path) as picture:
        return from_pil([picture])[0]


def _read_tiff(path: str, channels: int) -> np.ndarray:
    """Read a TIFF of any depth and number of channels as training does."""
    try:
        with Path(path).open("rb") as file:
            return inspect(file, channels).pixels()
    except Exception as error:  # whatever a decoder raises for a broken file
        raise UserError(f"image={path} cannot be read: {error}") from error


def _open_picture(path: str) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from error
    return picture


def _check_format(path: str, array: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    channels, height, width = image_format.shape
    if array.shape != (height, width, channels) or array.dtype != image_format.dtype:
        raise UserError(
            f"image={path} has {array.shape[-1]} channels, {array.shape[0]} x {array.shape[1]} "
            f"pixels of {array.dtype}; the model's images have {channels}, {height} x {width} of "
            f"{np.dtype(image_format.dtype)}"
        )
    return array
