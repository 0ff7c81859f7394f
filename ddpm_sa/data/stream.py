"""Stream images from parquet files or the Hugging Face Hub without storing them.

Image p of a run is row p of a stream that restarts after each epoch in a new order. It is therefore
a function of the seed and p: each process reads all rows and decodes its own, any number of
processes sees the same images, and a resumed run needs no saved state.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.labels import check_num_classes
from ddpm_sa.data.scan import read_header, read_pixels
from ddpm_sa.data.sources.source import Source
from ddpm_sa.data.sources.tables import Table, find_table, is_table, open_cell
from ddpm_sa.data.value_range import check_range, full_range
from ddpm_sa.errors import UserError


class Stream:
    """The rows of a table, addressed by their position in the run.

    Args:
        config: The data settings.
        seed: Seed of the shuffling, in a buffer of `config.shuffle_buffer` rows.

    Attributes:
        length: Number of rows in an epoch.
        channels, dtype, value_range: Of the first image, and so of every image.
        classes: Names of the classes, or None without labels.
        splits: The splits of the source, or None if it has none.

    Raises:
        ValueError: If there is no such table, or its length, classes or value range are unknown.
    """

    def __init__(self, config: DataConfig, seed: int):
        self.config = config
        table, self.length = _open_table(config, seed)
        self.table, self.column, self.splits = table.rows, table.column, table.splits
        self.rows: dict[int, dict[str, Any]] = {}
        self.epoch, self.next = -1, 0
        self.row_iterator: Iterator[dict[str, Any]] = iter(())
        self.source = Source(
            self.length, self._encoded, lambda i: f"row {i} of the stream {config.source}", ""
        )
        self.pool = ThreadPoolExecutor(config.num_workers)
        self.classes = self._classes() if config.class_conditional else None
        self._fetch([0])
        first = read_header(self.source, config.channels, 0)
        if first.channels is None:
            raise UserError(
                f"{self.source.name(0)} is {first.kind}, neither grey nor RGB; set data.channels"
            )
        self.channels, self.dtype = first.channels, first.dtype
        if config.clips or config.nan is not None:
            raise UserError(
                "data.streaming reads no image in advance, and cannot count what data.clip, "
                "percentiles or data.nan change; leave them out"
            )
        value_range = config.fixed_range or full_range(first.dtype)
        if value_range is None:
            raise UserError(
                "data.streaming of float images needs data.value_range, since the images are not "
                "read in advance"
            )
        self.value_range = value_range

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the images at these ascending positions of the run, (B,) -> (B, H, W, C)."""
        self._fetch(indices.tolist())
        return np.stack(list(self.pool.map(self._image, indices.tolist())))

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels of images that were just read, (B,) int64."""
        assert self.classes is not None
        column = self.config.label_column
        for i in indices.tolist():
            if self.rows[i][column] is None:
                raise UserError(f"{self.source.name(i)} has no label in column {column!r}")
        labels = np.array([self.rows[i][column] for i in indices.tolist()])
        if not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise UserError(
                f"data.source={self.config.source} has labels {labels.min()} .. {labels.max()}, "
                f"outside 0 .. {len(self.classes) - 1}"
            )
        return labels.astype(np.int64)

    def _fetch(self, indices: list[int]) -> None:
        """Advance to these rows; the rows between belong to other processes."""
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
                raise UserError(
                    f"data.source={self.config.source} ended before row {i % self.length} of "
                    f"{self.length}"
                )
        assert row is not None
        return row

    def _image(self, i: int) -> np.ndarray:
        image = read_pixels(self.source, self.config, self.channels, i)
        if image.dtype != self.dtype:
            raise UserError(
                f"{self.source.name(i)} is {image.dtype}, but the first row is {self.dtype}"
            )
        check_range(self.value_range, image.min(), image.max(), self.source.name(i))
        return image

    def _encoded(self, i: int) -> BinaryIO:
        return open_cell(self.rows[i][self.column])

    def _classes(self) -> list[str]:
        column, features = self.config.label_column, self.table.features
        if column not in features:
            raise UserError(f"{self.config.source} has no column {column!r}, only {[*features]}")
        dtype = str(getattr(features[column], "dtype", features[column]))
        if not dtype.startswith(("int", "uint")):
            raise UserError(
                f"column {column!r} of the stream {self.config.source} holds values of type "
                f"{dtype}; streamed labels must be whole numbers or a ClassLabel column. Set "
                "data.streaming false to label by names"
            )
        names = list(getattr(features[column], "names", None) or ())
        check_num_classes(self.config.num_classes, names)
        count = self.config.num_classes or len(names)
        if not count:
            raise UserError(f"column {column!r} does not name its classes; set data.num_classes")
        return [*names, *map(str, range(len(names), count))]


def _open_table(config: DataConfig, seed: int) -> tuple[Table, int]:
    """Return the shuffled table and its number of rows."""
    import datasets

    if not is_table(config):
        raise UserError(
            f"data.source={config.source} is not a table: data.streaming is for .parquet files, "
            "folders of them, what save_to_disk wrote, and data sets of the Hub"
        )
    table = find_table(config, streaming=True)
    if not table.length:
        raise UserError(
            f"the number of rows of data.source={config.source} is unknown; set data.streaming "
            "false to download it"
        )
    rows = table.rows.cast_column(table.column, datasets.Image(decode=False))
    shuffled = rows.shuffle(seed=seed, buffer_size=config.shuffle_buffer)
    return table._replace(rows=shuffled), table.length
