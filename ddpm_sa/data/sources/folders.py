"""Folders of image files, by the rules of imagefolder in 🤗 datasets.

Subfolders whose names hold a word such as `train` or `test` are splits. Hidden files and folders,
and folders whose names begin with two underscores, are passed over. Two rules differ: an image is
in one split alone, that of the outermost folder that names one, and links to folders are followed.
"""

import mimetypes
import os
import re
from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ddpm_sa.data.containers.registry import is_science, opener_of
from ddpm_sa.data.containers.zarr import is_zarr
from ddpm_sa.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES += (".npy", ".npz")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# SPLIT_KEYWORDS and NON_WORDS_CHARS of datasets.data_files; importing datasets takes seconds.
SPLIT_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SEPARATOR = "[-._ 0-9]"
PATTERNS = {
    split: re.compile(rf"(^|{SEPARATOR})({'|'.join(words)})({SEPARATOR}|$)")
    for split, words in SPLIT_KEYWORDS.items()
}


def split_of(name: str) -> str | None:
    """The split that a folder of this name is: train, validation, test, or None."""
    return next((split for split, pattern in PATTERNS.items() if pattern.search(name)), None)


class ImageFile(NamedTuple):
    """An image, and the first subfolder of its path below the folder of its split, if any."""

    path: Path
    folder_class: str | None


class MetadataFile(NamedTuple):
    """A file with rows about images below its folder, and the split that it lies in, if any."""

    path: Path
    split: str | None

    def is_about(self, image: Path) -> bool:
        """Whether an image lies beside the file or below."""
        return self.path.parent in image.parents

    def split_of_row(self, name: str) -> str | None:
        """The split of the image that a row names by its path relative to the file's folder."""
        folders = PurePosixPath(name).parts[:-1]
        return self.split or next(filter(None, map(split_of, folders)), None)


@dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Attributes:
        images: By split, sorted by path; under None those in no split.
        metadata: The files of rows about the images.
        again: Links that lead to what is found without them.
        parquet: Other .parquet files.
        beside: Files of science, such as .nii, beside pictures; without pictures, they are the
            images.
    """

    images: dict[str | None, list[ImageFile]] = field(default_factory=dict)
    metadata: list[MetadataFile] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)


class _Folder(NamedTuple):
    path: str
    real: str
    split: str | None
    folder_class: str | None

    def enter(self, entry: os.DirEntry[str]) -> "_Folder":
        linked = entry.is_symlink()
        real = os.path.realpath(entry.path) if linked else os.path.join(self.real, entry.name)
        split = self.split or split_of(entry.name)
        is_class = split == self.split
        return _Folder(
            entry.path, real, split, (self.folder_class or entry.name) if is_class else None
        )

    def is_below(self, folder: str) -> bool:
        return os.path.commonpath([self.real, folder]) == folder


def scan(root: Path) -> Found:
    """Find the images of a folder and its subfolders, through links to folders too.

    Within a split, each folder and each file is found once: by the path without links, if any.

    Raises:
        ValueError: If a folder cannot be read, or what may be a link to a folder is broken.
    """
    found, links_to_images = Found(), []
    science: dict[str | None, list[ImageFile]] = {}
    start = _Folder(str(root), os.path.realpath(root), None, None)
    folders, linked = deque([start]), deque[_Folder]()
    seen: set[tuple[str | None, str]] = set()
    while folders or linked:
        folder = (folders or linked).popleft()
        if (folder.split, folder.real) in seen:
            found.again.append(Path(folder.path))
            continue
        seen.add((folder.split, folder.real))
        for entry in _entries(folder.path):
            if _holds_stack(entry):
                stack = ImageFile(Path(entry.path), folder.folder_class)
                science.setdefault(folder.split, []).append(stack)
            elif _is_folder(entry):
                inner = folder.enter(entry)
                if not entry.is_symlink():
                    folders.append(inner)
                elif folder.is_below(inner.real) or start.is_below(inner.real):  # a loop
                    found.again.append(Path(entry.path))
                else:
                    linked.append(inner)
            elif entry.name in METADATA:
                found.metadata.append(MetadataFile(Path(entry.path), folder.split))
            elif entry.name.endswith(".parquet"):
                found.parquet.append(Path(entry.path))
            elif _is_image(entry.name):
                image = ImageFile(Path(entry.path), folder.folder_class)
                if entry.is_symlink():
                    links_to_images.append((folder.split, image))
                else:
                    found.images.setdefault(folder.split, []).append(image)
    for split, image in links_to_images:
        real = os.path.realpath(image.path)
        place, name = os.path.split(real)
        is_read = (split, place) in seen and _is_image(name) and os.path.exists(real)
        if is_read or (split, real) in seen:
            found.again.append(image.path)
        else:
            seen.add((split, real))
            found.images.setdefault(split, []).append(image)
    if found.images:
        found.beside.extend(stack.path for stacks in science.values() for stack in stacks)
    else:
        found.images.update(science)
    for images in found.images.values():
        images.sort(key=attrgetter("path"))
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, in order."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    special = {entry for entry in visible if entry.name.startswith("__") and _is_folder(entry)}
    return sorted((e for e in visible if e not in special), key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one.

    Raises:
        ValueError: If it is a broken link whose name is not that of a kind of file.
    """
    if not entry.is_symlink():
        return entry.is_dir()
    if os.path.exists(entry.path):
        return os.path.isdir(entry.path)
    if not _is_image(entry.name) and mimetypes.guess_type(entry.name)[0] is None:
        raise UserError(f"{entry.path} {broken_link(entry.path)}; remove or restore it")
    return False


def _holds_stack(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file of science, by its suffix or, without one, as DICOM."""
    path = Path(entry.path)
    if is_science(entry.name):
        return path.is_file() or is_zarr(path)
    # The names of DICOM files may be numbers with dots.
    nameless = not path.suffix or path.suffix[1:].isdecimal()
    return nameless and path.is_file() and opener_of(path) is not None


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def broken_link(path: str | Path) -> str:
    """Say where a link leads that leads nowhere, to be printed after its name."""
    return f"is a broken link: {os.readlink(path)} does not exist or leads back to it"
