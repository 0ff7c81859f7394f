"""Convert between stored images and tensors in [-1, 1], without loss.

`images.json` in a model folder records the bit depth and which values are mapped to -1 and 1, so
that samples have the same values as the training images.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.errors import UserError, require
from ddpm_sa.files.json_files import Number, check_choice, read_object, shown

FILE_NAME = "images.json"
DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}
# (channels, bits) of the PNG files that Pillow writes; it reduces 16-bit colour to 8 bits.
PICTURES = {(1, 8), (3, 8), (4, 8), (1, 16)}
# Values of one image, 1 GiB as float32: what is larger is a mistake, and would fill the memory.
MOST_VALUES = 2**28

Pixels = NDArray[np.uint8 | np.uint16 | np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """Format of a network's images, as stored in `images.json` of its model folder.

    Attributes:
        channels: 1 for grey, 3 for RGB, 4 for RGBA; any other number is possible.
        size: (height, width) in pixels.
        bit_depth: Bits per stored value: 8 and 16 for unsigned integers, 32 for float32.
        value_range: The stored values that are mapped to -1 and 1.
        labels: Names of the classes in the order of their indices, or None.
        condition: The images that the network is conditioned on, or None.

    Raises:
        ValueError: If a value is out of range.
    """

    channels: int
    size: tuple[int, int]
    bit_depth: int = 8
    value_range: tuple[float, float] = (0, 255)
    labels: tuple[str, ...] | None = None
    condition: ConditionFormat | None = None

    def __post_init__(self) -> None:
        Number(low=1, whole=True).check("channels", self.channels)
        is_pair = isinstance(self.size, tuple | list) and len(self.size) == 2
        require(
            is_pair and all(map(Number(low=1, whole=True).holds, self.size)),
            f"size={shown(self.size)} must be (height, width), whole numbers of at least 1",
        )
        if math.prod(self.shape) > MOST_VALUES:
            raise UserError(
                f"size={shown(self.size)} with channels={shown(self.channels)} must have at most "
                f"{MOST_VALUES} values in an image"
            )
        check_choice("bit_depth", self.bit_depth, DTYPES)
        self._check_value_range()
        if self.labels is not None:
            labels = self.labels
            names = isinstance(labels, tuple) and all(isinstance(name, str) for name in labels)
            require(names and len(labels) > 0, f"labels={shown(labels)} must be a list of names")
        if self.condition is not None:
            self.condition.check(self.shape)

    def _check_value_range(self) -> None:
        is_pair = isinstance(self.value_range, tuple | list) and len(self.value_range) == 2
        require(
            is_pair
            and all(map(Number().holds, self.value_range))
            and self.value_range[0] < self.value_range[1],
            f"value_range={shown(self.value_range)} must be (lowest, highest), finite numbers",
        )
        low, high = self.value_range
        largest = 2**self.bit_depth - 1
        if self.bit_depth < 32 and not 0 <= low < high <= largest:
            raise UserError(
                f"value_range={self.value_range} must be within 0 and {largest}, the range of "
                f"{self.bit_depth} bits"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), the shape of one image's tensor."""
        return self.channels, *self.size

    @property
    def in_channels(self) -> int:
        """Channels of the network's input: x_t, and the condition if there is one."""
        return self.channels + (self.condition.channels(self.shape) if self.condition else 0)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16] | type[np.float32]:
        """The dtype of stored images."""
        return DTYPES[self.bit_depth]

    @property
    def is_picture(self) -> bool:
        """Whether a PNG can store it: grey, RGB or RGBA of 8 bits, or grey of 16 bits."""
        return (self.channels, self.bit_depth) in PICTURES

    @property
    def suffix(self) -> str:
        """Suffix of a file that stores an image without loss: .png if possible, else .npy."""
        return ".png" if self.is_picture else ".npy"

    def class_name(self, label: int) -> str:
        """The name of a class; its number if it has none, as the one that means "no label"."""
        names = self.labels or ()
        return names[label] if label < len(names) else str(label)

    def to_json(self) -> dict[str, Any]:
        """What images.json holds; a condition only if there is one."""
        fields = dataclasses.asdict(self)
        del fields["condition"]
        return fields | ({"condition": self.condition.to_json()} if self.condition else {})

    def save(self, folder: str | Path) -> None:
        """Write `images.json` into a folder."""
        text = json.dumps(self.to_json(), indent=2)
        (Path(folder) / FILE_NAME).write_text(text + "\n")

    @classmethod
    def from_unet(cls, unet: Any) -> "ImageFormat":
        """The 8-bit images of a network's own size and channels.

        Raises:
            ValueError: If its configuration has no sample_size.
        """
        size = unet.config.sample_size
        if size is None:
            raise UserError("the network's config has no sample_size; give an image_format")
        height, width = (size, size) if isinstance(size, int) else size
        return cls(channels=unet.config.in_channels, size=(height, width))

    @classmethod
    def load(cls, folder: str | Path) -> "ImageFormat":
        """Read a folder's `images.json`.

        Raises:
            ValueError: If the file does not exist or is not JSON, or a field is missing, unknown or
                invalid.
        """
        path = Path(folder) / FILE_NAME
        fields = read_object(path)
        known = {field.name: field for field in dataclasses.fields(cls)}
        required = [name for name in known if known[name].default is dataclasses.MISSING]
        for name in fields:
            require(name in known, f"{path} has {name}, which is not one of {', '.join(known)}")
        for name in required:
            require(name in fields, f"{path} lacks {name}")
        tuples: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
        }
        try:
            if "condition" in fields:
                tuples["condition"] = ConditionFormat.from_json(fields["condition"])
            return cls(**tuples)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def padded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the smallest (height, width) that contains an image and is divisible by `multiple`.

    Args:
        size: (height, width) of an image.
        multiple: 2 to the number of times that the network halves the image.
    """
    height, width = (math.ceil(side / multiple) * multiple for side in size)
    return height, width


def pad_to(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reflect images, (B, H, W, C), at the bottom and the right until they have this size."""
    extra = [(0, new - old) for new, old in zip(size, images.shape[1:3], strict=True)]
    if not any(after for _, after in extra):
        return images
    return np.pad(images, [(0, 0), *extra, (0, 0)], mode="reflect")


