"""Images that are read as they come, from files or the hub, and never kept.

Image p of a run is row p of a stream that begins anew, shuffled otherwise, after each epoch. So it
is a function of the seed and of p, as every draw is: each process reads all rows and decodes its
own, any number of processes sees the same images, and a resumed run reads on from its step without
saved state.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.labels import check_num_classes
from ddpm_sa.data.prepare import header, pixels
from ddpm_sa.data.sources import Source, find_table, is_table, open_cell
from ddpm_sa.data.value_range import check_range, whole_range


class Stream:
    """The rows of a table, by their place in the run.

    Args:
        config: Which table, and how its images become of one size.
        seed: Shuffles the rows, through a buffer of `config.shuffle_buffer` rows.

    Attributes:
        length: Rows of an epoch.
        channels, dtype, value_range: What the images have, as the first one.
        classes: Names of the labels, or None without labels.

    Raises:
        ValueError: If there is no such table, or it does not say what is needed beforehand.
    """

    def __init__(self, config: DataConfig, seed: int):
        self.config = config
        self.table, self.column, self.length = _opened(config, seed)
        self.rows: dict[int, dict[str, Any]] = {}
        self.epoch, self.next = -1, 0
        self.row_iterator: Iterator[dict[str, Any]] = iter(())
        self.source = Source(
            self.length, self._encoded, lambda i: f"row {i} of the stream {config.source}", ""
        )
        self.pool = ThreadPoolExecutor(config.num_workers)
        self.classes = self._classes() if config.class_conditional else None
        self._fetch([0])
        first = header(self.source, config.channels, 0)
        if first.channels is None:
            raise ValueError(
                f"{self.source.name(0)} is {first.kind}, neither grey nor RGB; set data.channels"
            )
        self.channels, self.dtype = first.channels, first.dtype
        known = config.value_range or whole_range(first.dtype)
        if known is None:
            raise ValueError("data.streaming of floats needs data.value_range: none is measured")
        self.value_range = known

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images at these places of the run, ascending, (B,) -> (B, H, W, C)."""
        self._fetch(indices.tolist())
        return np.stack(list(self.pool.map(self._image, indices.tolist())))

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The labels of images that were just read, (B,) int64."""
        assert self.classes is not None
        column = self.config.label_column
        for i in indices.tolist():
            if self.rows[i][column] is None:
                raise ValueError(f"{self.source.name(i)} has no label in column {column!r}")
        labels = np.array([self.rows[i][column] for i in indices.tolist()])
        if not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(
                f"data.source={self.config.source} has labels {labels.min()} .. {labels.max()}, "
                f"outside 0 .. {len(self.classes) - 1}"
            )
        return labels.astype(np.int64)

    def _fetch(self, indices: list[int]) -> None:
        """Read on to these rows; those between belong to other processes."""
        fetched = {}
        for i in indices:
            fetched[i] = self.rows[i] if i in self.rows else self._row(i)
        self.rows = fetched

    def _row(self, i: int) -> dict[str, Any]:
        epoch = i // self.length
        if epoch != self.epoch or self.next > i:
            self.table.set_epoch(epoch)
            self.row_iterator = iter(self.table)
            self.epoch, self.next = epoch, epoch * self.length
        row = None
        while self.next <= i:
            row = next(self.row_iterator, None)
            self.next += 1
            if row is None:
                raise ValueError(
                    f"data.source={self.config.source} ended before row {i % self.length} of "
                    f"{self.length}"
                )
        assert row is not None
        return row

    def _image(self, i: int) -> np.ndarray:
        image = pixels(self.source, self.config, self.channels, i)
        if image.dtype != self.dtype:
            raise ValueError(
                f"{self.source.name(i)} is {image.dtype}, the first of its rows {self.dtype}"
            )
        check_range(self.value_range, image.min(), image.max(), self.source.name(i))
        return image

    def _encoded(self, i: int) -> BinaryIO:
        return open_cell(self.rows[i][self.column])

    def _classes(self) -> list[str]:
        column, features = self.config.label_column, self.table.features
        if column not in features:
            raise ValueError(f"{self.config.source} has no column {column!r}, only {[*features]}")
        dtype = str(getattr(features[column], "dtype", features[column]))
        if not dtype.startswith(("int", "uint")):
            raise ValueError(
                f"column {column!r} of the stream {self.config.source} holds values of type "
                f"{dtype}; streamed labels must be whole numbers or a ClassLabel column. Set "
                "data.streaming false to label by names"
            )
        names = list(getattr(features[column], "names", None) or ())
        check_num_classes(self.config.num_classes, names)
        count = self.config.num_classes or len(names)
        if not count:
            raise ValueError(f"column {column!r} names no classes; set data.num_classes")
        return [*names, *map(str, range(len(names), count))]


def _opened(config: DataConfig, seed: int) -> tuple[Any, str, int]:
    """The shuffled table, its column of images, and how many rows it has."""
    import datasets
    import pyarrow.parquet

    if not is_table(config):
        raise ValueError(
            f"data.source={config.source} is no table: data.streaming is for .parquet files, "
            "folders of them, and data sets of the hub"
        )
    table, column, files = find_table(config, streaming=True)
    table = table.cast_column(column, datasets.Image(decode=False))
    local = [Path(file) for file in files if Path(file).is_file()]
    if files and len(local) == len(files):
        length = sum(pyarrow.parquet.read_metadata(file).num_rows for file in local)
    elif (known := (table.info.splits or {}).get(config.split)) and known.num_examples:
        length = known.num_examples
    else:
        raise ValueError(
            f"data.source={config.source} does not say how many rows it has; set data.streaming "
            "false to download it"
        )
    return table.shuffle(seed=seed, buffer_size=config.shuffle_buffer), column, length
