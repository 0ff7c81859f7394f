"""An encoded image and its pixels, as they are stored: 8 or 16 bits, or float32.

What Pillow reads without loss, it reads; what it would cut to 8 bits is read otherwise, or refused.
The size is known, and limited, before anything is decoded.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Decoded; Pillow's own limit of 89,478,485 pixels, as RGB.
MAX_BYTES = 2**28
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Pillow's modes that are grey or colour without conversion: channels and type.
PLAIN_MODES = {
    "1": (1, "uint8"),
    "L": (1, "uint8"),
    "RGB": (3, "uint8"),
    "F": (1, "float32"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
    "I;16L": (1, "uint16"),
    "I;16N": (1, "uint16"),
}
# Those of 8 bits that it converts to grey, RGB or RGBA.
CONVERTIBLE = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"})
MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
# What arrays may hold, and as what it is kept: nothing is rounded but float64.
TYPES = {"uint8": "uint8", "uint16": "uint16"}
TYPES |= dict.fromkeys(["int8", "int16", "float16", "float32", "float64"], "float32")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF's numbers: orientation, photometric interpretation, bits of a value.
ORIENTATION, PHOTOMETRIC, BITS = 274, 262, 258
WHITE_IS_ZERO = 0


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


def inspect(file: BinaryIO, channels: int | None) -> Encoded:
    """Read an image's header.

    Args:
        file: The image, from its start; kept open until its pixels are read.
        channels: 1, 3 or 4 converts pictures of 8 bits; any other number must be the image's own;
            None takes it as it is.

    Raises:
        RefusedError: If it is no image, is too large, or could not be read without loss.
        Exception: Whatever its decoder raises, if it is broken.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"\x93NUM":
        encoded = _npy(file, channels)
    elif start == b"PK\3\4":
        encoded = _npz(file, channels)
    elif start in TIFF:
        encoded = _tiff(file, channels)
    else:
        encoded = _picture(_opened(file, FORMATS), channels)
    header = encoded.header
    if channels is not None and header.channels != channels:
        raise RefusedError(
            f"is {header.kind} and has {header.channels} channels, data.channels is {channels}; "
            "only pictures of 8 bits are converted, to 1, 3 or 4"
        )
    return encoded


def _picture(image: Image.Image, channels: int | None) -> Encoded:
    mode = image.mode
    if _is_cut(image):
        raise RefusedError(
            f"is a {image.format} of 16 bits in colour or with transparency, which Pillow cuts to "
            "8; save it as TIFF or .npy"
        )
    if mode == "I":  # 16 bits in 32: PGM, and TIFF where they are signed
        if image.format != "PPM" and _tag(image, BITS) != (16,):
            raise RefusedError("holds whole numbers of 32 bits; save it as float32")
        own, dtype = 1, "uint16" if image.format == "PPM" else "float32"
    elif mode in PLAIN_MODES:
        own, dtype = PLAIN_MODES[mode]
    elif mode in CONVERTIBLE:
        own, dtype = None, "uint8"
    else:
        raise RefusedError(f"is of Pillow's mode {mode}, which is not known here")
    if dtype != "uint8" and _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:
        raise RefusedError(f"counts its {dtype} values from white (WhiteIsZero); invert it")
    converts = dtype == "uint8" and channels in MODE_OF_CHANNELS
    width, height = image.size
    _check_bytes((height, width, (channels if converts else own) or 4), np.dtype(dtype))

    def pixels() -> np.ndarray:
        upright = ImageOps.exif_transpose(image)
        if dtype == "uint8":
            upright = _converted(upright, channels if converts else own)
        array = np.asarray(upright).astype(dtype, copy=False)
        return array.reshape(*array.shape[:2], -1)

    kind = f"a {image.format} of Pillow's mode {mode}"
    return Encoded(Header((height, width), dtype, channels if converts else own, kind), pixels)


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    """8 bits as grey, RGB or RGBA; what is transparent is put on white, as browsers show it."""
    assert channels is not None
    if channels < 4 and image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(MODE_OF_CHANNELS[channels])


