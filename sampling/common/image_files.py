"""Read image and mask files, and check that they match the model's image format."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddpm_sa.data.decode import inspect
from ddpm_sa.data.resize import Fit, resize
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat, from_pil, to_tensor

RESIZE_IT = "; --fit crop resizes it"


def read_images(
    paths: Sequence[str],
    image_format: ImageFormat,
    fit: Fit | None = None,
    wanted: str = "the model's images",
    hint: str = RESIZE_IT,
) -> Tensor:
    """Read picture files, TIFFs, or .npy arrays (H, W, C), as a tensor (N, C, H, W) in [-1, 1].

    Args:
        paths: The files.
        image_format: What the images must be.
        fit: How one of another size is resized, as in training; None refuses it.
        wanted, hint: For the message: what has this format, and what to do about another size.

    Raises:
        UserError: If a file cannot be read, or differs from the format in channels, size or dtype.
    """
    arrays = []
    for path in paths:
        array = _read_array(path, image_format.channels)
        _check_format(path, array, image_format, fit, wanted, hint)
        arrays.append(array if fit is None else resize(array, image_format.size, fit))
    if not arrays:
        return torch.empty(0, *image_format.shape)
    return to_tensor(np.stack(arrays), image_format.value_range)


def read_mask(path: str, size: tuple[int, int], fit: Fit | None = None) -> Tensor:
    """Read a mask, (H, W), bool: True where the picture is bright.

    Args:
        path: The file.
        size: (H, W), of the model's images.
        fit: How one of another size is resized; None refuses it.

    Raises:
        UserError: If it cannot be read, or has another size.
    """
    with _open_picture(path) as picture:
        grey = np.asarray(picture.convert("L"))[..., None]
    if grey.shape[:2] != size:
        if fit is None:
            raise UserError(
                f"mask={path} has {grey.shape[0]} x {grey.shape[1]} pixels, another size than the "
                f"model's images, {size[0]} x {size[1]}{RESIZE_IT}"
            )
        grey = resize(grey, size, fit)
    return torch.from_numpy(grey[..., 0] >= 128)


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


def _check_format(
    path: str,
    array: np.ndarray,
    image_format: ImageFormat,
    fit: Fit | None,
    wanted: str,
    hint: str,
) -> None:
    channels, height, width = image_format.shape
    fits = array.ndim == 3 and array.shape[2] == channels and array.dtype == image_format.dtype
    right_size = array.shape[:2] == (height, width)
    if not fits or not (right_size or fit):
        raise UserError(
            f"image={path} has {array.shape[-1]} channels, {array.shape[0]} x {array.shape[1]} "
            f"pixels of {array.dtype}; {wanted} have {channels}, {height} x {width} of "
            f"{np.dtype(image_format.dtype)}{hint if fits else ''}"
        )
