"""DICOM files, read by pydicom, with the values of their modality: Hounsfield units for CT.

Only the tags below are read, so nothing about a patient is ever in memory; messages contain no text
of pydicom, which may quote a tag.
"""

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.containers.stack import Part, Stack, needed_for, refuse_member

KIND = "a DICOM image"
TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
PREAMBLE = 128  # bytes before the letters DICM


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do; many have no suffix."""
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False


def open_dicom(path: Path, member: str | None) -> Stack:
    """Open an image of one or more frames.

    Raises:
        RefusedError: If it is not an image that can be shown, or its compression needs a decoder
            that is not installed.
    """
    with needed_for(KIND):
        import pydicom
    refuse_member(member, KIND)
    _silence()
    try:
        tags: list[Any] = list(TAGS)
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        frames = int(header.get("NumberOfFrames") or 1)
        shape = (frames,) * (frames > 1) + (
            int(header.get("Rows", 0)),
            int(header.get("Columns", 0)),
        )
        samples = int(header.get("SamplesPerPixel", 1))
        dtype = _dtype(header)
        place = _place(header)
        syntax = header.file_meta.TransferSyntaxUID
    except OSError:
        raise
    except Exception as error:
        raise RefusedError(f"is a corrupt DICOM file ({type(error).__name__})") from error
    if 0 in shape:
        raise RefusedError(f"is a DICOM file without an image ({_describe_class(header)})")
    _check_meaning(header)
    _check_decoder(syntax)
    return Stack(
        shape=shape + (samples,) * (samples > 1),
        dtype=dtype,
        axes="Z" * (frames > 1) + "YX" + "S" * (samples > 1),
        origin="the DICOM standard",
        kind=KIND,
        read=lambda part: _read(path, header, part),
        place=place,
    )


def _silence() -> None:
    """Keep pydicom's warnings and log, which may quote tags, off the terminal."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")


def _describe_class(header: Any) -> str:
    uid = header.get("SOPClassUID")
    return uid.name if uid else "of no SOP class"


def _check_meaning(header: Any) -> None:
    meaning = str(header.get("PhotometricInterpretation"))
    if meaning != "MONOCHROME2" and meaning != "RGB" and not meaning.startswith("YBR"):
        raise RefusedError(
            f"is {KIND} of photometric interpretation {meaning[:20]!r}; convert it to MONOCHROME2 "
            "or RGB (MONOCHROME1 is inverted, PALETTE COLOR holds indices)"
        )


def _check_decoder(syntax: Any) -> None:
    from pydicom.pixels import get_decoder

    if not syntax.is_compressed:
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise RefusedError(f"is compressed as {syntax.name}, which pydicom cannot read") from None
    if not available:
        raise RefusedError(_needs_decoder(syntax))


def _needs_decoder(syntax: Any) -> str:
    return (
        f"is compressed as {syntax.name}, which no installed decoder reads: pip install "
        "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it"
    )


def _dtype(header: Any) -> np.dtype:
    """The dtype of the values, as pydicom gives them."""
    if header.get("ModalityLUTSequence"):
        return np.dtype(f"u{header.ModalityLUTSequence[0].LUTDescriptor[2] // 8}")
    if _rescaling(header, 0) is not None:
        return np.dtype("f8")
    letter = "i" if header.get("PixelRepresentation") else "u"
    return np.dtype(f"{letter}{max(int(header.get('BitsAllocated', 16)) // 8, 1)}")


def _rescaling(header: Any, frame: int) -> tuple[float, float] | None:
    """The slope and intercept of a frame; those of an enhanced image are in functional groups."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    groups = [header, *per_frame[frame : frame + 1], *shared[:1]]
    for group in groups:
        values = (group.get("PixelValueTransformationSequence") or [group])[0]
        if "RescaleSlope" in values and "RescaleIntercept" in values:
            return float(values.RescaleSlope), float(values.RescaleIntercept)
    return None


def _place(header: Any) -> tuple[str, tuple[float, ...]] | None:
    """The series, hashed, and the place there: along the normal of its planes, then by number."""
    series = header.get("SeriesInstanceUID")
    if not series:
        return None
    number = float(header.get("InstanceNumber") or 0)
    position = header.get("ImagePositionPatient")
    orientation = header.get("ImageOrientationPatient")
    along = 0.0
    if position and orientation and len(orientation) == 6:
        rows, columns = np.array(orientation, dtype=float).reshape(2, 3)
        along = round(float(np.cross(rows, columns) @ np.array(position, dtype=float)), 3)
    return hashlib.sha256(str(series).encode()).hexdigest(), (along, number)


def _read(path: Path, header: Any, part: Part) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, pixel_array

    frames = int(header.get("NumberOfFrames") or 1) > 1
    frame, inner = (part[0], part[1:]) if frames else (0, part)
    if isinstance(frame, slice):
        raise RefusedError("is a DICOM image whose frames count images; correct data.axes")
    try:
        values = pixel_array(path, index=frame)
    except OSError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        syntax = header.file_meta.TransferSyntaxUID
        compressed = f" {_needs_decoder(syntax)}; or it" if syntax.is_compressed else ""
        raise RefusedError(
            f"cannot be decoded:{compressed} is damaged or incomplete ({type(error).__name__})"
        ) from error
    rescaling = _rescaling(header, frame)
    if header.get("ModalityLUTSequence") or rescaling is None:
        return apply_modality_lut(values, header)[inner]
    slope, intercept = rescaling
    return values[inner].astype(np.float64) * slope + intercept
