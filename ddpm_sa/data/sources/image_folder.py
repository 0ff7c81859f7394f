"""A folder of image files, opened: one of its splits, and the labels of its images."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.containers.registry import SCIENCE
from ddpm_sa.data.containers.source import expand_stacks
from ddpm_sa.data.labels import encode_labels, from_csv
from ddpm_sa.data.sources.folders import (
    SPLIT_KEYWORDS,
    SUFFIXES,
    Found,
    ImageFile,
    broken_link,
    split_of,
)
from ddpm_sa.data.sources.metadata import FILE_NAME, encode_rows, match_rows, read_metadata
from ddpm_sa.data.sources.source import (
    DEFAULT_SPLIT,
    Source,
    Splits,
    choose_split,
    fingerprint_files,
)
from ddpm_sa.errors import UserError, require

Labels = tuple[np.ndarray | None, list[str] | None]
NO_LABELS: Labels = None, None


@dataclass(frozen=True)
class _Taken:
    """The images of the split that was taken, those of the other splits, and those of none."""

    images: list[ImageFile]
    others: list[ImageFile]
    outside: list[ImageFile]
    splits: Splits | None

    @property
    def split(self) -> str:
        return self.splits.taken if self.splits else DEFAULT_SPLIT


def open_image_folder(
    folder: Path, found: Found, config: DataConfig, any_split: bool = False
) -> Source:
    """Open a folder of images.

    Args:
        folder: The folder.
        found: What lies in it.
        config: The data settings.
        any_split: Whether to open the only split of a folder whatever its name is.

    Raises:
        ValueError: If it has no images, or no such split or labels.
    """
    require(
        bool(found.images),
        f"data.source={folder} holds no image ({' '.join((*SUFFIXES, *SCIENCE))})",
    )
    taken = _take(folder, found, config.split, any_split)
    paths, labels, notes = [image.path for image in taken.images], NO_LABELS, []
    about = [str(file.path) for file in found.metadata if any(map(file.is_about, paths))]
    if config.labels is not None:
        labels = from_csv(Path(config.labels), folder, paths)
        notes = [f"{file} is not read: data.labels={config.labels} is" for file in about]
    elif about:
        paths, labels, notes = _apply_metadata(found, taken, config)
    elif config.class_conditional:
        labels = _folder_labels(taken)
    source = Source(
        length=len(paths),
        open=lambda i: _open(paths[i]),
        name=lambda i: str(paths[i]),
        identity=fingerprint_files(paths),
        labels=labels[0],
        classes=labels[1],
        splits=taken.splits,
        notes=(*_notes(folder, found, taken), *notes),
    )
    return expand_stacks(source, paths, config)


def _take(folder: Path, found: Found, wanted: str, any_split: bool) -> _Taken:
    groups = {name: found.images[name] for name in SPLIT_KEYWORDS if name in found.images}
    outside, way_out, has_splits = found.images.get(None, []), "", bool(groups)
    if not has_splits:
        groups, outside = {DEFAULT_SPLIT: outside}, []
    elif outside:
        way_out = (
            f" ({len(outside)} images are in no split, such as {outside[0].path}; a folder that "
            "names a split but is a class needs another name)"
        )
    lengths = {name: len(images) for name, images in groups.items()}
    split = choose_split(lengths, wanted, str(folder), way_out, any_split)
    splits = Splits(split, lengths, len(outside)) if has_splits else None
    images = groups.pop(split)
    return _Taken(images, list(chain.from_iterable(groups.values())), outside, splits)


def _folder_labels(taken: _Taken) -> Labels:
    """Label each image with its folder; the folders of all splits are classes, sorted by name."""
    names = []
    for image in taken.images:
        if image.folder_class is None:
            raise UserError(
                f"{image.path} lies in no subfolder, so it has no label; put each class's images "
                "into a subfolder, name a CSV file by data.labels, or set data.class_conditional "
                "false"
            )
        names.append(image.folder_class)
    return encode_labels(names, filter(None, (image.folder_class for image in taken.others)))


def _apply_metadata(
    found: Found, taken: _Taken, config: DataConfig
) -> tuple[list[Path], Labels, list[str]]:
    """Return the images that have a row, which alone imagefolder takes, their labels, and notes."""
    column = config.label_column if config.class_conditional else None
    rows, classes, foreign = read_metadata(found.metadata, taken.split, column)
    notes = [f"{file} has no column {FILE_NAME!r} and is not read" for file in foreign]
    paths = [image.path for image in taken.images]
    if not rows:
        require(column is None, f"{found.metadata[0].path} has no rows; remove it or add rows")
        return paths, NO_LABELS, notes
    others = {str(image.path) for image in taken.others + taken.outside}
    matched = match_rows(
        rows, taken.images, others, taken.split, None if taken.splits else DEFAULT_SPLIT
    )
    files = ", ".join(dict.fromkeys(str(row.file.path) for row in rows))
    require(
        bool(matched),
        f"no image of the split {taken.split} has a row in {files}; add rows or remove the file",
    )
    if left_out := [path for path in paths if path not in matched]:
        notes.append(
            f"{len(left_out)} images have no row in {files} and are left out, such as {left_out[0]}"
        )
    kept = [path for path in paths if path in matched]
    if column is None:
        return kept, NO_LABELS, notes
    return kept, encode_rows([matched[path] for path in kept], classes, rows), notes


def _open(path: Path) -> BinaryIO:
    if not path.exists():
        raise RefusedError(broken_link(path) if path.is_symlink() else "does not exist any more")
    return path.open("rb")


def _notes(folder: Path, found: Found, taken: _Taken) -> Iterator[str]:
    if taken.outside:
        yield (
            f"{len(taken.outside)} images are in no split and are left out, such as "
            f"{taken.outside[0].path}"
        )
    if found.beside:
        yield (
            f"{len(found.beside)} files of science are not read beside pictures, such as "
            f"{found.beside[0]}; put them into a folder of their own"
        )
    if found.again:
        yield (
            f"{len(found.again)} links lead to what is read already, and are passed over, such as "
            f"{found.again[0]}"
        )
    if taken.splits is None and len(names := _like_splits(folder, taken.images)) > 1:
        yield (
            f"{', '.join(names)} are not splits, and all are read: only folders whose names hold a "
            "word such as train or test, in lower case, are"
        )


def _like_splits(folder: Path, images: list[ImageFile]) -> list[str]:
    """Names that a reader may take for splits: folders in capitals, or of files if all have one."""
    places = {os.path.dirname(image.path) for image in images}
    parts = {part for place in places for part in Path(place).relative_to(folder).parts}
    if names := sorted(part for part in parts if split_of(part.lower())):
        return names
    files: dict[str, str] = {}
    for image in images:
        if (split := split_of(image.path.name)) is None:
            return []
        files.setdefault(split, image.path.name)
    return list(files.values())