def _is_cut(image: Any) -> bool:
    """Whether Pillow would read 16 bits as 8, which only its decoder's arguments tell."""
    if image.mode.startswith(("I", "F")) or not image.tile:
        return False
    arguments = image.tile[0].args
    first, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    deep_ppm = image.format == "PPM" and rest and isinstance(rest[0], int) and rest[0] > 255
    return ";16" in str(first) or bool(deep_ppm)


def _tag(image: Any, number: int) -> Any:
    return image.tag_v2.get(number) if image.format == "TIFF" else None


def _opened(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise RefusedError(
            f"is not an image that can be read ({' '.join(FORMATS)} npy npz)"
        ) from error


def _tiff(file: BinaryIO, channels: int | None) -> Encoded:
    """By Pillow where it is one image that Pillow reads without loss, else by tifffile."""
    try:
        image: Any = Image.open(file, formats=("TIFF",))
        if image.n_frames == 1 and not _is_cut(image):
            return _picture(image, channels)
    except (UnidentifiedImageError, SyntaxError):
        pass  # a layout that Pillow lacks
    file.seek(0)
    try:
        import tifffile
    except ImportError as error:
        raise RefusedError(
            "is a TIFF that needs the package tifffile: pip install 'ddpm_sa[tiff]'"
        ) from error
    try:
        series = tifffile.TiffFile(file).series
    except tifffile.TiffFileError as error:
        raise RefusedError(f"is a broken TIFF: {error}") from error
    page, axes, shape = series[0].keyframe, series[0].axes, series[0].shape
    if len(series) > 1:
        raise RefusedError(f"is a TIFF of {len(series)} images; one image a file")
    if page.photometric == WHITE_IS_ZERO or page.tags.valueof(ORIENTATION, 1) != 1:
        raise RefusedError("is a TIFF that is turned or inverted by its tags; save it upright")
    last = axes in ("YX", "YXS", "YXC")
    first = axes in ("SYX", "CYX") or (len(axes) == 3 and axes[1:] == "YX" and shape[0] == channels)
    if not (last or first):
        raise RefusedError(
            f"is a TIFF of axes {axes}, {'x'.join(map(str, shape))}; one image a file, or set "
            "data.channels if they are channels"
        )

    def load() -> np.ndarray:
        array = series[0].asarray()
        return np.moveaxis(array, 0, -1) if first else array

    height, width, own = (*shape[1:], shape[0]) if first else (*shape, 1)[:3]
    return _array((height, width, own), series[0].dtype, "a TIFF", own, load)


def _npy(file: BinaryIO, channels: int | None) -> Encoded:
    shape, dtype = array_header(file)

    def load() -> np.ndarray:
        file.seek(0)
        return np.load(file, allow_pickle=False)

    return _array(shape, dtype, "an array", channels, load)


def _npz(file: BinaryIO, channels: int | None) -> Encoded:
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(names) != 1:
        raise RefusedError(f"is an archive of {len(names)} arrays; one image a file")
    with archive.open(names[0]) as member:
        shape, dtype = array_header(member)

    def load() -> np.ndarray:
        with archive.open(names[0]) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    return _array(shape, dtype, "an array", channels, load)


def array_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a .npy file, read no further."""
    version = np.lib.format.read_magic(file)
    if version > (2, 0):
        raise RefusedError(f"is a .npy file of version {version}, which holds no numbers")
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, _, dtype = read[version[0]](file)
    return shape, dtype


def _array(
    shape: tuple[int, ...],
    dtype: np.dtype | None,
    kind: str,
    channels: int | None,
    load: Callable[[], np.ndarray],
) -> Encoded:
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
    _check_bytes((height, width, own), dtype)

    def pixels() -> np.ndarray:
        array = load().reshape(height, width, own).astype(TYPES[dtype.name])
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise RefusedError("holds values that are not finite in float32")
        return array

    return Encoded(Header((height, width), TYPES[dtype.name], own, kind), pixels)


def _check_bytes(shape: tuple[int, ...], dtype: np.dtype) -> None:
    needed = float(np.prod(shape, dtype=float)) * dtype.itemsize
    if needed > MAX_BYTES:
        raise RefusedError(
            f"would take {needed / 2**20:,.0f} MiB once decoded ({'x'.join(map(str, shape))}), "
            f"above the limit of {MAX_BYTES // 2**20}; cut or resize it"
        )
