"""The kinds of files that hold stacks of images, and the reader of each."""

from collections.abc import Callable
from pathlib import Path

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.containers.dicom import is_dicom, open_dicom
from ddpm_sa.data.containers.fits import open_fits
from ddpm_sa.data.containers.hdf5 import open_hdf5
from ddpm_sa.data.containers.nifti import open_nifti
from ddpm_sa.data.containers.numpy import open_npy, open_npz
from ddpm_sa.data.containers.stack import Stack
from ddpm_sa.data.containers.tiff import open_tiff
from ddpm_sa.data.containers.zarr import is_zarr, open_zarr

Opener = Callable[[Path, str | None], Stack]

# Files that hold one image or many; in a folder, they are one image unless they say otherwise.
EITHER: dict[str, Opener] = {
    ".tif": open_tiff,
    ".tiff": open_tiff,
    ".npy": open_npy,
    ".npz": open_npz,
}
SCIENCE: dict[str, Opener] = {
    **dict.fromkeys((".nii", ".nii.gz", ".hdr", ".mgh", ".mgz", ".mnc"), open_nifti),
    **dict.fromkeys((".dcm", ".dicom"), open_dicom),
    **dict.fromkeys((".h5", ".hdf5"), open_hdf5),
    **dict.fromkeys((".fits", ".fit", ".fts", ".fits.gz", ".fits.fz"), open_fits),
    ".zarr": open_zarr,
}


def opener_of(path: Path) -> Opener | None:
    """The reader of a file or folder by its suffix, or by how it begins; None if there is none."""
    name = path.name.lower()
    for suffix, opener in (SCIENCE | EITHER).items():
        if name.endswith(suffix):
            return opener
    if path.is_dir():
        return open_zarr if is_zarr(path) else None
    return open_dicom if is_dicom(path) else None


def is_science(name: str) -> bool:
    """Whether a file of this name holds a stack, whatever it says."""
    return name.lower().endswith(tuple(SCIENCE))


def open_stack(path: Path, member: str | None = None) -> Stack:
    """Open a file, and read its header alone.

    Args:
        path: The file, or the folder of a Zarr.
        member: The array inside of it, or None.

    Raises:
        RefusedError: If it cannot be read, or no array is chosen.
    """
    opener = opener_of(path)
    assert opener is not None
    try:
        return opener(path, member)
    except (RefusedError, MemoryError):
        raise
    except Exception as error:  # whatever a library raises for a broken file
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise RefusedError(f"cannot be opened: {reason}") from error


def split_member(source: str) -> tuple[str, str | None]:
    """Split FILE:NAME into the file and the array inside of it; another source has no array."""
    place, colon, member = source.rpartition(":")
    path = Path(place).expanduser()
    if not colon or Path(source).expanduser().exists() or not path.exists():
        return source, None
    return place, member
