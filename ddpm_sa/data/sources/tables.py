"""Tables: parquet files, what `save_to_disk` wrote, and data sets of the Hugging Face Hub."""

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.labels import encode_labels
from ddpm_sa.data.sources.folders import Found, scan
from ddpm_sa.data.sources.source import (
    DEFAULT_SPLIT,
    SOURCES,
    Source,
    Splits,
    choose_split,
    fingerprint_files,
)
from ddpm_sa.errors import UserError

# What save_to_disk leaves in a folder: of a DatasetDict, and of a Dataset.
SAVED_DICT, SAVED = "dataset_dict.json", ("state.json", "dataset_info.json")


class Table(NamedTuple):
    """A table with a column of images.

    Attributes:
        rows: A datasets.Dataset, or an IterableDataset if it is streamed.
        column: The column of the images.
        length: Number of rows; None if that is unknown before they are read.
        splits: The splits of the source, or None if it has none.
    """

    rows: Any
    column: str
    length: int | None
    splits: Splits | None


def is_table(config: DataConfig, found: Found | None = None) -> bool:
    """Whether the source has rows and columns; `found` is what lies in it, if that is known."""
    return config.source.endswith(".parquet") or names_table(config.source, found)


def names_table(source: str, found: Found | None = None) -> bool:
    """Whether the source is a folder that holds a table, or a data set of the Hub."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return _is_hub_name(source)
    if _is_saved(path):
        return True
    found = found or scan(path)
    return bool(found.parquet) and not found.images


def _is_saved(folder: Path) -> bool:
    return (folder / SAVED_DICT).is_file() or all((folder / name).is_file() for name in SAVED)


def _is_hub_name(source: str) -> bool:
    """Whether the source reads OWNER/NAME, is not a local path and does not look like one."""
    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.endswith("/") or path.exists()
    return not looks_local and source.count("/") == 1


def open_table(config: DataConfig, any_split: bool = False) -> Source:
    """Open a table as a source.

    Args:
        config: The data settings.
        any_split: Whether to open the only split of a saved data set whatever its name is.

    Raises:
        ValueError: If it cannot be read or has no such split or column.
    """
    import datasets  # takes two seconds, which other sources do not need

    table, column, _, splits = find_table(config, streaming=False, any_split=any_split)
    source = config.source
    images = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
    cells = images.data.column(column)  # images[i] would take as long as decoding the image
    assert len(cells) == len(images)

    labels, classes = None, None
    if config.class_conditional:
        labels, classes = _label_column(table, config.label_column, source)
    files = [Path(file["filename"]) for file in table.cache_files]
    # Parts of a split, train[:10%] and train[10%:], lie in the same files.
    part = splits.taken if splits else ""
    return Source(
        length=len(table),
        open=lambda i: open_cell(cells[i].as_py()),
        name=lambda i: f"row {i} of {source}",
        identity=fingerprint_files(files, column, part),
        labels=labels,
        classes=classes,
        splits=splits,
    )


def find_table(config: DataConfig, streaming: bool, any_split: bool = False) -> Table:
    """Find the table that a configuration names.

    Raises:
        ValueError: If it cannot be read or has no such split or column.
    """
    source, path = config.source, Path(config.source).expanduser()
    try:
        if path.is_dir() and _is_saved(path):
            rows, splits = _load_saved(path, config, any_split)
            length = len(rows)
            rows = rows.to_iterable_dataset() if streaming else rows
        else:
            rows, length, splits = _load_built(path, config, streaming)
    except UserError:
        raise
    except Exception as error:  # whatever the Hub, its client or the readers raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"data.source={source}, split {config.split}, cannot be read ({type(error).__name__}: "
            f"{reason}); {SOURCES}"
        ) from error
    column = config.image_column or _only_image_column(rows.features, source)
    if column not in rows.features:
        raise UserError(f"{source} has no column {column!r}, only {sorted(rows.features)}")
    return Table(rows, column, length, splits)


def _load_saved(path: Path, config: DataConfig, any_split: bool) -> tuple[Any, Splits | None]:
    """Load what save_to_disk wrote."""
    import datasets

    saved: Any = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        lengths = {str(name): len(rows) for name, rows in saved.items()}
        split = choose_split(lengths, config.split, config.source, "", any_split)
        return saved[split], Splits(split, lengths)
    own = str(saved.split or DEFAULT_SPLIT)
    if config.split != DEFAULT_SPLIT:
        choose_split({own: len(saved)}, config.split, config.source, "", any_split)
    return saved, None


def _load_built(
    path: Path, config: DataConfig, streaming: bool
) -> tuple[Any, int | None, Splits | None]:
    """Load .parquet files, or a data set of the Hub."""
    import datasets
    import pyarrow.parquet

    split, is_file = config.split, path.suffix == ".parquet"
    if is_file and not path.is_file():
        raise UserError(f"data.source={config.source} is not a file")
    if is_file:
        builder = datasets.load_dataset_builder("parquet", data_files={split: str(path)})
    else:
        builder = datasets.load_dataset_builder(str(path) if path.is_dir() else config.source)
    if streaming:
        rows: Any = builder.as_streaming_dataset(split=split)
        files = list((builder.config.data_files or {}).get(split, []))
        length = None
        if files and all(Path(file).is_file() for file in files):
            length = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    else:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
        length = len(rows)
    known = {str(name): info.num_examples for name, info in (builder.info.splits or {}).items()}
    return rows, length or known.get(split), None if is_file else Splits(split, known)


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
