"""All samples of a folder as one stack, in the values of the training images."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from ddpm_sa.errors import UserError
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.image_format import ImageFormat
from sampling.common.sample_folder import load_image

StackFormat = Literal["tiff", "nifti", "npy"]
FILES = {"tiff": "images.tif", "nifti": "images.nii", "npy": "images.npy"}
PACKAGES = {"tiff": "tifffile", "nifti": "nibabel"}
LONGEST_NIFTI_1 = 2**15 - 1  # its header's lengths have 16 bits


def require_writer(kind: str) -> None:
    """Check early that the package that writes a kind of stack is installed.

    Raises:
        ValueError: If it is not.
    """
    package = PACKAGES.get(kind)
    if package is None:
        return
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"format={kind} needs the package {package}: pip install 'ddpm_sa[science]'"
        ) from error


def save_stack(
    folder: Path, indices: Sequence[int], image_format: ImageFormat, kind: StackFormat
) -> None:
    """Write these images as one file, keeping one in memory at a time.

    Args:
        folder: Holds the images.
        indices: Which of them.
        image_format: Their format, which gives the dtype.
        kind: tiff: (N, H, W) with the axes ZYX, (N, C, H, W) with ZCYX, or (N, H, W, 3 or 4) with
            ZYXS in images.tif. nifti: (W, H, N), or (W, H, N, 1, C), in images.nii with the
            identity as affine. npy: (N, H, W, C) in images.npy.
    """
    writers = {"tiff": _write_tiff, "nifti": _write_nifti, "npy": _write_npy}

    def images() -> Iterator[np.ndarray]:
        return (load_image(folder, index, image_format) for index in indices)

    with write_atomically(folder / FILES[kind]) as partial, partial.open("wb") as file:
        writers[kind](file, images, len(indices), image_format)


Images = Callable[[], Iterator[np.ndarray]]


def _write_tiff(file: BinaryIO, images: Images, number: int, image_format: ImageFormat) -> None:
    import tifffile

    channels, height, width = image_format.shape
    colour = channels in (3, 4)
    if colour:
        axes, shape = "ZYXS", (number, height, width, channels)
        pages = (image for image in images())
    else:
        axes, shape = ("ZYX", (number, height, width))
        if channels > 1:
            axes, shape = "ZCYX", (number, channels, height, width)
        pages = (plane for image in images() for plane in np.moveaxis(image, 2, 0))
    tifffile.imwrite(
        file,
        pages,
        shape=shape,
        dtype=image_format.dtype,
        photometric="rgb" if colour else "minisblack",
        metadata={"axes": axes},
        bigtiff=np.prod(shape, dtype=float) * image_format.bit_depth / 8 > 2**31,
    )


def _write_nifti(file: BinaryIO, images: Images, number: int, image_format: ImageFormat) -> None:
    import nibabel

    channels, height, width = image_format.shape
    kind = nibabel.Nifti1Header if number <= LONGEST_NIFTI_1 else nibabel.Nifti2Header
    header = kind()
    header.set_data_dtype(image_format.dtype)
    header.set_data_shape((width, height, number) + (1, channels) * (channels > 1))
    header.set_sform(np.eye(4), code="scanner")
    header.set_xyzt_units("mm")
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header.write_to(file)
    file.write(bytes(header.single_vox_offset - file.tell()))
    # The first axis varies fastest, and the channels slowest.
    for channel in range(channels):
        for image in images():
            file.write(np.ascontiguousarray(image[..., channel]).tobytes())


def _write_npy(file: BinaryIO, images: Images, number: int, image_format: ImageFormat) -> None:
    channels, height, width = image_format.shape
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(image_format.dtype)),
        "fortran_order": False,
        "shape": (number, height, width, channels),
    }
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
    for image in images():
        file.write(np.ascontiguousarray(image).tobytes())
