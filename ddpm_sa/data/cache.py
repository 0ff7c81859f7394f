"""A folder in the cache that is made once, by one process, and read by all.

It appears whole or not at all; one that is damaged is made anew.
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

INDEX, ARRAY = "index.json", "images.npy"
CHUNK = 2**24
PATIENCE = 300.0  # seconds for process 0 to import its libraries and begin


class Writer:
    """Writes the array of a store, an image at a time, and sums it up.

    Not through a memory map: on a full disk that ends in a signal, this in an error.
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
        """Image i, after all before it; those left out are black."""
        self._fill(i)
        self._append(image)

    def finish(self) -> int:
        """The checksum of the whole array, which is on the disk then."""
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
    """data.cache_dir, or where the system keeps what can be made again."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "ddpm_sa"


def stored(
    folder: Path, make: Callable[[Path], dict[str, Any]]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """What `make` returned and the array that it wrote, now or in an earlier run.

    The first process of a machine makes it; the others wait for it.

    Args:
        folder: Where it is kept; the name says what it is made of.
        make: Writes into the folder it is given, maybe by a `Writer`, whose checksum is then
            "checksum" in what it returns.

    Raises:
        ValueError: If it cannot be written.
    """
    if (found := _read(folder)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f"{folder.name}.lock")
        if int(os.environ.get("LOCAL_RANK", "0")):
            return _wait(folder, lock)
        with lock:  # the system releases the lock of a process that dies
            if (found := _read(folder)) is None:  # another run may have made it meanwhile
                _write(folder, make)
                found = _read(folder)
    # filelock raises NotImplementedError where the file system has no locks.
    except (OSError, NotImplementedError) as error:
        raise ValueError(
            f"decoded images cannot be kept in {folder.parent}: {error}; name another place by "
            "data.cache_dir, or set data.memory 0 to decode them each time"
        ) from error
    assert found is not None
    return found


def _wait(folder: Path, lock: FileLock) -> tuple[dict[str, Any], np.ndarray | None]:
    """Wait for process 0 of this machine to make the folder, for as long as it holds the lock."""
    deadline = time.monotonic() + PATIENCE
    while (found := _read(folder)) is None:
        try:
            with lock.acquire(timeout=0):
                pass
            if time.monotonic() > deadline and (found := _read(folder)) is None:
                raise ValueError(
                    f"process 0 of this machine has not made {folder} and is not at work on it: "
                    "it has ended or was never started. See its messages; a process that runs "
                    "alone must not have LOCAL_RANK set"
                )
        except Timeout:
            deadline = time.monotonic() + PATIENCE
        time.sleep(0.2)  # the launcher ends this process if another fails
    return found


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
    """None if it is not there, or damaged."""
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["checksum"] is None:
            return index, None
        # A plain view: numpy's memmap class costs a multiple of what it reads.
        array = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return (index, array) if _checksum(array) == index["checksum"] else None


def _checksum(array: np.ndarray) -> int:
    checksum, data = 0, array.reshape(-1).view(np.uint8).data
    for start in range(0, len(data), CHUNK):
        checksum = zlib.crc32(data[start : start + CHUNK], checksum)
    return checksum
