"""Arrays of NumPy: a .npy file, or a member of a .npz archive, mapped into memory."""

import zipfile
from pathlib import Path

import numpy as np

from ddpm_sa.data.arrays import RefusedError, read_array_header
from ddpm_sa.data.containers.stack import Stack, choose_member, refuse_member

ORIGIN = "the rule for NumPy files, (N, H, W) or (N, H, W, C)"
MOST_LOADED = 2**30  # of a compressed array, which must be read whole
LOCAL_HEADER = 30  # bytes of a ZIP archive's local header before the name (APPNOTE 4.3.7)


def open_npy(path: Path, member: str | None) -> Stack:
    """Open a .npy file.

    Raises:
        RefusedError: If it holds no numbers.
    """
    refuse_member(member, "a .npy file")
    with path.open("rb") as file:
        read_array_header(file)
    return _stack(np.load(path, mmap_mode="r", allow_pickle=False), "a .npy file")


def open_npz(path: Path, member: str | None) -> Stack:
    """Open an array of a .npz archive; a compressed one is read into memory, up to 1 GiB.

    Raises:
        RefusedError: If several arrays are there and none was named, or it is too large.
    """
    kind = "a .npz archive"
    with zipfile.ZipFile(path) as archive:
        shapes = {}
        for name in archive.namelist():
            with archive.open(name) as file:
                shapes[name.removesuffix(".npy")] = read_array_header(file)[0]
        chosen = choose_member({n: s for n, s in shapes.items() if len(s) >= 2}, member, kind)
        info = archive.getinfo(f"{chosen}.npy")
        with archive.open(info) as file:
            shape, dtype = read_array_header(file)
        if info.compress_type == zipfile.ZIP_STORED and not dtype.hasobject:
            return _stack(_map(path, info), kind)
        if np.prod(shape, dtype=float) * dtype.itemsize > MOST_LOADED:
            raise RefusedError(
                f"is {kind} whose compressed array {chosen} of {shape} is above 1 GiB; write it by "
                "numpy.savez, which does not compress"
            )
        with archive.open(info) as file:
            return _stack(np.lib.format.read_array(file, allow_pickle=False), kind)


def _map(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Map a member that is stored as it is; the archive's local header lies before it."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(LOCAL_HEADER)
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        file.seek(info.header_offset + LOCAL_HEADER + lengths)
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, order="F" if is_fortran else "C")


def _stack(array: np.ndarray, kind: str) -> Stack:
    return Stack(
        shape=array.shape,
        dtype=array.dtype,
        axes={3: "IYX", 4: "IYXC"}.get(array.ndim),
        origin=ORIGIN,
        kind=kind,
        read=array.__getitem__,
        is_sure=False,
    )
