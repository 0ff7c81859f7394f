"""A source of images in files of science: each image of each file, by its number."""

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from ddpm_sa.data.arrays import Encoded, RefusedError, inspect_array
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.containers.registry import SCIENCE, opener_of
from ddpm_sa.data.containers.survey import (
    Survey,
    opened,
    survey,
    version_of,
)
from ddpm_sa.data.sources.folders import SUFFIXES
from ddpm_sa.data.sources.source import Source, fingerprint_files
from ddpm_sa.errors import UserError, require

# Integers that TYPES lacks. float32 holds those up to 2^24.
WIDE, LARGEST = ("int32", "uint32", "int64", "uint64"), 2**24
KEPT = {**dict.fromkeys(WIDE, "float32"), "bool": "uint8"}
MOST_LINES = 3  # of the report


def opens(path: Path) -> bool:
    """Whether a file, or the folder of a Zarr, is a stack that is a source by itself."""
    return path.exists() and opener_of(path) is not None


def open_container(path: Path, config: DataConfig) -> Source:
    """Open one file as a source.

    Raises:
        ValueError: If it cannot be read, or labels are needed, which it has not.
    """
    if config.class_conditional:
        raise UserError(f"data.source={path} has no labels; set data.class_conditional false")
    alone = Source(
        length=1,
        open=lambda i: path.open("rb"),
        name=lambda i: str(path),
        identity=fingerprint_files([path]),
    )
    found = survey([path], config, whole=True)
    if problem := found.files[0].problem:
        raise UserError(f"data.source={path} {problem}")
    return _expand(alone, [path], found, config)


def expand_stacks(source: Source, paths: Sequence[Path], config: DataConfig) -> Source:
    """Return the images of a folder's files, where some of them are stacks.

    Args:
        source: The files, one image each.
        paths: Their paths.
        config: The data settings.

    Raises:
        ValueError: If none is a stack, and a setting is for stacks.
    """
    pages = (".tif", ".tiff")
    if config.axes or any(p.suffix.lower() in pages or not _is_picture(p) for p in paths):
        found = survey(paths, config)
        if any(file.axes or file.problem for file in found.files):
            return _expand(source, paths, found, config)
    require_no_stack_settings(config)
    return source


def require_no_stack_settings(config: DataConfig) -> None:
    """Refuse the settings that are for stacks.

    Raises:
        ValueError: If one is given.
    """
    for name in ("axes", "slices", "drop_empty", "dataset"):
        value = getattr(config, name)
        require(
            value is None,
            f"data.{name}={value} is for stacks ({' '.join(SCIENCE)}, TIFF of several pages, .npy "
            f"and .npz), and data.source={config.source} holds none; leave it out",
        )


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _expand(source: Source, paths: Sequence[Path], found: Survey, config: DataConfig) -> Source:
    require(
        bool(found.images),
        f"data.source={config.source} has no image left: {found.unselected} are outside of "
        f"data.slices={config.slices}, {found.empty} are empty (data.drop_empty="
        f"{config.drop_empty})",
    )
    files = np.array([i for i, _ in found.images])
    versions = [version_of(path) for path in paths]
    locks = [threading.Lock() for _ in paths]

    def read(i: int, number: int) -> np.ndarray:
        with locks[i]:  # not every library may be called from two threads
            stack, layout = opened(paths[i], config.dataset, versions[i]), found.files[i].layout
            return _exact(layout.image(stack.read(layout.part(number))))

    def encoded(j: int) -> Encoded:
        i, number = found.images[j]
        file = found.files[i]
        if file.problem is not None:
            raise RefusedError(file.problem)
        layout, dtype = file.layout, opened(paths[i], config.dataset, versions[i]).dtype
        own = layout.image_shape[2] if file.is_sure else config.channels
        kept = np.dtype(KEPT.get(dtype.name, dtype))
        return inspect_array(
            layout.image_shape, kept, f"{paths[i].suffix[1:]} image", own, lambda: read(i, number)
        )

    def open_image(j: int):
        i, _ = found.images[j]
        file = found.files[i]
        is_plain = not file.axes and file.problem is None
        return source.open(i) if is_plain else nullcontext(encoded(j))

    def name(j: int) -> str:
        i, number = found.images[j]
        file = found.files[i]
        several = file.axes and file.layout.images > 1
        return f"image {number} of {paths[i]}" if several else str(paths[i])

    settings = [config.axes, config.slices, config.drop_empty, config.dataset]
    return replace(
        source,
        length=len(found.images),
        open=open_image,
        name=name,
        identity=fingerprint_files([], source.identity, repr(settings), *versions),
        labels=None if source.labels is None else source.labels[files],
        report=(*source.report, *_report(found, config)),
    )


def _exact(image: np.ndarray) -> np.ndarray:
    """Integers of 32 and 64 bits as float32, which must hold them exactly."""
    if image.dtype.name in WIDE and max(abs(int(image.min())), abs(int(image.max()))) > LARGEST:
        raise RefusedError(
            f"has integers beyond {LARGEST} (2^24), which float32 does not hold exactly; scale "
            "them, or save them as uint16"
        )
    return image.astype(KEPT.get(image.dtype.name, image.dtype))


def _report(found: Survey, config: DataConfig) -> list[str]:
    """Lines on the axes and on what is left out."""
    kinds = Counter(file.said for file in found.files if file.said)
    lines = [
        f"axes        {said}{f' (each of {count} files)' if count > 1 else ''}"
        for said, count in kinds.most_common(MOST_LINES)
    ]
    if (more := len(kinds) - MOST_LINES) > 0:
        lines.append(f"axes        and {more} other shapes")
    total = len(found.images) + found.unselected + found.empty
    if config.slices is not None:
        lines.append(
            f"slices      data.slices={config.slices} takes {total - found.unselected} of {total} "
            "images"
        )
    if config.drop_empty is not None:
        lines.append(
            f"empty       {found.empty} images are empty and left out: their values span less than "
            f"{config.drop_empty:g} of those of their stack (data.drop_empty)"
        )
    return lines
