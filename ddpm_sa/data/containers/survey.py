"""The images of files of science: which there are, in which order, and which are left out.

The survey reads headers (and values, to find empty images), once: its result is cached.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.cache import cache_folder, load_or_create
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.containers.axes import Layout, layout_of
from ddpm_sa.data.containers.registry import EITHER, is_science, open_stack, opener_of
from ddpm_sa.data.containers.slices import empty, parse_slices, span
from ddpm_sa.data.containers.stack import Stack
from ddpm_sa.data.containers.tiff import is_stack
from ddpm_sa.data.sources.source import fingerprint_files
from ddpm_sa.progress import ProgressBar

LAYOUT = 1  # version of what the cache keeps


@dataclass(frozen=True)
class File:
    """What a survey says of a file.

    Attributes:
        axes, shape: The layout of its array; "" if it is one image in itself, such as a PNG.
        said: The axes and what they follow from, for the report.
        is_sure: As in `Stack`.
        problem: Why it cannot be read, or None.
    """

    axes: str = ""
    shape: tuple[int, ...] = ()
    said: str = ""
    is_sure: bool = True
    problem: str | None = None

    @property
    def layout(self) -> Layout:
        """The axes and lengths of its array."""
        return Layout(self.axes, tuple(self.shape))


@dataclass(frozen=True)
class Survey:
    """The images of files.

    Attributes:
        files: What each file is.
        images: The file and the number in it of each image that is taken, in order.
        unselected: Number of images that data.slices leaves out.
        empty: Number of images that data.drop_empty leaves out.
    """

    files: list[File]
    images: list[tuple[int, int]]
    unselected: int
    empty: int


def survey(paths: Sequence[Path], config: DataConfig, whole: bool = False) -> Survey:
    """Find the images of files, or load what an earlier call with the same settings found.

    Args:
        paths: The files.
        config: The data settings.
        whole: Whether a file of any kind is a stack, such as a .npy that is the source itself.
    """
    settings = [LAYOUT, fingerprint_files(_all_files(paths)), whole, config.axes, config.slices]
    settings += [config.drop_empty, config.dataset, config.channels, _installed()]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    index, _ = load_or_create(
        cache_folder(config.cache_dir) / f"survey-{key}", lambda _: _look(paths, config, whole)
    )
    return Survey(
        files=[File(**file) for file in index["files"]],
        images=[(file, number) for file, number in index["images"]],
        unselected=index["unselected"],
        empty=index["empty"],
    )


def is_stack_file(path: Path, config: DataConfig) -> bool:
    """Whether a file of a folder holds a stack: by its suffix, its pages, or data.axes."""
    suffix = path.suffix.lower()
    if suffix not in EITHER:
        return is_science(path.name) or opener_of(path) is not None
    return config.axes is not None or (
        suffix in (".tif", ".tiff") and is_stack(path, config.channels)
    )


@lru_cache(maxsize=16)
def opened(path: Path, member: str | None, version: str) -> Stack:
    """A stack that stays open while it is among the last that were used."""
    del version  # of the file
    return open_stack(path, member)


def version_of(path: Path) -> str:
    """A string that changes if the file may have changed."""
    return fingerprint_files([path])


def _installed() -> list[str]:
    """The readers and decoders that are installed: another one may read what was refused."""
    wanted = "tifffile nibabel pydicom h5py zarr astropy pillow pylibjpeg gdcm pyjpegls imagecodecs"
    found = importlib.metadata.distributions()
    names = {(d.metadata["Name"] or "").lower(): d.version for d in found}
    return [
        f"{name} {version}"
        for name, version in sorted(names.items())
        if name.startswith(tuple(wanted.split()))
    ]


def _all_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and those inside of the folders of Zarrs."""
    inside = (sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths)
    return [file for files in inside for file in files]


def _look(paths: Sequence[Path], config: DataConfig, whole: bool) -> dict[str, Any]:
    files: list[File] = []
    places: list[tuple[Any, ...]] = []  # what to sort by: the group of a file, and its place there
    main = os.environ.get("RANK", "0") == "0"
    with ProgressBar("reading headers", "file", total=len(paths), shown=main, delay=2) as progress:
        for i, path in enumerate(paths):
            place = (i, ())
            if not (whole or is_stack_file(path, config)):
                files.append(File())
            else:
                file, series = _file(path, config)
                files.append(file)
                place = (series and (str(path.parent), series[0]), series[1] if series else ())
            places.append(place)
            progress.update(1)
    groups: dict[Any, list[int]] = {}
    for i, (group, _) in enumerate(places):
        groups.setdefault(group if group is not None else i, []).append(i)
    selection = (config.slices and parse_slices(config.slices)) or slice(None)
    images: list[tuple[int, int]] = []
    unselected = left_out = 0
    for members in groups.values():
        members.sort(key=lambda i: (places[i][1], i))
        _require_one_size(paths, files, members)
        of_group = [
            (i, n) for i in members for n in range(files[i].layout.images if files[i].axes else 1)
        ]
        taken = of_group[selection]
        unselected += len(of_group) - len(taken)
        kept = _without_empty(paths, files, taken, config) if config.drop_empty else taken
        left_out += len(taken) - len(kept)
        images += kept
    return {
        "files": [asdict(file) for file in files],
        "images": images,
        "unselected": unselected,
        "empty": left_out,
        "checksum": None,
    }


def _file(path: Path, config: DataConfig) -> tuple[File, tuple[str, tuple[float, ...]] | None]:
    try:
        stack = open_stack(path, config.dataset)
        layout, said = layout_of(stack, config.axes)
    except RefusedError as error:
        return File(problem=str(error)), None
    sure = stack.is_sure or config.axes is not None
    return File(layout.axes, layout.shape, f"{stack.kind}, {said}", sure), stack.place


def _require_one_size(paths: Sequence[Path], files: list[File], members: list[int]) -> None:
    """Mark the first file of a series whose size differs from that of the files before."""
    sizes: dict[tuple[int, int, int], int] = {}
    for i in members:
        if files[i].axes:
            sizes.setdefault(files[i].layout.image_shape, i)
    if len(sizes) > 1:
        (one, i), (other, j) = list(sizes.items())[:2]
        files[j] = File(
            problem=f"has {_size(other)}, but {paths[i].name} of the same series has {_size(one)}; "
            "keep images of one size in a series, or the others in another folder"
        )


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} x {shape[1]} pixels of {shape[2]} channels"


def _without_empty(
    paths: Sequence[Path], files: list[File], images: list[tuple[int, int]], config: DataConfig
) -> list[tuple[int, int]]:
    assert config.drop_empty is not None
    spans = []
    for i, number in images:
        if not files[i].axes:
            return images
        stack = opened(paths[i], config.dataset, version_of(paths[i]))
        try:
            spans.append(span(stack.read(files[i].layout.part(number))))
        except MemoryError:
            raise
        except Exception:  # named when the image is read
            return images
    if not spans:
        return images
    is_empty = empty(np.array(spans), config.drop_empty)
    return [image for image, blank in zip(images, is_empty, strict=True) if not blank]
