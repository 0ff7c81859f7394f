"""What a reader of a file of science returns: an array whose header alone has been read."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_sa.data.arrays import RefusedError

Part = tuple[int | slice, ...]
# Names of axes that files use -> the letters of microscopy and of tifffile.
LETTERS = {
    **dict.fromkeys(("y", "row", "rows", "height", "lat", "latitude"), "Y"),
    **dict.fromkeys(("x", "col", "cols", "column", "columns", "width", "lon", "longitude"), "X"),
    **dict.fromkeys(("z", "slice", "slices", "depth", "plane", "planes"), "Z"),
    **dict.fromkeys(("t", "time", "frame", "frames"), "T"),
    **dict.fromkeys(("c", "channel", "channels", "band", "bands"), "C"),
    **dict.fromkeys(("s", "sample", "samples", "rgb"), "S"),
    **dict.fromkeys(("n", "i", "image", "images", "index"), "I"),
}


@dataclass(frozen=True)
class Stack:
    """An array in a file.

    Attributes:
        shape, dtype: Of the array.
        axes: A letter for each axis, such as "ZYX"; None if the file does not name its axes.
        origin: What the letters follow from, such as "the NIfTI standard".
        kind: What the file is, for messages: "a NIfTI volume".
        read: Reads a part of the array: read((3, slice(None), slice(None))). It may raise
            RefusedError, or whatever the library raises for a broken file.
        place: The series that the file is a part of and its place there, or None. It is for
            sorting, and never written anywhere.
        is_sure: Whether an axis of channels may be longer than the height.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str | None
    origin: str
    kind: str
    read: Callable[[Part], np.ndarray]
    place: tuple[str, tuple[float, ...]] | None = None
    is_sure: bool = True


@contextlib.contextmanager
def needed_for(kind: str) -> Iterator[None]:
    """Import a library inside: if it is missing, the message names it and the extra.

    Raises:
        RefusedError: In place of an ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise RefusedError(
            f"is {kind}, which needs the package {error.name}: pip install 'ddpm_sa[science]'"
        ) from error


def letters_of(names: Sequence[Any]) -> str | None:
    """The letters of axes with these names; None if a name is missing, unknown or repeated."""
    letters = [LETTERS.get(str(name).lower(), "") for name in names]
    return "".join(letters) if all(letters) and len({*letters}) == len(letters) else None


def choose_member(
    arrays: dict[str, tuple[int, ...]], member: str | None, kind: str, only: bool = True
) -> str:
    """The name of the array to read.

    Args:
        arrays: The shapes of the arrays that the file holds.
        member: The name that the user gave, or None.
        kind: What the file is.
        only: Whether the only array of a file needs no name.

    Raises:
        RefusedError: If there is no such array, or none was named; it lists those there are.
    """
    listed = ", ".join(f"{name} ({'x'.join(map(str, shape))})" for name, shape in arrays.items())
    if not arrays:
        raise RefusedError(f"is {kind} that holds no array of two or more axes")
    if member is None and only and len(arrays) == 1:
        return next(iter(arrays))
    if member is None:
        raise RefusedError(
            f"is {kind} of several arrays, or of arrays in groups: {listed}; name one, as in "
            f"FILE:{next(iter(arrays))}, or set data.dataset"
        )
    if member not in arrays:
        raise RefusedError(f"is {kind} and has no array {member!r}; it holds {listed}")
    return member


def refuse_member(member: str | None, kind: str) -> None:
    """Refuse a name where the file holds one array.

    Raises:
        RefusedError: If there is a name.
    """
    if member is not None:
        raise RefusedError(f"is {kind}, one array without a name; leave out {member!r}")
