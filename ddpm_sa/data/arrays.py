"""Encoded images (a header, and pixels to decode), and the readers of .npy and .npz files."""

import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddpm_sa.data.sources.source import Source, fingerprint_files
from ddpm_sa.errors import UserError

# Of a decoded image: about Pillow's limit of 89,478,485 pixels, as RGB.
MAX_BYTES = 2**28
# The dtypes that an array may have -> the dtype in which it is kept. Only float64 is rounded.
TYPES = {"uint8": "uint8", "uint16": "uint16"}
TYPES |= dict.fromkeys(["int8", "int16", "float16", "float32", "float64"], "float32")


class RefusedError(ValueError):
    """An image is refused; the message is the reason, to be printed after the name of the image."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded.

    Attributes:
        size: (height, width).
        dtype: uint8, uint16 or float32.
        channels: The number of channels; None if the user must choose a conversion.
        kind: A description for error messages.
    """

    size: tuple[int, int]
    dtype: str
    channels: int | None
    kind: str


@dataclass(frozen=True)
class Encoded:
    """An image whose header has been read. `pixels()` decodes it: (H, W, C), of its dtype."""

    header: Header
    pixels: Callable[[], np.ndarray]


def inspect_npy(file: BinaryIO, channels: int | None) -> Encoded:
    """Inspect a .npy file of one image, (H, W) or (H, W, C)."""
    shape, dtype = read_array_header(file)

    def load() -> np.ndarray:
        file.seek(0)
        return np.load(file, allow_pickle=False)

    return inspect_array(shape, dtype, "an array", channels, load)


def inspect_npz(file: BinaryIO, channels: int | None) -> Encoded:
    """Inspect a .npz archive of one image, (H, W) or (H, W, C)."""
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(names) != 1:
        raise RefusedError(f"is an archive of {len(names)} arrays; save one image per file")
    with archive.open(names[0]) as member:
        shape, dtype = read_array_header(member)

    def load() -> np.ndarray:
        with archive.open(names[0]) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    return inspect_array(shape, dtype, "an array", channels, load)


def read_array_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and dtype of a .npy file, and nothing beyond its header."""
    version = np.lib.format.read_magic(file)
    if version > (2, 0):
        raise RefusedError(f"is a .npy file of version {version}, which does not hold numbers")
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version[0]](file)
    return shape, dtype


def inspect_array(
    shape: tuple[int, ...],
    dtype: np.dtype | None,
    kind: str,
    channels: int | None,
    load: Callable[[], np.ndarray],
) -> Encoded:
    """Check that an array of this shape and dtype is an image; `load` reads the array.

    Raises:
        RefusedError: If it is not an image, or is too large.
    """
    kind = f"{kind} of {dtype} and shape {shape}"
    if dtype is None or dtype.name not in TYPES:
        raise RefusedError(f"is {kind}; save it as uint8, uint16 or float32")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise RefusedError(f"is {kind}; an image is (height, width) or (height, width, channels)")
    height, width, own = (*shape, 1)[:3]
    if own > height and own != channels:
        raise RefusedError(
            f"is {kind}, which looks like channels first; an image is (height, width, channels). "
            f"If it has {own} channels, set data.channels"
        )
    check_bytes((height, width, own), dtype)

    def pixels() -> np.ndarray:
        array = load().reshape(height, width, own).astype(TYPES[dtype.name])
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise RefusedError("has values that are not finite in float32")
        return array

    return Encoded(Header((height, width), TYPES[dtype.name], own, kind), pixels)


def check_bytes(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Check that an image fits the memory limit once decoded.

    Raises:
        RefusedError: If it would take more than `MAX_BYTES`.
    """
    needed = float(np.prod(shape, dtype=float)) * dtype.itemsize
    if needed > MAX_BYTES:
        raise RefusedError(
            f"would take {needed / 2**20:,.0f} MiB once decoded ({'x'.join(map(str, shape))}), "
            f"above the limit of {MAX_BYTES // 2**20}; crop or resize it"
        )


def open_array(path: Path, with_labels: bool) -> Source:
    """Open a .npy file of all images, (N, H, W) or (N, H, W, C)."""
    try:
        with path.open("rb") as file:
            shape, _ = read_array_header(file)
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"data.source={path} cannot be read: {error}") from error
    if len(shape) not in (3, 4) or shape[0] < 1:
        raise UserError(f"data.source={path} has shape {shape}, not (N, H, W) or (N, H, W, C)")
    if with_labels:
        raise UserError(f"data.source={path} has no labels; set data.class_conditional false")

    return Source(
        length=shape[0],
        open=lambda i: nullcontext(np.asarray(images[i])),
        name=lambda i: f"image {i} of {path}",
        identity=fingerprint_files([path]),
    )
