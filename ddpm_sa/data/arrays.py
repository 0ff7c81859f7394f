"""Encoded images (a header, and pixels to decode), and the readers of .npy and .npz files."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

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
        return load().reshape(height, width, own).astype(TYPES[dtype.name])

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


def check_finite(image: np.ndarray, nan: float | None) -> np.ndarray:
    """Return an image whose NaN are replaced by `nan`, unless that is None.

    Raises:
        RefusedError: If a value is not finite.
    """
    if image.dtype != np.float32 or np.isfinite(image).all():
        return image
    if nan is not None:
        image = np.where(np.isnan(image), np.float32(nan), image)
    if not np.isfinite(image).all():
        way_out = "; set data.nan to what NaN stands for" if np.isnan(image).any() else ""
        raise RefusedError(f"has values that are not finite in float32{way_out}")
    return image
