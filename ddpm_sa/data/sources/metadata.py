"""metadata.csv, metadata.jsonl and metadata.parquet: rows about the images beside them."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_sa.data.labels import encode_labels
from ddpm_sa.data.sources.folders import SUFFIXES, ImageFile, MetadataFile, broken_link
from ddpm_sa.errors import UserError, require

FILE_NAME = "file_name"


class Row(NamedTuple):
    """What a metadata file says of one image; the label is None if it has none."""

    file: MetadataFile
    name: str
    label: str | int | None


class Metadata(NamedTuple):
    """The rows of a folder's metadata files.

    Attributes:
        rows: The rows, file by file.
        classes: Names of the classes 0, 1, ... if the files keep them, as .parquet files may.
        foreign: Files that have no column file_name, and so are not about images.
    """

    rows: list[Row]
    classes: list[str] | None
    foreign: list[Path]


def read_metadata(files: Sequence[MetadataFile], split: str, label_column: str | None) -> Metadata:
    """Read the metadata files of a folder.

    Args:
        files: The files. They may lack labels if they are those of another split.
        split: The split that is taken.
        label_column: The column of the labels; None reads no labels.

    Raises:
        ValueError: If a file cannot be read or lacks a column, or files differ in kind.
    """
    rows: list[Row] = []
    foreign: list[Path] = []
    formats: dict[str, Path] = {}
    kinds: dict[tuple[type, tuple[str, ...]], Path] = {}
    for file in files:
        table = _read_table(file.path)
        needed = [FILE_NAME] if label_column is None else [FILE_NAME, label_column]
        missing = [column for column in needed if column not in table.column_names]
        if missing and file.split not in (None, split):
            continue
        if missing and label_column is None:
            foreign.append(file.path)
            continue
        if missing:
            raise UserError(
                f"{file.path} has no column {missing[0]!r}, only {', '.join(table.column_names)}; "
                "rename a column, set data.label_column, or name a CSV file by data.labels"
            )
        names = [str(name) for name in table[FILE_NAME].to_pylist()]
        labels = [None] * len(names)
        formats.setdefault(file.path.suffix, file.path)
        if label_column is not None:
            labels, classes = _read_labels(table, label_column, file.path)
            for label in [label for label in labels if label is not None][:1]:
                kinds.setdefault((type(label), tuple(classes)), file.path)
        rows += [Row(file, name, label) for name, label in zip(names, labels, strict=True)]
    for different in (formats, kinds):
        require(
            len(different) < 2,
            f"{' and '.join(map(str, different.values()))} differ in their format or in the kind "
            "of their labels; the metadata files of a folder must be alike",
        )
    classes = [name for _, names in kinds for name in names]
    return Metadata(rows, classes or None, foreign)


def match_rows(
    rows: Sequence[Row],
    images: Sequence[ImageFile],
    others: Collection[str],
    split: str,
    default_split: str | None,
) -> dict[Path, Row]:
    """Return the row of each image of a split that has one, by the image's path.

    Args:
        rows: Rows about the images of every split.
        images: The images of the split.
        others: The paths of all other images.
        split: The split.
        default_split: The split of a row that names no folder of a split.

    Raises:
        ValueError: If a row of the split names no image, or an image has two labels.
    """
    taken = {str(image.path): image for image in images}
    real: dict[str, ImageFile] = {}
    matched: dict[Path, Row] = {}
    for row in rows:
        # As imagefolder does, and so a set made on Windows is read.
        name = os.path.normpath(row.name).replace("\\", "/")
        require(
            not (os.path.isabs(name) or name.split("/")[0] == ".."),
            f"{row.file.path} names {row.name}, which is not below {row.file.path.parent}",
        )
        path = os.path.join(row.file.path.parent, name)
        if path in others or (row.file.split_of_row(name) or default_split) != split:
            continue
        image = taken.get(path)
        if image is None and os.path.exists(path):  # found by another path that has no links
            real = real or {os.path.realpath(name): image for name, image in taken.items()}
            image = real.get(os.path.realpath(path))
        if image is None:
            raise UserError(f"{row.file.path} names {row.name}, which {_why_no_image(path)}")
        before = matched.setdefault(image.path, row)
        require(
            before.label == row.label,
            f"{row.file.path} names {row.name} twice, as {before.label} and {row.label}",
        )
    return matched


def encode_rows(
    rows: Sequence[Row], classes: list[str] | None, every: Sequence[Row]
) -> tuple[np.ndarray, list[str] | None]:
    """Return the labels of rows, (N,) int64, and the names of the classes.

    Args:
        rows: One row for each image.
        classes: Names of the classes, if the files keep them.
        every: The rows of every split, whose names are classes too.

    Raises:
        ValueError: If a row has no label.
    """
    for row in rows:
        require(
            row.label not in (None, ""),
            f"{row.file.path} has no label for {row.name}",
        )
    if any(isinstance(row.label, str) for row in rows):
        return encode_labels(
            [str(row.label) for row in rows], [str(row.label) for row in every if row.label]
        )
    return np.array([row.label for row in rows], dtype=np.int64), classes


def _read_table(file: Path) -> Any:
    """Read a table as imagefolder does, with the types that its values show."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    try:
        if file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(file)
        elif file.suffix == ".jsonl":
            table = pyarrow.json.read_json(file)
        else:
            names = pyarrow.csv.ConvertOptions(column_types={FILE_NAME: pyarrow.string()})
            table = pyarrow.csv.read_csv(file, convert_options=names)
        table.column_names  # noqa: B018  (decoded here, and may be no text)
        return table
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = broken_link(file) if not file.exists() else f"cannot be read: {error}"
        raise UserError(f"{file} {reason.splitlines()[0]}") from error


def _read_labels(table: Any, column: str, file: Path) -> tuple[list[Any], list[str]]:
    """Return the labels of a column, and the names of their classes where the file keeps them."""
    labels = table[column].to_pylist()
    kinds = {type(label) for label in labels if label is not None}
    require(
        kinds in (set(), {str}, {int}),
        f"column {column!r} of {file} holds neither whole numbers nor names",
    )
    if b"huggingface" not in (table.schema.metadata or {}):
        return labels, []
    import datasets

    feature = datasets.Features.from_arrow_schema(table.schema)[column]
    return labels, list(getattr(feature, "names", None) or [])


def _why_no_image(path: str) -> str:
    if os.path.lexists(path) and not os.path.exists(path):
        return broken_link(path)
    if not os.path.exists(path):
        return "does not exist; remove the row or restore the file"
    return f"is not an image that can be read ({' '.join(SUFFIXES)}, not hidden)"
