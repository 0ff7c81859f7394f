"""Zarr arrays of format 2 and 3, and OME-Zarr, read by zarr."""

from pathlib import Path
from typing import Any

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.containers.stack import Stack, choose_member, letters_of, needed_for

KIND = "a Zarr"
MARKS = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return any((path / mark).is_file() for mark in MARKS)


def open_zarr(path: Path, member: str | None) -> Stack:
    """Open an array; its axes are its dimension names, those of xarray, or those of OME-Zarr.

    Raises:
        RefusedError: If a group has several arrays and none was named, or chunks are missing, which
            zarr would fill with a constant.
    """
    with needed_for(KIND):
        import zarr
    node: Any = zarr.open(str(path), mode="r")
    attributes = dict(node.attrs)
    if isinstance(node, zarr.Group):
        members: Any = node.members(None)
        found: Any = {name: array for name, array in members if isinstance(array, zarr.Array)}
        arrays = {name: array.shape for name, array in found.items() if array.ndim >= 2}
        node = found[choose_member(arrays, member and member.strip("/"), KIND)]
    elif member is not None:
        raise RefusedError(f"is {KIND} array, not a group; leave out {member!r}")
    missing = node.nchunks - node.nchunks_initialized
    if missing:
        raise RefusedError(
            f"is {KIND} that lacks {missing} of its {node.nchunks} chunks; copy it again, or, if "
            "they are blank, write them too (zarr's setting array.write_empty_chunks)"
        )
    return Stack(
        shape=node.shape,
        dtype=node.dtype,
        axes=_axes(node, attributes),
        origin="its dimension names",
        kind=f"{KIND} array",
        read=lambda part: node[part],
    )


def _axes(array: Any, group: dict[str, Any]) -> str | None:
    own = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    scales = group.get("multiscales") or group.get("ome", {}).get("multiscales")
    if not own and scales:
        own = [axis["name"] for axis in scales[0]["axes"]]
    return letters_of(own) if own and len(own) == array.ndim else None
