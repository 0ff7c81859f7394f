"""Images of one size, by index: decoded once and kept, or decoded when a batch asks for them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from training.config import DataConfig
from training.sources import Source, folder_source, mnist5k, table_source

# Pillow's names for 8-bit grey (1 is black and white) and colour, and their channels.
CHANNELS_OF_MODE = {"1": 1, "L": 1, "RGB": 3}
CONVERTIBLE = frozenset({*CHANNELS_OF_MODE, "P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK"})
CONVERTIBLE |= {"YCbCr", "LAB", "HSV"}
GIB = 2**30

Item = TypeVar("Item")


@dataclass(frozen=True)
class Images:
    """A data set of square uint8 images.

    Attributes:
        length, size, channels: How many, height and width, 1 or 3.
        read: Images of some indices, (B,) int64 -> (B, size, size, channels) uint8.
        labels: (length,) int64, or None.
        classes: Their names, or None without labels.
        label_dropout: Whether a further class stands for "no label".
        enlarged: How many were smaller than `size`, and so were blown up.
    """

    length: int
    size: int
    channels: int
    read: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    label_dropout: bool = False
    enlarged: int = 0

    @property
    def num_class_embeds(self) -> int | None:
        """Classes that a network is told, with the one for "no label"; None without labels."""
        return None if self.classes is None else len(self.classes) + self.label_dropout

    def batch(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Images (B, size, size, channels) uint8, mirrored where flips, (B,) bool, says so."""
        images = self.read(indices)
        return np.where(flips[:, None, None, None], images[:, :, ::-1], images)


def open_images(config: DataConfig) -> Images:
    """Find, check and, where they fit into memory, decode the images of a run.

    Raises:
        ValueError: For anything that is wrong with them, naming the file or row.
    """
    if config.source == "mnist5k":
        return _digits(config)
    if config.source.endswith(".parquet") or _is_hub_name(config.source):
        source = table_source(
            config.source,
            config.split,
            config.image_column,
            config.label_column,
            config.class_conditional,
        )
    else:
        source = folder_source(Path(config.source), config.class_conditional)
    classes = None
    if source.labels is not None:
        classes = check_labels(source.labels, source.classes, source.name, config.num_classes)
    with ThreadPoolExecutor(config.num_workers) as pool:
        headers = list(pool.map(lambda i: _header(source, i), range(source.length)))
    channels = config.channels or _common_channels(source, headers)
    for i, (mode, _) in enumerate(headers):
        if mode not in CONVERTIBLE:
            raise ValueError(f"{source.name(i)} is of Pillow's mode {mode}, not 8 bits a channel")
    enlarged = sum(shorter < config.size for _, shorter in headers)
    return Images(
        length=source.length,
        size=config.size,
        channels=channels,
        read=_reader(source, config, channels),
        labels=source.labels,
        classes=classes,
        label_dropout=config.label_dropout > 0,
        enlarged=enlarged,
    )


def prefetched(make: Callable[[int], Item], steps: Iterable[int]) -> Iterator[Item]:
    """make(step) for each step, made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for step in steps:
            current, ahead = ahead, thread.submit(make, step)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()


def decode(source: Source, i: int, size: int, channels: int) -> np.ndarray:
    """Image i, (size, size, channels) uint8: shorter side to `size`, antialiased; centre crop.

    Raises:
        ValueError: If it cannot be decoded.
    """
    try:
        with source.open(i) as file, Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            converted = upright.convert("L" if channels == 1 else "RGB")
            square = ImageOps.fit(converted, (size, size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise SyntaxError for some broken files.
        raise ValueError(f"{source.name(i)} cannot be decoded: {error}") from error
    return np.asarray(square).reshape(size, size, channels)


def _is_hub_name(source: str) -> bool:
    """OWNER/NAME or NAME, if nothing of that name is here and it does not look like a path."""
    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.endswith("/") or path.exists()
    return not looks_local and source.count("/") == 1


def _digits(config: DataConfig) -> Images:
    images, labels = mnist5k()
    border = config.size - images.shape[1]
    if border < 0 or border % 2 or config.channels == 3:
        raise ValueError(
            f"data.source=mnist5k has grey images of 28 x 28, put on black up to an even data.size "
            f"of 28 or more; not data.size={config.size}, data.channels={config.channels}"
        )
    sides = (border // 2, border // 2)
    padded = np.pad(images, ((0, 0), sides, sides, (0, 0)))
    if not config.class_conditional:
        return Images(len(padded), config.size, 1, padded.__getitem__)
    return Images(
        length=len(padded),
        size=config.size,
        channels=1,
        read=padded.__getitem__,
        labels=labels,
        classes=check_labels(labels, None, "digit {}".format, config.num_classes),
        label_dropout=config.label_dropout > 0,
    )


def check_labels(
    labels: np.ndarray,
    classes: list[str] | None,
    name: Callable[[int], str],
    num_classes: int | None,
) -> list[str]:
    """The classes' names, if every label is one of theirs.

    Args:
        labels: (N,), of any integer type.
        classes: Their names, or None: their numbers.
        name: What to call image i in an error.
        num_classes: How many there are; None: as many as are named, or as the labels show.

    Raises:
        ValueError: If a label is outside 0 .. num_classes - 1.
    """
    named = classes or [str(label) for label in range(int(labels.max()) + 1)]
    count = num_classes or len(named)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if wrong.size:
        raise ValueError(
            f"{name(int(wrong[0]))} has label {labels[wrong[0]]}, outside 0 .. {count - 1} "
            f"({wrong.size} such); mend the labels or set data.num_classes"
        )
    return [*named, *map(str, range(len(named), count))]


def _header(source: Source, i: int) -> tuple[str, int]:
    """Pillow's mode and the shorter side, without decoding."""
    try:
        with source.open(i) as file, Image.open(file) as image:
            return image.mode, min(image.size)
    except UnidentifiedImageError as error:
        raise ValueError(f"{source.name(i)} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{source.name(i)} cannot be read: {error}") from error


def _common_channels(source: Source, headers: list[tuple[str, int]]) -> int:
    """1 or 3, if every image has as many.

    Raises:
        ValueError: Names one of each kind, or one of a mode that is neither.
    """
    first: dict[int, int] = {}
    for i, (mode, _) in enumerate(headers):
        if mode not in CHANNELS_OF_MODE:
            raise ValueError(
                f"{source.name(i)} is of Pillow's mode {mode}, neither grey nor RGB; set "
                "data.channels to 1 or 3 to convert every image"
            )
        first.setdefault(CHANNELS_OF_MODE[mode], i)
    if len(first) == 2:
        raise ValueError(
            f"images of 1 and 3 channels are mixed: {source.name(first[1])} has 1, "
            f"{source.name(first[3])} has 3; set data.channels to 1 or 3 to convert every image"
        )
    return next(iter(first))


def _reader(
    source: Source, config: DataConfig, channels: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Images by indices: from memory where they fit, else decoded by threads when asked for."""
    pool = ThreadPoolExecutor(config.num_workers)
    shape = (source.length, config.size, config.size, channels)

    def read(indices: np.ndarray) -> np.ndarray:
        decoded = pool.map(lambda i: decode(source, int(i), config.size, channels), indices)
        return np.stack(list(decoded))

    if np.prod(shape, dtype=float) > config.memory * GIB:
        return read
    images = np.empty(shape, dtype=np.uint8)
    for start in range(0, source.length, 1024):
        span = slice(start, start + 1024)
        images[span] = read(np.arange(source.length)[span])
    pool.shutdown()
    return images.__getitem__
