"""What a source of images is: encoded images by index, with their names, labels and splits."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddpm_sa.data.arrays import Encoded
from ddpm_sa.errors import UserError

SOURCES = (
    "name a folder of images or of .parquet files, a folder that save_to_disk wrote, a .parquet "
    "file, a stack (.npy, .npz, TIFF, NIfTI, DICOM, HDF5, Zarr, FITS), mnist5k, or a data set of "
    "the Hub (OWNER/NAME)"
)
DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class Splits:
    """The splits of a source, and the one that was taken.

    Attributes:
        taken: The split, as data.split names it; of a Hub data set also a part, train[:10%].
        lengths: Number of images of each split.
        outside: Number of images in no split.
    """

    taken: str
    lengths: Mapping[str, int]
    outside: int = 0

    def describe(self, length: int, held_out: str | None = None) -> str:
        """What was taken and what was left out.

        Args:
            length: Number of images taken.
            held_out: Another split that is in use, for validation.
        """
        names = re.findall(r"[\w.]+", f"{self.taken} {held_out or ''}")
        left = [f"{name} ({count})" for name, count in self.lengths.items() if name not in names]
        left += [f"{self.outside} in no split"] if self.outside else []
        return f"{self.taken}, {length} images" + (f"; left out: {', '.join(left)}" if left else "")


@dataclass(frozen=True)
class Source:
    """Encoded images with names for error messages.

    Attributes:
        length: Number of images.
        open: Opens image i, as an encoded file, an array, or one whose header has been read, in a
            context manager.
        name: Returns the name of image i, for error messages.
        identity: A string that changes if the images may have changed.
        labels: (length,) int64, or None without labels.
        classes: Names of the labels 0, 1, ..., or None.
        splits: The splits of the source, or None if it has none.
        notes: Warnings about likely mistakes.
        report: Lines for the report of a run, such as what the axes of a stack are.
    """

    length: int
    open: Callable[[int], AbstractContextManager[BinaryIO | np.ndarray | Encoded]]
    name: Callable[[int], str]
    identity: str
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    splits: Splits | None = None
    notes: tuple[str, ...] = ()
    report: tuple[str, ...] = ()


def choose_split(
    lengths: Mapping[str, int], wanted: str, source: str, way_out: str, any_split: bool
) -> str:
    """Return the split that is wanted.

    Args:
        lengths: Number of images of each split.
        wanted: The name of a split.
        source: The source, for the error message.
        way_out: What else the user can do, for the error message.
        any_split: Whether the only split of a source may have another name.

    Raises:
        ValueError: If there is no such split, naming those that there are.
    """
    if wanted not in lengths and any_split and len(lengths) == 1:
        return next(iter(lengths))
    if wanted not in lengths:
        known = ", ".join(f"{name} ({count})" for name, count in lengths.items())
        raise UserError(
            f"data.source={source} has no split {wanted!r}, only {known}; set data.split to one of "
            f"them{way_out}"
        )
    return wanted


def fingerprint_files(files: Iterable[Path], *more: str) -> str:
    """Hash the paths, sizes and modification times of files; reading them would take too long."""
    digest = hashlib.sha256(repr(more).encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:  # reported when the file is read
            digest.update(repr((str(file.absolute()), error.errno)).encode())
            continue
        digest.update(repr((str(file.absolute()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