def pad_tensor(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`pad_to` for tensors, (B, C, H, W)."""
    padded = pad_to(rearrange(images, "b c h w -> b h w c").numpy(), size)
    return rearrange(torch.from_numpy(padded), "b h w c -> b c h w").contiguous()


def to_tensor(images: Pixels, value_range: tuple[float, float] | None = None) -> Tensor:
    """Scale to [-1, 1]: (x - low) / ((high - low) / 2) - 1.

    For 8 bits this is x / 127.5 - 1, as in the code of Ho et al. (2020).

    Args:
        images: uint8, uint16 or float32, (N, H, W, C) or (H, W, C).
        value_range: (low, high), which are mapped to -1 and 1; None is (0, 255), for uint8 only.

    Returns:
        float32, (N, C, H, W) or (C, H, W); in [-1, 1] if the values are within their range.

    Raises:
        ValueError: If the array has another dtype or not 3 or 4 axes, or value_range is None and
            the images are not uint8.
    """
    if images.dtype not in (np.uint8, np.uint16, np.float32) or images.ndim not in (3, 4):
        raise UserError(
            "images must be uint8, uint16 or float32 of shape (N, H, W, C) or (H, W, C), not "
            f"{images.dtype} of shape {images.shape}"
        )
    if value_range is None and images.dtype != np.uint8:
        raise UserError(f"images of {images.dtype} need their value_range, such as (0, 65535)")
    low, high = value_range or (0, 255)
    x = rearrange(torch.tensor(images), "... h w c -> ... c h w")
    # Contiguous: convolutions take the memory format of their input for the whole network.
    x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return (x - low if low else x) / ((high - low) / 2) - 1


def from_tensor(x: Tensor, image_format: ImageFormat) -> Pixels:
    """Convert a tensor to stored values, the inverse of `to_tensor`; clipped to [-1, 1].

    8 and 16 bits are restored exactly, since float32 has 24; float32 to its own precision.

    Args:
        x: Any floating type, (N, C, H, W) or (C, H, W), in [-1, 1].
        image_format: Gives the dtype and range of the stored values.

    Returns:
        uint8, uint16 or float32, (N, H, W, C) or (H, W, C).
    """
    low, high = image_format.value_range
    half = (high - low) / 2
    # Floats in float64: a range far from 0 would lose digits.
    dtype = torch.float64 if image_format.bit_depth == 32 else torch.float32
    values = x.detach().cpu().to(dtype) * half + (low + half)
    if image_format.bit_depth < 32:
        values = values.round()
    values = rearrange(values.clamp(low, high), "... c h w -> ... h w c").numpy()
    return np.ascontiguousarray(values.astype(image_format.dtype))


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Quantise [-1, 1] to the nearest of 256 values, whatever the stored values; clipped.

    Args:
        images: Any floating type, (N, C, H, W) or (C, H, W), in [-1, 1].

    Returns:
        uint8, (N, H, W, C) or (H, W, C).
    """
    values = (images.detach().cpu().float() * 127.5 + 127.5).round().clamp(0, 255)
    return rearrange(values.to(torch.uint8), "... c h w -> ... h w c").contiguous().numpy()


def visible(images: Tensor) -> NDArray[np.uint8]:
    """Convert images for display: `to_uint8`, of the first channel alone unless RGB or RGBA.

    Args:
        images: (N, C, H, W), in [-1, 1].

    Returns:
        uint8, (N, H, W, C), RGB or RGBA, if C is 3 or 4; else (N, H, W, 1), grey.
    """
    return to_uint8(images if images.shape[1] in (3, 4) else images[:, :1])


def to_pil(images: Pixels) -> list[Image.Image]:
    """Convert each image to a Pillow image.

    Args:
        images: uint8, (N, H, W, C) with C 1 (grey), 3 (RGB) or 4 (RGBA); or uint16 with C 1.

    Raises:
        ValueError: If Pillow cannot represent such images.
    """
    bits = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}.get(images.dtype)
    if images.ndim != 4 or (images.shape[-1], bits) not in PICTURES:
        raise UserError(
            f"images of {images.dtype} and shape {images.shape} cannot be Pillow images: they must "
            "be (N, H, W, C), of uint8 with 1, 3 or 4 channels, or of uint16 with 1"
        )
    return [
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images
    ]


def from_pil(pictures: Sequence[Image.Image]) -> Pixels:
    """Convert Pillow images of one mode and size to (N, H, W, C), the inverse of `to_pil`."""
    images = np.stack([np.asarray(picture) for picture in pictures])
    return images[..., None] if images.ndim == 3 else images


def image_grid(images: Pixels, columns: int | None = None) -> Image.Image:
    """Arrange images in a grid, row by row; empty cells are black.

    Args:
        images: As for `to_pil`.
        columns: Images per row; None makes the grid nearly square.

    Raises:
        ValueError: If there is no image, columns is below 1, or `to_pil` cannot convert them.
    """
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if len(images) < 1 or columns < 1:
        raise UserError(f"a grid of {len(images)} images in {columns} columns cannot be drawn")
    missing = -len(images) % columns
    cells = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
    return to_pil(rearrange(cells, "(r c) h w k -> 1 (r h) (c w) k", c=columns))[0]
