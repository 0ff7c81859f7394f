"""Images as people keep them, and tensors in [-1, 1] as networks want them, without loss between.

Today 8 bits and 1 or 3 channels become pictures; `images.json` already says how deep the pixels
are and what range they span, so that a folder written now can be read when deeper images come.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FILE_NAME = "images.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """What a network's images are, as `images.json` in its folder keeps it.

    Attributes:
        channels: 1 is grey, 3 is RGB; a network may have any number.
        size: (height, width) in pixels.
        bit_depth: Bits of one stored value.
        value_range: The stored values that become -1 and 1.
        labels: Names of the classes, in the order of their numbers, or None.

    Raises:
        ValueError: If a value is out of range.
    """

    channels: int
    size: tuple[int, int]
    bit_depth: int = 8
    value_range: tuple[float, float] = (0, 255)
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels={self.channels} must be at least 1")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size={self.size} must be (height, width), each at least 1")
        if self.bit_depth not in (8, 16, 32):
            raise ValueError(f"bit_depth={self.bit_depth} must be 8, 16 or 32")
        if len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range={self.value_range} must be (lowest, highest)")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image's tensor."""
        return self.channels, *self.size

    @property
    def is_picture(self) -> bool:
        """Whether an ordinary picture holds it: 1 or 3 channels of the whole of 8 bits."""
        return self.channels in (1, 3) and self.bit_depth == 8 and self.value_range == (0, 255)

    def save(self, folder: str | Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (Path(folder) / FILE_NAME).write_text(text + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "ImageFormat":
        """Read a folder's `images.json`.

        Raises:
            ValueError: If it isn't there, is no JSON, or lacks, misnames or misuses a field.
        """
        path = Path(folder) / FILE_NAME
        try:
            fields = json.loads(path.read_text())
            lists = {name: tuple(v) for name, v in fields.items() if isinstance(v, list)}
            return cls(**(fields | lists))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not describe images: {error}") from error


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """x / 127.5 - 1, as the paper's code has it.

    Args:
        images: uint8, (N, H, W, C) or (H, W, C).

    Returns:
        float32, (N, C, H, W) or (C, H, W), in [-1, 1].

    Raises:
        ValueError: If the array is of another type or has other than 3 or 4 axes.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"images must be uint8 of shape (N, H, W, C) or (H, W, C), not {images.dtype} of "
            f"shape {images.shape}"
        )
    return rearrange(torch.tensor(images), "... h w c -> ... c h w").float() / 127.5 - 1


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """The nearest of the 256 values, `to_tensor`'s inverse; what lies outside [-1, 1] is clipped.

    Args:
        images: Any floating type, (N, C, H, W) or (C, H, W), in [-1, 1].

    Returns:
        uint8, (N, H, W, C) or (H, W, C).
    """
    values = (images.detach().cpu().float() * 127.5 + 127.5).round().clamp(0, 255)
    return rearrange(values.to(torch.uint8), "... c h w -> ... h w c").contiguous().numpy()


def to_pil(images: NDArray[np.uint8]) -> list[Image.Image]:
    """One picture an image.

    Args:
        images: uint8, (N, H, W, C) with C 1 (grey) or 3 (RGB).

    Raises:
        ValueError: If there are 2 channels or more than 3.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images of shape {images.shape} are no pictures: (N, H, W, C) with 1 or 3 channels is"
        )
    return [
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images
    ]


def from_pil(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """`to_pil`'s inverse, for pictures of one mode ("L" or "RGB") and one size: (N, H, W, C)."""
    images = np.stack([np.asarray(picture) for picture in pictures])
    return images[..., None] if images.ndim == 3 else images


def image_grid(images: NDArray[np.uint8], columns: int | None = None) -> Image.Image:
    """All images in one picture, row by row; places left over are black.

    Args:
        images: uint8, (N, H, W, C) with C 1 or 3.
        columns: Images in a row; as many as make the grid nearly square, if None.

    Raises:
        ValueError: If there is no image, columns is below 1, or C is neither 1 nor 3.
    """
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if len(images) < 1 or columns < 1:
        raise ValueError(f"a grid of {len(images)} images in {columns} columns cannot be drawn")
    missing = -len(images) % columns
    whole = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
    return to_pil(rearrange(whole, "(r c) h w k -> 1 (r h) (c w) k", c=columns))[0]
