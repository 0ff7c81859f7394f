"""Arrays on disk as images, and what every encoded image is: a header, and pixels to decode."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

# Decoded; Pillow's own limit of 89,478,485 pixels, as RGB.
MAX_BYTES = 2**28
# What arrays may hold, and as what it is kept: nothing is rounded but float64.
TYPES = {"uint8": "uint8", "uint16": "uint16"}
TYPES |= dict.fromkeys(["int8", "int16", "float16", "float32", "float64"], "float32")


class RefusedError(ValueError):
    """Why an image is not taken, to be read after its name."""


@dataclass(frozen=True)
class Header:
    """What an image is.

    Attributes:
        size: (height, width).
        dtype: uint8, uint16 or float32.
        channels: What it has; None if a conversion must be asked for.
        kind: For messages.
    """

    size: tuple[int, int]
    dtype: str
    channels: int | None
    kind: str


@dataclass(frozen=True)
class Encoded:
    """An image whose header is read; `pixels()` decodes it: (H, W, C), of the header's type."""

    header: Header
    pixels: Callable[[], np.ndarray]


def npy(file: BinaryIO, channels: int | None) -> Encoded:
    """One array, (H, W) or (H, W, C)."""
    shape, dtype = array_header(file)

    def load() -> np.ndarray:
        file.seek(0)
        return np.load(file, allow_pickle=False)

    return of_array(shape, dtype, "an array", channels, load)


def npz(file: BinaryIO, channels: int | None) -> Encoded:
    """An archive of one such array."""
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(names) != 1:
        raise RefusedError(f"is an archive of {len(names)} arrays; one image a file")
    with archive.open(names[0]) as member:
        shape, dtype = array_header(member)

    def load() -> np.ndarray:
        with archive.open(names[0]) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    return of_array(shape, dtype, "an array", channels, load)


def array_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a .npy file, read no further."""
    version = np.lib.format.read_magic(file)
    if version > (2, 0):
        raise RefusedError(f"is a .npy file of version {version}, which holds no numbers")
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, _, dtype = read[version[0]](file)
    return shape, dtype


def of_array(
    shape: tuple[int, ...],
    dtype: np.dtype | None,
    kind: str,
    channels: int | None,
    load: Callable[[], np.ndarray],
) -> Encoded:
    """An array of that shape and type, which `load` reads.

    Raises:
        RefusedError: If it is no image, or is too large.
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
            raise RefusedError("holds values that are not finite in float32")
        return array

    return Encoded(Header((height, width), TYPES[dtype.name], own, kind), pixels)


def check_bytes(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse what would take more memory than an image may."""
    needed = float(np.prod(shape, dtype=float)) * dtype.itemsize
    if needed > MAX_BYTES:
        raise RefusedError(
            f"would take {needed / 2**20:,.0f} MiB once decoded ({'x'.join(map(str, shape))}), "
            f"above the limit of {MAX_BYTES // 2**20}; cut or resize it"
        )
