"""HDF5 files, read by h5py: one data set, named by its path in the file."""

import weakref
from pathlib import Path
from typing import Any

from ddpm_sa.data.containers.stack import Stack, choose_member, letters_of, needed_for

KIND = "an HDF5 file"


def open_hdf5(path: Path, member: str | None) -> Stack:
    """Open a data set; its axes are named by its dimension labels, if it has them.

    Raises:
        RefusedError: If no data set, or one that there is not, was named.
    """
    with needed_for(KIND):
        import h5py
    file = h5py.File(path, "r")
    arrays: dict[str, tuple[int, ...]] = {}

    def collect(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and len(found.shape or ()) >= 2:
            arrays[f"/{name}"] = found.shape

    file.visititems(collect)
    named = member and f"/{member.strip('/')}"
    try:
        dataset: Any = file[choose_member(arrays, named, KIND, only=False)]
    except ValueError:
        file.close()
        raise
    axes = letters_of([dimension.label for dimension in dataset.dims])
    stack = Stack(
        shape=dataset.shape,
        dtype=dataset.dtype,
        axes=axes,
        origin="its dimension labels",
        kind=f"{KIND}'s data set",
        read=dataset.__getitem__,
    )
    weakref.finalize(stack, file.close)
    return stack
