"""TIFF, OME-TIFF and ImageJ stacks, read by tifffile.

tifffile names the axes: from OME-XML, ImageJ's tags, or its own; pages that nothing else describes
are the axis I.
"""

import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.containers.stack import Part, Stack, choose_member, needed_for
from ddpm_sa.data.decode import ORIENTATION, WHITE_IS_ZERO

KIND = "a TIFF"


def open_tiff(path: Path, member: str | None) -> Stack:
    """Open the series of a TIFF; `member` is its number if there are several.

    Raises:
        RefusedError: If it is several series, or is to be rotated or inverted.
    """
    with needed_for(KIND):
        import tifffile
    try:
        file = tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise RefusedError(f"is a broken TIFF: {error}") from error
    several = {str(i): series.shape for i, series in enumerate(file.series)}
    series = file.series[int(choose_member(several, member, KIND))]
    page = series.keyframe
    if page.photometric == WHITE_IS_ZERO or page.tags.valueof(ORIENTATION, 1) != 1:
        file.close()
        raise RefusedError(
            "is a TIFF that its tags rotate or invert; save it upright and not inverted"
        )
    stack = Stack(
        shape=tuple(series.shape),
        dtype=series.dtype,
        axes=series.axes,
        origin=_origin(file),
        kind=KIND,
        read=lambda part: _read(series, part),
    )
    weakref.finalize(stack, file.close)
    return stack


def is_stack(path: Path, channels: int | None) -> bool:
    """Whether a TIFF holds several images; pages are not if there are as many as `channels`."""
    try:
        import tifffile
    except ImportError:
        return False  # decode.py says what is missing, for the TIFFs that need it
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series
            shape, axes = series[0].shape, series[0].axes
    except Exception:  # decode.py names the file and the reason
        return False
    if len(series) > 1:
        return False
    are_channels = len(axes) == 3 and axes[1:] == "YX" and shape[0] == channels
    return not are_channels and bool({*axes} - {*"YXCS"})


def _origin(file: Any) -> str:
    kinds = {"OME-XML": file.is_ome, "ImageJ's tags": file.is_imagej, "its tags": file.is_shaped}
    return next((name for name, is_so in kinds.items() if is_so), "the pages of the TIFF")


def _read(series: Any, part: Part) -> np.ndarray:
    if series.dataoffset is not None:  # one after the other, uncompressed
        file = series.parent.filehandle
        dtype = series.parent.byteorder + series.dtype.char
        return file.memmap_array(dtype, series.shape, series.dataoffset)[part]
    outer = len(series.shape) - len(series.keyframe.shape)
    if outer < 0 or math.prod(series.shape[:outer]) != len(series):
        return series.asarray()[part]
    # The numbers of the pages that the part needs, in the order of the axes before the page's own.
    numbers = np.arange(len(series)).reshape(series.shape[:outer])[part[:outer]]
    pages = [_page(series, number) for number in numbers.flat]
    whole = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
    return whole[(*[slice(None)] * numbers.ndim, *part[outer:])]


def _page(series: Any, number: int) -> np.ndarray:
    page = series[int(number)]
    if page is None:
        raise RefusedError(f"is a TIFF that lacks page {number}")
    return page.asarray().reshape(series.keyframe.shape)
