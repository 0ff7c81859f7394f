"""Decode images at their own depth: 8 or 16 bits, or float32.

Pillow reads the images that it reads without loss. Images that it would reduce to 8 bits are read
by another library or refused. The size is read, and limited, before anything is decoded.
"""

from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_sa.data.arrays import (
    Encoded,
    Header,
    RefusedError,
    check_bytes,
    check_finite,
    inspect_array,
    inspect_npy,
    inspect_npz,
)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Pillow's modes that need no conversion -> channels and dtype.
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
# Pillow's 8-bit modes that it converts to grey, RGB or RGBA.
CONVERTIBLE = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"})
MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Numbers of TIFF tags: orientation, photometric interpretation, bits per sample.
ORIENTATION, PHOTOMETRIC, BITS = 274, 262, 258
WHITE_IS_ZERO = 0


def inspect(
    image: BinaryIO | np.ndarray | Encoded, channels: int | None, nan: float | None = None
) -> Encoded:
    """Read the header of an encoded image, or of an array.

    Args:
        image: A file at its start, which must stay open until the pixels are read; or one image as
            an array, (H, W) or (H, W, C); or one whose header has been read.
        channels: 1, 3 or 4 converts 8-bit pictures to so many channels; any other number must be
            the image's own; None keeps the image's channels.
        nan: The value that replaces NaN; None refuses NaN.

    Raises:
        RefusedError: If it is not an image, is too large, or cannot be read without loss.
        Exception: Whatever the decoder raises for a broken file.
    """
    if isinstance(image, Encoded):
        encoded = image
    elif isinstance(image, np.ndarray):
        encoded = inspect_array(image.shape, image.dtype, "an array", channels, lambda: image)
    else:
        encoded = _inspect_file(image, channels)
    header = encoded.header
    if channels is not None and header.channels != channels:
        raise RefusedError(
            f"is {header.kind} and has {header.channels} channels, data.channels is {channels}; "
            "only 8-bit pictures are converted, to 1, 3 or 4 channels"
        )
    return Encoded(header, lambda: check_finite(encoded.pixels(), nan))


def _inspect_file(file: BinaryIO, channels: int | None) -> Encoded:
    start = file.read(4)
    file.seek(0)
    if start == b"\x93NUM":
        return inspect_npy(file, channels)
    if start == b"PK\3\4":
        return inspect_npz(file, channels)
    if start in TIFF:
        return _inspect_tiff(file, channels)
    return _inspect_picture(_open_picture(file, FORMATS), channels)


def _inspect_picture(image: Image.Image, channels: int | None) -> Encoded:
    mode = image.mode
    if _loses_depth(image):
        raise RefusedError(
            f"is a {image.format} of 16 bits in colour or with transparency, which Pillow cuts to "
            "8; save it as TIFF or .npy"
        )
    if mode == "I":  # 16 bits stored as 32: PGM, and TIFF if signed
        if image.format != "PPM" and _tag(image, BITS) != (16,):
            raise RefusedError("has 32-bit integer values; save it as float32")
        own, dtype = 1, "uint16" if image.format == "PPM" else "float32"
    elif mode in PLAIN_MODES:
        own, dtype = PLAIN_MODES[mode]
    elif mode in CONVERTIBLE:
        own, dtype = None, "uint8"
    else:
        raise RefusedError(
            f"is of Pillow's mode {mode}, which is not supported; save it as PNG or .npy"
        )
    if dtype != "uint8" and _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:
        raise RefusedError(f"stores its {dtype} values inverted (WhiteIsZero); invert it")
    converts = dtype == "uint8" and channels in MODE_OF_CHANNELS
    width, height = image.size
    check_bytes((height, width, (channels if converts else own) or 4), np.dtype(dtype))

    def pixels() -> np.ndarray:
        upright = ImageOps.exif_transpose(image)
        if dtype == "uint8":
            upright = _convert(upright, channels if converts else own)
        array = np.asarray(upright).astype(dtype, copy=False)
        return array.reshape(*array.shape[:2], -1)

    kind = f"a {image.format} of Pillow's mode {mode}"
    return Encoded(Header((height, width), dtype, channels if converts else own, kind), pixels)


def _convert(image: Image.Image, channels: int | None) -> Image.Image:
    """Convert an 8-bit picture to grey, RGB or RGBA; transparency becomes white, as in browsers."""
    assert channels is not None
    if channels < 4 and image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(MODE_OF_CHANNELS[channels])


def _loses_depth(image: Any) -> bool:
    """Whether Pillow would read 16 bits as 8, which only the arguments of its decoder show."""
    if image.mode.startswith(("I", "F")) or not image.tile:
        return False
    arguments = image.tile[0].args
    first, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    deep_ppm = image.format == "PPM" and rest and isinstance(rest[0], int) and rest[0] > 255
    return ";16" in str(first) or bool(deep_ppm)


def _tag(image: Any, number: int) -> Any:
    return image.tag_v2.get(number) if image.format == "TIFF" else None


def _open_picture(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise RefusedError(
            f"is not an image that can be read ({' '.join(FORMATS)} npy npz)"
        ) from error


def _inspect_tiff(file: BinaryIO, channels: int | None) -> Encoded:
    """Inspect a TIFF with Pillow if Pillow reads it without loss, else with tifffile."""
    try:
        image: Any = Image.open(file, formats=("TIFF",))
        if image.n_frames == 1 and not _loses_depth(image):
            return _inspect_picture(image, channels)
    except (UnidentifiedImageError, SyntaxError):
        pass  # a layout that Pillow does not read
    file.seek(0)
    try:
        import tifffile
    except ImportError as error:
        raise RefusedError(
            "is a TIFF that needs the package tifffile: pip install tifffile"
        ) from error
    try:
        series = tifffile.TiffFile(file).series
    except tifffile.TiffFileError as error:
        raise RefusedError(f"is a broken TIFF: {error}") from error
    page, axes, shape = series[0].keyframe, series[0].axes, series[0].shape
    if len(series) > 1:
        raise RefusedError(f"is a TIFF of {len(series)} images; save one image per file")
    if page.photometric == WHITE_IS_ZERO or page.tags.valueof(ORIENTATION, 1) != 1:
        raise RefusedError(
            "is a TIFF that its tags rotate or invert; save it upright and not inverted"
        )
    last = axes in ("YX", "YXS", "YXC")
    first = axes in ("SYX", "CYX") or (len(axes) == 3 and axes[1:] == "YX" and shape[0] == channels)
    if not (last or first):
        raise RefusedError(
            f"is a TIFF of axes {axes}, {'x'.join(map(str, shape))}; save one image per file, or "
            f"set data.channels to {shape[0]} if they are channels"
        )

    def load() -> np.ndarray:
        array = series[0].asarray()
        return np.moveaxis(array, 0, -1) if first else array

    height, width, own = (*shape[1:], shape[0]) if first else (*shape, 1)[:3]
    return inspect_array((height, width, own), series[0].dtype, "a TIFF", own, load)
