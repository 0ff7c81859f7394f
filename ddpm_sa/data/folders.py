"""Folders of image files."""

from pathlib import Path

from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.labels import from_csv, from_folders
from ddpm_sa.data.sources import SOURCES, Source, fingerprint_files
from ddpm_sa.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES += (".npy", ".npz")


def find_images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def open_folder(folder: Path, config: DataConfig) -> Source:
    if not folder.is_dir():
        raise UserError(f"data.source={folder} is neither a folder nor a file; {SOURCES}")
    paths = find_images(folder)
    if not paths:
        raise UserError(f"data.source={folder} holds no image ({' '.join(SUFFIXES)})")
    labels, classes = None, None
    if config.labels is not None:
        labels, classes = from_csv(Path(config.labels), folder, paths)
    elif config.class_conditional:
        labels, classes = from_folders(folder, paths)
    return Source(
        length=len(paths),
        open=lambda i: paths[i].open("rb"),
        name=lambda i: str(paths[i]),
        identity=fingerprint_files(paths),
        labels=labels,
        classes=classes,
    )
