"""An encoded image and its pixels, as they are stored: 8 or 16 bits, or float32.

What Pillow reads without loss, it reads; what it would cut to 8 bits is read otherwise, or refused.
The size is known, and limited, before anything is decoded.
"""

from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_sa.data.arrays import Encoded, Header, RefusedError, check_bytes, npy, npz, of_array

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
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF's numbers: orientation, photometric interpretation, bits of a value.
ORIENTATION, PHOTOMETRIC, BITS = 274, 262, 258
WHITE_IS_ZERO = 0


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
        encoded = npy(file, channels)
    elif start == b"PK\3\4":
        encoded = npz(file, channels)
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
    check_bytes((height, width, (channels if converts else own) or 4), np.dtype(dtype))

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
    return of_array((height, width, own), series[0].dtype, "a TIFF", own, load)
