"""Class labels of images, from the names of folders, a column, or a CSV file."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ddpm_sa.errors import UserError

COLUMNS = ("file", "label")


def from_csv(file: Path, folder: Path, paths: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """Read the label of each image, by its path relative to the folder, from a CSV file.

    Raises:
        ValueError: If the file cannot be read, lacks a column or an image, or gives an image two
            labels.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"no column {sorted(missing)[0]!r}, only {reader.fieldnames}")
            rows = [(row["file"], row["label"]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"data.labels={file} cannot be read: {error}") from error
    labels: dict[str, str] = {}
    for name, label in rows:
        if not label:
            raise UserError(f"data.labels={file} has no label for {name}")
        if labels.setdefault(name, label) != label:
            raise UserError(f"data.labels={file} has {name} twice: {labels[name]} and {label}")
    names = [path.relative_to(folder).as_posix() for path in paths]
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise UserError(
            f"data.labels={file} has no row for {unknown[0]} ({len(unknown)} such images in "
            f"{folder})"
        )
    return encode_labels([labels[name] for name in names])


def encode_labels(
    names: Sequence[str], further: Iterable[str] = ()
) -> tuple[np.ndarray, list[str]]:
    """Encode names as class indices, (N,) int64, and return them with the sorted class names.

    Classes are sorted by value if all names are numbers, else alphabetically. `further` names are
    classes too, such as those of the other splits.
    """
    every = {*names, *further}
    numeric = all(name.isdecimal() for name in every)
    classes = sorted(every, key=(lambda name: (int(name), name)) if numeric else None)
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64), classes


def check_num_classes(num_classes: int | None, names: Sequence[str]) -> None:
    """Check that there are as many classes as names, or more.

    Raises:
        ValueError: If num_classes is below the number of names.
    """
    if num_classes is not None and num_classes < len(names):
        raise UserError(
            f"data.num_classes={num_classes} is below the {len(names)} classes "
            f"({', '.join(names)}) of the data; set it to {len(names)} or more, or leave it out"
        )


def check_labels(
    labels: np.ndarray,
    classes: list[str] | None,
    name: Callable[[int], str],
    num_classes: int | None,
) -> list[str]:
    """Check that every label has a class, and return the names of all classes.

    Args:
        labels: (N,), of any integer type.
        classes: Names of the classes, or None to name them by their numbers.
        name: Returns the name of image i, for error messages.
        num_classes: Number of classes; None for the number of names, or the highest label plus 1.

    Raises:
        ValueError: If a label is outside 0 .. num_classes - 1, or num_classes is below the number
            of names.
    """
    if classes is not None:
        check_num_classes(num_classes, classes)
    named = classes or [str(label) for label in range(int(labels.max()) + 1)]
    count = num_classes or len(named)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if wrong.size:
        raise UserError(
            f"{name(int(wrong[0]))} has label {labels[wrong[0]]}, outside 0 .. {count - 1} "
            f"({wrong.size} such); correct the labels or set data.num_classes"
        )
    return [*named, *map(str, range(len(named), count))]
