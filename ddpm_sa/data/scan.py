"""Read the headers of all images of a source, check that they are alike, and decode them."""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddpm_sa.data.arrays import Encoded, Header, RefusedError
from ddpm_sa.data.cache import ARRAY, Writer
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.decode import inspect
from ddpm_sa.data.resize import resize, scale
from ddpm_sa.data.sources.source import Source
from ddpm_sa.data.value_range import count_outside, percentile_range, update_extremes
from ddpm_sa.errors import UserError, require
from ddpm_sa.progress import ProgressBar

GIB = 2**30
CHUNK = 256  # images decoded at once

Item = TypeVar("Item")


def scan_images(source: Source, config: DataConfig, folder: Path) -> dict[str, Any]:
    """Read all headers; decode all images if they are cached, checked or measured."""
    broken: dict[int, str] = {}
    read = partial(read_header, source, config.channels)
    headers = dict(_process_images(read, range(source.length), config, broken, "reading headers"))
    _require_any(config, headers, broken)
    channels, dtype = _common_kind(source, headers)
    size = config.height_width
    shape = (source.length, *size, channels)
    fits = np.prod(shape, dtype=float) * np.dtype(dtype).itemsize <= config.memory * GIB
    needs_range = config.clips or (dtype == "float32" and config.value_range is None)
    require(
        fits or config.percentiles is None,
        f"data.value_range={config.value_range} is found among all values, and the decoded images "
        f"take more than data.memory={config.memory:g} GiB; give two numbers, or more memory",
    )
    extremes: dict[str, Any] = {}
    outside, total = 0, 0
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
                if config.clips and config.fixed_range is not None:
                    outside += count_outside(image, config.fixed_range)
                    total += image.size
                if writer is not None:
                    writer.write(i, image)
        if writer is not None:
            checksum = writer.finish()
    _require_any(config, headers.keys() - broken.keys(), broken)
    clipping: dict[str, Any] = {"clipped": (outside, total)} if config.clips else {}
    if config.percentiles is not None:
        images = np.load(folder / ARRAY, mmap_mode="r")
        read = [i for i in headers if i not in broken]
        values = images[read] if len(read) < len(images) else images
        found = percentile_range(values, config.percentiles)
        clipping = {"value_range": found, "clipped": (count_outside(values, found), values.size)}
    return {
        "channels": channels,
        "dtype": dtype,
        "broken": broken,
        "enlarged": sum(scale(h.size, size, config.fit) > 1 for h in headers.values()),
        "extremes": extremes,
        "checksum": checksum,
        **clipping,
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
    return _inspect_image(
        source, i, channels, lambda encoded: resize(encoded.pixels(), size, fit), config.nan
    )


def _inspect_image(
    source: Source,
    i: int,
    channels: int | None,
    use: Callable[[Encoded], Item],
    nan: float | None = None,
) -> Item:
    """Open image i and return use(its encoded form); errors get its name."""
    try:
        with source.open(i) as image:
            return use(inspect(image, channels, nan))
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
