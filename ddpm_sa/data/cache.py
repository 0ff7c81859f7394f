"""A cache folder that one process creates once, and all processes read.

A folder appears in the cache complete or not at all; a damaged one is created again.
"""

import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from ddpm_sa.errors import UserError

INDEX, ARRAY = "index.json", "images.npy"
CHUNK = 2**24
PATIENCE = 300.0  # seconds for process 0 to import its libraries and begin


class Writer:
    """Write the array of a cache folder image by image, and compute its checksum.

    Not through a memory map: on a full disk, that ends in a signal and this in an OSError.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: str):
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        self.file, self.blank = file, np.zeros(shape[1:], dtype)
        self.length, self.written, self.checksum = shape[0], 0, 0

    def write(self, i: int, image: np.ndarray) -> None:
        """Write image i. Indices must increase; images that are skipped are black."""
        self._fill(i)
        self._append(image)

    def finish(self) -> int:
        """Flush the complete array to the disk, and return its checksum."""
        self._fill(self.length)
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.checksum

    def _fill(self, end: int) -> None:
        while self.written < end:
            self._append(self.blank)

    def _append(self, image: np.ndarray) -> None:
        data = np.ascontiguousarray(image).data
        self.file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.written += 1


def cache_folder(cache_dir: str | None) -> Path:
    """The cache folder: `cache_dir` if given, else $XDG_CACHE_HOME/ddpm_sa or ~/.cache/ddpm_sa."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "ddpm_sa"


def load_or_create(
    folder: Path, make: Callable[[Path], dict[str, Any]]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Return the index that `make` returned and the array that it wrote, now or in an earlier run.

    Process 0 of each machine calls `make`; the other processes wait for it.

    Args:
        folder: The cache folder; its name must identify the content.
        make: Writes into the folder it is given and returns the index, which is saved as JSON.
            If it wrote an array with `Writer`, the index has the array's checksum under
            "checksum", else None.

    Raises:
        ValueError: If the folder cannot be written, or process 0 is gone.
    """
    if (cached := _read(folder)) is not None:
        return cached
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f"{folder.name}.lock")
        if int(os.environ.get("LOCAL_RANK", "0")):
            return _wait(folder, lock)
        with lock:  # the operating system releases the lock of a process that dies
            if (cached := _read(folder)) is None:  # another run may have created it meanwhile
                _write(folder, make)
                cached = _read(folder)
    # filelock raises NotImplementedError where the file system has no locks.
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"decoded images cannot be kept in {folder.parent}: {error}; set data.cache_dir to "
            "another folder, or data.memory to 0 to decode images each time they are read"
        ) from error
    assert cached is not None
    return cached


def _wait(folder: Path, lock: FileLock) -> tuple[dict[str, Any], np.ndarray | None]:
    """Wait until process 0 of this machine has created the folder, as long as it holds the lock."""
    deadline = time.monotonic() + PATIENCE
    while (cached := _read(folder)) is None:
        try:
            with lock.acquire(timeout=0):
                pass
            if time.monotonic() > deadline and (cached := _read(folder)) is None:
                raise UserError(
                    f"process 0 of this machine has not created {folder} and is not working on it: "
                    "it has ended or was never started. See its messages; a process that runs "
                    "alone must not have LOCAL_RANK set"
                )
        except Timeout:
            deadline = time.monotonic() + PATIENCE
        time.sleep(0.2)  # the launcher ends this process if another fails
    return cached


def _write(folder: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        index = make(new)
        with (new / INDEX).open("w") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)


def _read(folder: Path) -> tuple[dict[str, Any], np.ndarray | None] | None:
    """Read a cache folder; None if it does not exist or is damaged."""
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["checksum"] is None:
            return index, None
        # A plain view: numpy's memmap class takes several times as long to index.
        array = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return (index, array) if _checksum(array) == index["checksum"] else None


def _checksum(array: np.ndarray) -> int:
    checksum, data = 0, array.reshape(-1).view(np.uint8).data
    for start in range(0, len(data), CHUNK):
        checksum = zlib.crc32(data[start : start + CHUNK], checksum)
    return checksum
