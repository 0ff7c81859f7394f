"""What a source of images is: encoded images by index, with their names and labels."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

SOURCES = (
    "name a folder of images or of .parquet files, a .parquet file, a .npy file, mnist5k, or a "
)
SOURCES += "data set of the Hub (OWNER/NAME)"


@dataclass(frozen=True)
class Source:
    """Encoded images with names for error messages.

    Attributes:
        length: Number of images.
        open: Opens image i, as an encoded file or an array, in a context manager.
        name: Returns the name of image i, for error messages.
        identity: A string that changes if the images may have changed.
        labels: (length,) int64, or None without labels.
        classes: Names of the labels 0, 1, ..., or None.
    """

    length: int
    open: Callable[[int], AbstractContextManager[BinaryIO | np.ndarray]]
    name: Callable[[int], str]
    identity: str
    labels: np.ndarray | None = None
    classes: list[str] | None = None


def fingerprint_files(files: Iterable[Path], *more: str) -> str:
    """Hash the paths, sizes and modification times of files; reading them would take too long."""
    digest = hashlib.sha256(repr(more).encode())
    for file in files:
        status = file.stat()
        digest.update(repr((str(file.absolute()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
