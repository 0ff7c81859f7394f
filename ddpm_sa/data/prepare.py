"""From a source to images by index: looked through, checked, and kept decoded where they fit."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from tqdm.auto import tqdm

from ddpm_sa.data.arrays import Encoded, Header, RefusedError
from ddpm_sa.data.cache import ARRAY, Writer, cache_folder, stored
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.decode import inspect
from ddpm_sa.data.resize import fitted, scale
from ddpm_sa.data.sources import Source
from ddpm_sa.data.value_range import check_range, note_extremes, value_range_of, whole_range

LAYOUT = 1  # of a store; another one is not read
GIB = 2**30
PIECE = 256  # decoded at once

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prepared:
    """Images of one size and kind.

    Attributes:
        kept: Which of the source they are, (N,) int64.
        channels, dtype: What each has.
        value_range: The values that become -1 and 1.
        read: Images of some indices, (B,) of 0 .. N - 1 -> (B, H, W, C).
        skipped: What was left out, and why.
        notes: What is to be said about them.
    """

    kept: np.ndarray
    channels: int
    dtype: str
    value_range: tuple[float, float]
    read: Callable[[np.ndarray], np.ndarray]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(source: Source, config: DataConfig) -> Prepared:
    """Look through a source, once for all runs with the same settings.

    Raises:
        ValueError: For an image that cannot be read, or is not like the others, naming it.
    """
    settings = [source.identity, LAYOUT, PIL.__version__, *config.height_width, config.fit]
    settings += [config.channels, config.on_error, config.memory, config.value_range is None]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    index, array = stored(
        cache_folder(config.cache_dir) / key, partial(_look_through, source, config)
    )
    broken = {int(i): message for i, message in index["broken"].items()}
    kept = np.setdiff1d(np.arange(source.length), list(broken))
    value_range = value_range_of(source, config, index)
    return Prepared(
        kept=kept,
        channels=index["channels"],
        dtype=index["dtype"],
        value_range=value_range,
        read=_reader(source, config, index, value_range, kept, array),
        skipped=tuple(broken.values()),
        notes=tuple(_notes(config, index, value_range)),
    )


def _reader(
    source: Source,
    config: DataConfig,
    index: dict[str, Any],
    value_range: tuple[float, float],
    kept: np.ndarray,
    array: np.ndarray | None,
) -> Callable[[np.ndarray], np.ndarray]:
    if array is not None:
        return array.__getitem__ if len(kept) == len(array) else lambda i: array[kept[i]]
    bounded = value_range != whole_range(index["dtype"])
    pool = ThreadPoolExecutor(config.num_workers)

    def one(i: int) -> np.ndarray:
        image = pixels(source, config, index["channels"], i)
        if bounded:
            check_range(value_range, image.min(), image.max(), source.name(i))
        return image

    return lambda i: np.stack(list(pool.map(one, kept[i].tolist())))


def _look_through(source: Source, config: DataConfig, folder: Path) -> dict[str, Any]:
    """Read all headers, and decode all images if they are kept, or if only that tells enough."""
    broken: dict[int, str] = {}
    look = partial(header, source, config.channels)
    headers = dict(_each(look, range(source.length), config, broken, "looking at images"))
    _check_any(config, headers, broken)
    channels, dtype = _common(source, headers)
    size = config.height_width
    shape = (source.length, *size, channels)
    fits = np.prod(shape, dtype=float) * np.dtype(dtype).itemsize <= config.memory * GIB
    measured = dtype == "float32" and config.value_range is None
    extremes: dict[str, Any] = {}
    checksum = None
    with contextlib.ExitStack() as files:
        writer = None
        if fits:
            writer = Writer(files.enter_context((folder / ARRAY).open("wb")), shape, dtype)
        if fits or measured or config.on_error == "skip":
            decode = partial(pixels, source, config, channels)
            for i, image in _each(decode, list(headers), config, broken, "decoding images"):
                note_extremes(extremes, i, image)
                if writer is not None:
                    writer.write(i, image)
        if writer is not None:
            checksum = writer.finish()
    _check_any(config, headers.keys() - broken.keys(), broken)
    return {
        "channels": channels,
        "dtype": dtype,
        "broken": broken,
        "enlarged": sum(scale(h.size, size, config.fit) > 1 for h in headers.values()),
        "extremes": extremes,
        "checksum": checksum,
    }


def _check_any(config: DataConfig, whole: Collection[int], broken: dict[int, str]) -> None:
    if not whole:
        raise ValueError(
            f"data.source={config.source} holds no image that can be read: {broken[0]}"
        )


def _each(
    work: Callable[[int], Item],
    indices: Sequence[int],
    config: DataConfig,
    broken: dict[int, str],
    doing: str,
) -> Iterator[tuple[int, Item]]:
    """Each index and its work, done by threads; what fails ends it, or goes to `broken`."""

    def attempt(i: int) -> Item | ValueError:
        try:
            return work(i)
        except ValueError as error:
            return error

    # Seen where there is a terminal and something to wait for.
    bar = tqdm(desc=doing, unit="image", delay=2, leave=False, disable=None, total=len(indices))
    with bar, ThreadPoolExecutor(config.num_workers) as pool:
        for start in range(0, len(indices), PIECE):
            some = indices[start : start + PIECE]
            bar.update(len(some))
            for i, result in zip(some, pool.map(attempt, some), strict=True):
                if not isinstance(result, ValueError):
                    yield i, result
                elif config.on_error == "stop":
                    raise result
                else:
                    broken[i] = str(result)


def header(source: Source, channels: int | None, i: int) -> Header:
    return _named(source, i, channels, lambda encoded: encoded.header)


def pixels(source: Source, config: DataConfig, channels: int, i: int) -> np.ndarray:
    """Image i, decoded and resized: (H, W, C)."""
    size, fit = config.height_width, config.fit
    return _named(source, i, channels, lambda encoded: fitted(encoded.pixels(), size, fit))


def _named(source: Source, i: int, channels: int | None, use: Callable[[Encoded], Item]) -> Item:
    """What is made of image i.

    Raises:
        ValueError: With its name.
    """
    try:
        with source.open(i) as file:
            return use(inspect(file, channels))
    except RefusedError as error:
        raise ValueError(f"{source.name(i)} {error}") from error
    except Exception as error:  # whatever a decoder raises for a broken file
        reason = str(error) or type(error).__name__
        raise ValueError(f"{source.name(i)} cannot be decoded: {reason}") from error


def _common(source: Source, headers: dict[int, Header]) -> tuple[int, str]:
    """The channels and the type that all images have.

    Raises:
        ValueError: Names one of each kind, or one that must be converted.
    """
    first: dict[tuple[int, str], int] = {}
    for i, found in headers.items():
        if found.channels is None:
            raise ValueError(
                f"{source.name(i)} is {found.kind}, neither grey nor RGB; set data.channels to 1, "
                "3 (what is transparent becomes white) or 4 (RGBA) to convert every image"
            )
        first.setdefault((found.channels, found.dtype), i)
    if len(first) > 1:
        (one, i), (other, j) = list(first.items())[:2]
        raise ValueError(
            f"images of two kinds are mixed: {source.name(i)} has {one[0]} channels of {one[1]}, "
            f"{source.name(j)} has {other[0]} of {other[1]}; set data.channels to 1, 3 or 4 to "
            "convert pictures of 8 bits, or keep the kinds apart"
        )
    return next(iter(first))


def _notes(
    config: DataConfig, index: dict[str, Any], value_range: tuple[float, float]
) -> Iterator[str]:
    if broken := list(index["broken"].values()):
        yield f"images left out: {len(broken)} (skipped.txt), such as: {broken[0]}"
    if index["enlarged"]:
        yield f"{index['enlarged']} images are smaller than {config.size}: enlarged"
    highest = index["extremes"].get("highest", [value_range[1]])[0]
    if index["dtype"] == "uint16" and highest < value_range[1] / 8:
        yield (
            f"the highest value is {highest} of {value_range[1]:g}: such images are "
            "dark; set data.value_range to what they span"
        )
