"""A data set of images by index, as tensors of one size, and the images held out of it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.condition import NO_CONDITION, Condition
from ddpm_sa.data.conditioning import ConditionDraw, Conditioner
from ddpm_sa.data.sources.source import Splits
from ddpm_sa.data.stream import Stream
from ddpm_sa.image_format import ImageFormat, pad_tensor, pad_to, to_tensor

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set of images of one size.

    Attributes:
        length: Number of images.
        format: Channels, size, depth, value range, and names of the classes.
        read: Reads images by their indices, (B,) int64 -> (B, H, W, C) of the format's dtype.
        labels: (length,) int64, or None; `labels_of` also gives the labels of a stream.
        label_dropout: Whether an extra class stands for "no label".
        grid: (height, width) of the tensors, padded to what a network can halve.
        validation: The images held out of training, or None.
        stream: Reads the images by their position in the run, if they are streamed.
        skipped: The names of images that cannot be read, each with the reason.
        notes: Warnings about likely mistakes.
        splits: The splits of the source, or None if it has none.
        conditioner: Makes the images that each one is conditioned on, or None.
        report: Further lines of `describe`.
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
    splits: Splits | None = None
    conditioner: Conditioner | None = None
    report: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, or None without labels."""
        return None if self.format.labels is None else list(self.format.labels)

    @property
    def num_class_embeds(self) -> int | None:
        """Number of class embeddings, including that of "no label"; None without labels."""
        return None if self.classes is None else len(self.classes) + self.label_dropout

    @property
    def all_skipped(self) -> tuple[str, ...]:
        """The skipped images, including those of the validation set."""
        return self.skipped + (self.validation.all_skipped if self.validation else ())

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """The labels of images that were just read, (B,) int64."""
        if self.stream is not None:
            return self.stream.labels(indices)
        assert self.labels is not None
        return self.labels[indices]

    def condition(self, indices: np.ndarray, dropped: np.ndarray | None = None) -> Condition:
        """The network's condition for images that were just read; empty without labels.

        Args:
            indices: Indices of the images, (B,) int64.
            dropped: Whether to drop each label, (B,) bool: replaced by the class after the last.
        """
        if self.classes is None:
            return NO_CONDITION
        labels = torch.from_numpy(self.labels_of(indices))
        if dropped is not None:
            labels = labels.masked_fill(torch.from_numpy(dropped), len(self.classes))
        return Condition(class_labels=labels)

    def batch(self, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Read images, (B, H, W, C), flipped left to right where flips, (B,) bool, is true."""
        images = self.read(indices)
        # Three times as fast as [:, :, ::-1], which numpy copies byte by byte.
        images[flips] = images[flips].take(np.arange(images.shape[2])[::-1], axis=2)
        return images

    def tensors(self, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """Return `batch` as the network's input: (B, C, *grid), float32, in [-1, 1].

        Padding, at the bottom and the right, reflects the image. It counts in the loss like the
        image: sampling starts from noise there too, so the network must learn what belongs there,
        and a reflected image is as hard to denoise as an image, so the loss stays comparable.
        """
        images = pad_to(self.batch(indices, flips), self.grid or self.format.size)
        return to_tensor(images, self.format.value_range)

    def condition_image(
        self, x_0: Tensor, indices: np.ndarray, flips: np.ndarray, draw: ConditionDraw
    ) -> Tensor | None:
        """The channels that follow those of x_t, (B, K, *grid), padded like the images; or None.

        Args:
            x_0: What `tensors` gave for these images.
            indices, flips: (B,), as for `tensors`.
            draw: The random numbers of the conditions.
        """
        if self.conditioner is None:
            return None
        height, width = self.format.size
        condition = self.conditioner(x_0[..., :height, :width], indices, flips, draw)
        return pad_tensor(condition, self.grid or self.format.size)

    def pad_to(self, height: int, width: int) -> "Images":
        """Return the same images padded to this size as tensors, including the validation set."""
        held_out = self.validation and self.validation.pad_to(height, width)
        return replace(self, grid=(height, width), validation=held_out)

    def fingerprint(self) -> str:
        """A hash of the pixels, their order and the format."""
        digest = hashlib.sha256(repr((self.length, self.format)).encode())
        for start in range(0, self.length, 256):
            indices = np.arange(start, min(start + 256, self.length))
            digest.update(np.ascontiguousarray(self.read(indices)).data)
        return digest.hexdigest()

    def subset(self, indices: np.ndarray) -> "Images":
        """Return the images at these sorted indices, (N,) int64, without notes."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(
            self,
            length=len(indices),
            labels=labels,
            read=lambda i: self.read(indices[i]),
            notes=(),
            skipped=(),
            conditioner=self.conditioner and self.conditioner.subset(indices),
        )

    def describe_split(self) -> str | None:
        """Describe the split that was taken and what was left out; None without splits."""
        if self.splits is None:
            return None
        other = self.validation.splits if self.validation is not None else None
        same = other is not None and other.lengths == self.splits.lengths
        return self.splits.describe(self.length, other.taken if other and same else None)

    def describe(self, source: str) -> list[str]:
        """Return the lines of a report on the images."""
        height, width = self.format.size
        low, high = self.format.value_range
        classes = f", {len(self.classes)} classes" if self.classes else ""
        lines = [
            f"images      {self.length} of {height}x{width}, channels {self.format.channels}, "
            f"{self.format.bit_depth} bits in {low:g} .. {high:g}{classes}, from {source}"
        ]
        if self.conditioner is not None:
            condition, channels = self.conditioner.format, self.format.in_channels
            lines.append(
                f"condition   {condition}: {channels - self.format.channels} more channels"
            )
        lines += self.report
        held_out = self.validation
        if (split := self.describe_split()) is not None:
            lines.append(f"split       {split}")
        if held_out is not None:
            split = f", split {held_out.splits.taken}" if held_out.splits else ""
            lines.append(f"held out    {held_out.length} images for validation{split}")
        if self.grid not in (None, self.format.size):
            lines.append(
                f"padding     {height}x{width} to {'{}x{}'.format(*self.grid)}, which the network "
                "can halve; cropped when sampling"
            )
        return lines


def use_one_core() -> None:
    """Limit torch to one CPU core in this thread, which leaves the other cores to other threads."""
    torch.get_num_threads()  # without this first call, torch ignores the limit in a new thread
    torch.set_num_threads(1)


def prefetch(make: Callable[[int], Item], steps: Iterable[int]) -> Iterator[Item]:
    """Yield make(step) for each step, computed in a thread while the previous item is in use."""
    with ThreadPoolExecutor(1) as thread:
        threads = torch.get_num_threads()
        thread.submit(use_one_core).result()
        torch.set_num_threads(threads)  # for this thread and later ones
        ahead = None
        for step in steps:
            current, ahead = ahead, thread.submit(make, step)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()
