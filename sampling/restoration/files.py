"""Files of measurements, and of what is restored from them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat, from_tensor
from ddpm_sa.restoration import FourierMask, LinearOperator, Mask
from sampling.common.image_files import read_images
from sampling.common.sample_folder import save_npy, save_values

CLEAN = "; with --degrade true a clean image is measured first"


def read_measurements(
    paths: Sequence[str], operator: LinearOperator, image_format: ImageFormat
) -> Tensor:
    """Read measurements, (N, ...).

    Each is a .npy file of float32 as the operator gives it; or, if the measurement is an image, a
    file of an image in the values of the model's (for a mask the whole image: what it hides does
    not matter); or, of a FourierMask, a .npy file of complex numbers: the whole k-space with
    frequency 0 in the centre, in units of the unitary transform of images in [-1, 1].

    Raises:
        UserError: If a file cannot be read, or does not fit the operator.
    """
    return torch.stack([_read_measurement(path, operator, image_format) for path in paths])


def _read_measurement(path: str, operator: LinearOperator, image_format: ImageFormat) -> Tensor:
    shape = operator.measurement_shape()
    array = _read_array(path) if Path(path).suffix == ".npy" else None
    if array is not None and array.shape == shape and array.dtype == np.float32:
        return torch.from_numpy(array)
    if isinstance(operator, FourierMask) and array is not None and np.iscomplexobj(array):
        return _known_frequencies(path, array, operator)
    if isinstance(operator, Mask):
        return operator(read_images([path], image_format))[0]
    if not operator.gives_images:
        found = "a picture" if array is None else f"{array.dtype} of shape {array.shape}"
        raise UserError(
            f"image={path} is {found}, and must be a .npy file of float32 of shape {shape}{CLEAN}"
        )
    channels, height, width = shape
    measured = replace(image_format, channels=channels, size=(height, width), labels=None)
    return read_images([path], measured, wanted="measurements of this task", hint=CLEAN)[0]


def _known_frequencies(path: str, array: np.ndarray, operator: FourierMask) -> Tensor:
    array = array[None] if array.ndim == 2 else array
    if array.shape != operator.image_shape:
        raise UserError(
            f"image={path} is k-space of shape {array.shape}, and must be of "
            f"{operator.image_shape}, the shape of the model's images"
        )
    centred = torch.from_numpy(array.astype(np.complex64))
    return torch.view_as_real(torch.fft.ifftshift(centred, dim=(1, 2))[:, operator.known])


def _read_array(path: str) -> np.ndarray:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"image={path} cannot be read: {error}") from error


def picture_of(y: Tensor, operator: LinearOperator) -> Tensor:
    """Measurements as images, (N, D, P, Q): themselves if they are any, or else A^+ y."""
    return y if operator.gives_images else operator.pseudo_inverse(y)


def file_names(count: int, num_samples: int, suffix: str) -> list[str]:
    """The files of a restoration of so many images."""
    kinds = [f"{j:03d}{suffix}" for j in range(num_samples)]
    kinds += [f"mean{suffix}", "measurement.npy", *(["std.npy"] if num_samples > 1 else [])]
    return [f"{i:06d}-{kind}" for i in range(count) for kind in kinds]


def save_restored(folder: Path, y: Tensor, samples: Tensor, image_format: ImageFormat) -> None:
    """Write samples, their mean and deviation, and the measurements.

    Args:
        folder: Where to.
        y: (N, ...).
        samples: (N, S, C, H, W).
        image_format: Of the model.
    """
    low, high = image_format.value_range
    for i, (measurement, of_image) in enumerate(zip(y, samples, strict=True)):
        save_npy(folder / f"{i:06d}-measurement.npy", measurement.numpy())
        named = {f"{j:03d}": sample for j, sample in enumerate(of_image)}
        for name, image in (named | {"mean": of_image.mean(0)}).items():
            path = folder / f"{i:06d}-{name}{image_format.suffix}"
            save_values(path, from_tensor(image, image_format), image_format)
        if len(of_image) > 1:
            deviation = rearrange(of_image.std(0), "c h w -> h w c") * (high - low) / 2
            save_npy(folder / f"{i:06d}-std.npy", deviation.numpy())
