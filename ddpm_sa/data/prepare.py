"""Scan a source, check its images, and cache them decoded if they fit."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL

from ddpm_sa.data.arrays import Encoded, Header, RefusedError
from ddpm_sa.data.cache import ARRAY, Writer, cache_folder, load_or_create
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.decode import inspect
from ddpm_sa.data.resize import resize, scale
from ddpm_sa.data.sources.source import Source
from ddpm_sa.data.value_range import check_range, full_range, resolve_value_range, update_extremes
from ddpm_sa.errors import UserError
from ddpm_sa.progress import ProgressBar

LAYOUT = 1  # version of the cache folder's layout
GIB = 2**30
CHUNK = 256  # images decoded at once

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prepared:
    """The readable images of a source, with one size, number of channels and dtype.

    Attributes:
        kept: Indices of the images in the source, (N,) int64.
        channels, dtype: Of every image.
        value_range: The values that are mapped to -1 and 1.
        read: Reads images by their indices, (B,) in 0 .. N - 1 -> (B, H, W, C).
        skipped: The names of images that cannot be read, each with the reason.
        notes: Warnings about likely mistakes.
    """

    kept: np.ndarray
    channels: int
    dtype: str
    value_range: tuple[float, float]
    read: Callable[[np.ndarray], np.ndarray]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(source: Source, config: DataConfig) -> Prepared:
    """Scan a source, or load the result of an earlier scan with the same settings.

    Raises:
        ValueError: If an image cannot be read or differs from the others in kind, naming it.
    """
    settings = [source.identity, LAYOUT, PIL.__version__, *config.height_width, config.fit]
    settings += [config.channels, config.on_error, config.memory, config.value_range is None]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    index, array = load_or_create(
        cache_folder(config.cache_dir) / key, partial(_scan, source, config)
    )
    broken = {int(i): message for i, message in index["broken"].items()}
    kept = np.setdiff1d(np.arange(source.length), list(broken))
    value_range = resolve_value_range(source, config, index)
    return Prepared(
        kept=kept,
        channels=index["channels"],
        dtype=index["dtype"],
        value_range=value_range,
        read=_make_reader(source, config, index, value_range, kept, array),
        skipped=tuple(broken.values()),
        notes=tuple(_notes(config, index, value_range)),
    )


def _make_reader(
    source: Source,
    config: DataConfig,
    index: dict[str, Any],
    value_range: tuple[float, float],
    kept: np.ndarray,
    array: np.ndarray | None,
) -> Callable[[np.ndarray], np.ndarray]:
    if array is not None:
        return array.__getitem__ if len(kept) == len(array) else lambda i: array[kept[i]]
    needs_check = value_range != full_range(index["dtype"])
    pool = ThreadPoolExecutor(config.num_workers)

    def read_one(i: int) -> np.ndarray:
        image = read_pixels(source, config, index["channels"], i)
        if needs_check:
            check_range(value_range, image.min(), image.max(), source.name(i))
        return image

    return lambda i: np.stack(list(pool.map(read_one, kept[i].tolist())))


def _scan(source: Source, config: DataConfig, folder: Path) -> dict[str, Any]:
    """Read all headers; decode all images if they are cached, checked or measured."""
    broken: dict[int, str] = {}
    read = partial(read_header, source, config.channels)
    headers = dict(_process_images(read, range(source.length), config, broken, "reading headers"))
    _require_any(config, headers, broken)
    channels, dtype = _common_kind(source, headers)
    size = config.height_width
    shape = (source.length, *size, channels)
    fits = np.prod(shape, dtype=float) * np.dtype(dtype).itemsize <= config.memory * GIB
    needs_range = dtype == "float32" and config.value_range is None
    extremes: dict[str, Any] = {}
    checksum = None
    with contextlib.ExitStack() as files:
        writer = None
        if fits:
            writer = Writer(files.enter_context((folder / ARRAY).open("wb")), shape, dtype)
        if fits or needs_range or config.on_error == "skip":
            decode = partial(read_pixels, source, config, channels)
            for i, image in _process_images(
                decode, list(headers), config, broken, "decoding images"
            ):
                update_extremes(extremes, i, image)
                if writer is not None:
                    writer.write(i, image)
        if writer is not None:
            checksum = writer.finish()
    _require_any(config, headers.keys() - broken.keys(), broken)
    return {
        "channels": channels,
        "dtype": dtype,
        "broken": broken,
        "enlarged": sum(scale(h.size, size, config.fit) > 1 for h in headers.values()),
        "extremes": extremes,
        "checksum": checksum,
    }


def _require_any(config: DataConfig, readable: Collection[int], broken: dict[int, str]) -> None:
    if not readable:
        raise UserError(f"data.source={config.source} holds no image that can be read: {broken[0]}")


def _process_images(
    work: Callable[[int], Item],
    indices: Sequence[int],
    config: DataConfig,
    broken: dict[int, str],
    description: str,
) -> Iterator[tuple[int, Item]]:
    """Yield (i, work(i)), computed in threads; an error is raised or added to `broken`."""

    def attempt(i: int) -> Item | UserError:
        try:
            return work(i)
        except UserError as error:
            return error

    main = os.environ.get("RANK", "0") == "0"
    progress = ProgressBar(description, "image", total=len(indices), shown=main, delay=2)
    with progress, ThreadPoolExecutor(config.num_workers) as pool:
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK]
            for i, result in zip(chunk, pool.map(attempt, chunk), strict=True):
                if not isinstance(result, UserError):
                    yield i, result
                elif config.on_error == "stop":
                    raise result
                else:
                    broken[i] = str(result)
            progress.update(len(chunk))


def read_header(source: Source, channels: int | None, i: int) -> Header:
    """Read the header of image i.

    Raises:
        ValueError: If it is refused or broken, naming it.
    """
    return _inspect_image(source, i, channels, lambda encoded: encoded.header)


def read_pixels(source: Source, config: DataConfig, channels: int, i: int) -> np.ndarray:
    """Decode and resize image i: (H, W, C).

    Raises:
        ValueError: If it is refused or broken, naming it.
    """
    size, fit = config.height_width, config.fit
    return _inspect_image(source, i, channels, lambda encoded: resize(encoded.pixels(), size, fit))


def _inspect_image(
    source: Source, i: int, channels: int | None, use: Callable[[Encoded], Item]
) -> Item:
    """Open image i and return use(its encoded form); errors get its name."""
    try:
        with source.open(i) as image:
            return use(inspect(image, channels))
    except RefusedError as error:
        raise UserError(f"{source.name(i)} {error}") from error
    except MemoryError:  # the image may be sound
        raise
    except Exception as error:  # whatever a decoder raises for a broken file
        reason = str(error) or type(error).__name__
        raise UserError(f"{source.name(i)} cannot be decoded: {reason}") from error


def _common_kind(source: Source, headers: dict[int, Header]) -> tuple[int, str]:
    """Return the number of channels and the dtype that all images share.

    Raises:
        ValueError: If images differ, naming one of each kind, or one must be converted.
    """
    first: dict[tuple[int, str], int] = {}
    for i, header in headers.items():
        if header.channels is None:
            raise UserError(
                f"{source.name(i)} is {header.kind}, neither grey nor RGB; set data.channels to 1, "
                "3 (transparent pixels become white) or 4 (RGBA) to convert every image"
            )
        first.setdefault((header.channels, header.dtype), i)
    if len(first) > 1:
        (one, i), (other, j) = list(first.items())[:2]
        raise UserError(
            f"images of two kinds are mixed: {source.name(i)} has {one[0]} channels of {one[1]}, "
            f"{source.name(j)} has {other[0]} of {other[1]}; set data.channels to 1, 3 or 4 to "
            "convert 8-bit pictures, or keep the two kinds in separate folders"
        )
    return next(iter(first))


def _notes(
    config: DataConfig, index: dict[str, Any], value_range: tuple[float, float]
) -> Iterator[str]:
    if broken := list(index["broken"].values()):
        yield f"{len(broken)} unreadable images are skipped (skipped.txt), such as: {broken[0]}"
    if index["enlarged"]:
        yield f"{index['enlarged']} images are smaller than {config.size} and are enlarged"
    highest = index["extremes"].get("highest", [value_range[1]])[0]
    if index["dtype"] == "uint16" and highest < value_range[1] / 8:
        yield (
            f"the highest value is {highest}, of {value_range[1]:g} possible: the network would "
            "see dark images; set data.value_range to the range of the data"
        )
