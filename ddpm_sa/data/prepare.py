"""Prepare the images of a source: scanned once, cached decoded if they fit, clipped if asked."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL

from ddpm_sa.data.cache import cache_folder, load_or_create
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.scan import read_pixels, scan_images
from ddpm_sa.data.sources.source import Source
from ddpm_sa.data.value_range import check_range, full_range, resolve_value_range

LAYOUT = 1  # version of the cache folder's layout


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
        report: Lines for the report of a run, such as how many values are clipped.
    """

    kept: np.ndarray
    channels: int
    dtype: str
    value_range: tuple[float, float]
    read: Callable[[np.ndarray], np.ndarray]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    report: tuple[str, ...]


def prepare(source: Source, config: DataConfig) -> Prepared:
    """Scan a source, or load the result of an earlier scan with the same settings.

    Raises:
        ValueError: If an image cannot be read or differs from the others in kind, naming it.
    """
    settings = [source.identity, LAYOUT, PIL.__version__, *config.height_width, config.fit]
    settings += [config.channels, config.on_error, config.memory, config.value_range is None]
    if config.clips or config.nan is not None:
        settings += [config.value_range if config.clips else None, config.nan]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    index, array = load_or_create(
        cache_folder(config.cache_dir) / key, partial(scan_images, source, config)
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
        report=_report(index, value_range),
    )


def _make_reader(
    source: Source,
    config: DataConfig,
    index: dict[str, Any],
    value_range: tuple[float, float],
    kept: np.ndarray,
    array: np.ndarray | None,
) -> Callable[[np.ndarray], np.ndarray]:
    clip = partial(_clip, value_range=value_range) if index.get("clipped") else _unchanged
    if array is not None:
        all_kept = len(kept) == len(array)
        return lambda i: clip(array[i] if all_kept else array[kept[i]])
    needs_check = value_range != full_range(index["dtype"]) and not config.clips
    pool = ThreadPoolExecutor(config.num_workers)

    def read_one(i: int) -> np.ndarray:
        image = read_pixels(source, config, index["channels"], i)
        if needs_check:
            check_range(value_range, image.min(), image.max(), source.name(i))
        return image

    return lambda i: clip(np.stack(list(pool.map(read_one, kept[i].tolist()))))


def _clip(images: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    if images.dtype == np.float32:
        return images.clip(np.float32(low), np.float32(high))
    # The whole numbers within, which the type holds.
    return images.clip(max(math.ceil(low), 0), min(math.floor(high), np.iinfo(images.dtype).max))


def _unchanged(images: np.ndarray) -> np.ndarray:
    return images


def _report(index: dict[str, Any], value_range: tuple[float, float]) -> tuple[str, ...]:
    if "clipped" not in index:
        return ()
    low, high = value_range
    outside, total = index["clipped"]
    return (
        f"clipped     {outside:,} of {total:,} values ({outside / total:.2%}) to {low:g} .. "
        f"{high:g}, the range that becomes -1 .. 1",
    )


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
