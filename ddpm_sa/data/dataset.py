"""The images of a run, by index, as tensors of one size; and those held out of it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.condition import NO_CONDITION, Condition
from ddpm_sa.data.stream import Stream
from ddpm_sa.image_format import ImageFormat, to_tensor

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set of images of one size.

    Attributes:
        length: How many.
        format: Their channels, size, depth, range, and the names of their classes.
        read: Images of some indices, (B,) int64 -> (B, H, W, C) of the format's type.
        labels: (length,) int64, or None; `labels_of` gives those of a stream too.
        label_dropout: Whether a further class stands for "no label".
        grid: (height, width) of their tensors: what a network can halve.
        validation: The images held out of these, or None.
        stream: Reads them as they come, by their place in the run, where they are not kept.
        skipped: What was left out since it cannot be read, and why.
        notes: What a user may not have meant.
    """

    length: int
    format: ImageFormat
    read: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray | None = None
    label_dropout: bool = False
    grid: tuple[int, int] | None = None
    validation: "Images | None" = None
    stream: Stream | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str] | None:
        """Their classes' names, or None without labels."""
        return None if self.format.labels is None else list(self.format.labels)

    @property
    def num_class_embeds(self) -> int | None:
        """Classes that a network is told, with the one for "no label"; None without labels."""
        return None if self.classes is None else len(self.classes) + self.label_dropout

    @property
    def all_skipped(self) -> tuple[str, ...]:
        """What was left out here and of those held out."""
        return self.skipped + (self.validation.all_skipped if self.validation else ())

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """The labels of images that were just read, (B,) int64."""
        if self.stream is not None:
            return self.stream.labels(indices)
        assert self.labels is not None
        return self.labels[indices]

    def condition(self, indices: np.ndarray, dropped: np.ndarray | None = None) -> Condition:
        """What a network is told of images that were just read, (B,) int64; empty without labels.

        Args:
            indices: Which images.
            dropped: Whose label is left out, (B,) bool: they get the class after the last.
        """
        if self.classes is None:
            return NO_CONDITION
        labels = torch.from_numpy(self.labels_of(indices))
        if dropped is not None:
            labels = labels.masked_fill(torch.from_numpy(dropped), len(self.classes))
        return Condition(class_labels=labels)

    def batch(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Images (B, H, W, C), mirrored left to right where flips, (B,) bool, says so."""
        images = self.read(indices)
        # Three times as fast as [:, :, ::-1], which numpy copies byte by byte.
        images[flips] = images[flips].take(np.arange(images.shape[2])[::-1], axis=2)
        return images

    def tensors(self, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """`batch` as the network sees it: (B, C, *grid), float32, in [-1, 1].

        What the grid has beyond the image, below and to the right, mirrors it. It counts in the
        loss as the rest does: sampling begins with noise there too, so the network must know what
        belongs there, and a mirrored image is as hard to denoise as an image, so that the loss
        stays comparable.
        """
        images = self.batch(indices, flips)
        extra = [
            (0, new - old) for new, old in zip(self.grid or (), self.format.size, strict=False)
        ]
        if any(after for _, after in extra):
            images = np.pad(images, [(0, 0), *extra, (0, 0)], mode="reflect")
        return to_tensor(images, self.format.value_range)

    def padded_to(self, height: int, width: int) -> "Images":
        """The same images, continued to the size of a network's grid; those held out too."""
        held_out = self.validation and self.validation.padded_to(height, width)
        return replace(self, grid=(height, width), validation=held_out)

    def fingerprint(self) -> str:
        """Another one if a pixel, their order or what -1 and 1 stand for is another."""
        found = hashlib.sha256(repr((self.length, self.format)).encode())
        for start in range(0, self.length, 256):
            indices = np.arange(start, min(start + 256, self.length))
            found.update(np.ascontiguousarray(self.read(indices)).data)
        return found.hexdigest()

    def part(self, indices: np.ndarray) -> "Images":
        """Some of them, by sorted indices, (N,) int64."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(
            self,
            length=len(indices),
            labels=labels,
            read=lambda i: self.read(indices[i]),
            notes=(),
            skipped=(),
        )

    def describe(self, source: str) -> list[str]:
        """Lines of a report on them."""
        height, width = self.format.size
        low, high = self.format.value_range
        classes = f", {len(self.classes)} classes" if self.classes else ""
        lines = [
            f"images      {self.length} of {height}x{width}, channels {self.format.channels}, "
            f"{self.format.bit_depth} bits in {low:g} .. {high:g}{classes}, from {source}"
        ]
        if self.validation is not None:
            lines.append(f"held out    {self.validation.length} images for validation")
        if self.grid not in (None, self.format.size):
            lines.append(
                f"padding     {height}x{width} to {'{}x{}'.format(*self.grid)}, which the network "
                "can halve; cropped when sampling"
            )
        return lines


def take_one_processor() -> None:
    """Keep torch in this thread from having helpers, which would take others' processors."""
    torch.get_num_threads()  # a thread that has not asked yet would forget what is set
    torch.set_num_threads(1)


def prefetched(make: Callable[[int], Item], steps: Iterable[int]) -> Iterator[Item]:
    """make(step) for each step, made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        threads = torch.get_num_threads()
        thread.submit(take_one_processor).result()
        torch.set_num_threads(threads)  # for this thread and those to come
        ahead = None
        for step in steps:
            current, ahead = ahead, thread.submit(make, step)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()
