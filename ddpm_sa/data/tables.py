"""Tables: a parquet file, a folder of them, or a data set of the Hugging Face Hub."""

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.folders import find_images
from ddpm_sa.data.labels import encode_labels
from ddpm_sa.data.sources import SOURCES, Source, fingerprint_files
from ddpm_sa.errors import UserError


def is_table(config: DataConfig) -> bool:
    """Whether the source has rows and columns."""
    return config.source.endswith(".parquet") or has_splits(config)


def has_splits(config: DataConfig) -> bool:
    """Whether the source is a folder of parquet files, or a data set of the Hub."""
    path = Path(config.source).expanduser()
    if path.is_dir():
        return any(path.rglob("*.parquet")) and not find_images(path)
    return _is_hub_name(config.source)


def _is_hub_name(source: str) -> bool:
    """Whether the source reads OWNER/NAME, is not a local path and does not look like one."""
    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.endswith("/") or path.exists()
    return not looks_local and source.count("/") == 1


def open_table(config: DataConfig) -> Source:
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
        identity=fingerprint_files(files, column),
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
