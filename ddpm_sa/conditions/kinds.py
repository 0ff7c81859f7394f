"""The kinds of images that a network can be conditioned on.

A kind says how a condition is made from a clean image, if it can be, and how it becomes channels of
the network's input (Saharia et al. 2021: concatenated to x_t, on the grid of the images). A new
kind is a class here; everything else finds it in `CONDITION_KINDS`.

Tensors are (B, C, H, W), float32, in [-1, 1].
"""

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ddpm_sa.conditions.masks import draw_masks
from ddpm_sa.errors import require
from ddpm_sa.files.json_files import Number, check_choice

Shape = tuple[int, int, int]  # C, H, W
Randoms = Sequence[np.random.Generator]  # one for each image
HIDDEN, KNOWN = -1.0, 1.0  # values of a mask's channel
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionKind:
    """One image that a network is given besides x_t.

    Raises:
        UserError: If a field is out of range.
    """

    made: ClassVar[bool] = True
    """Whether it is made from the image itself, by `measure`."""
    bounded: ClassVar[bool] = True
    """Whether its values lie in [-1, 1]."""

    def check(self, image: Shape) -> None:
        """Refuse images that have no such condition.

        Raises:
            UserError: If their channels or size do not allow it.
        """

    def given(self, image: Shape) -> Shape:
        """(C, H, W) of the condition as a user gives it, for images of this shape."""
        return image

    def channels(self, image: Shape) -> int:
        """How many channels of the network's input it takes."""
        return self.given(image)[0]

    def shown(self, image_channels: int) -> int:
        """How many of its first channels a picture of it shows: all of the image's, or one."""
        return image_channels

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        """The condition of clean images, (B, *given)."""
        raise NotImplementedError

    def prepare(self, condition: Tensor, size: tuple[int, int]) -> Tensor:
        """The channels of the network's input: (B, *given) -> (B, channels, *size)."""
        return condition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downsample(ConditionKind):
    """A smaller image, for super-resolution.

    Attributes:
        factor: By how much height and width are smaller.
        filter: area, the mean of factor x factor pixels; or bicubic, with antialiasing.
    """

    factor: int = 4
    filter: Literal["area", "bicubic"] = "area"

    def __post_init__(self) -> None:
        Number(low=2, whole=True).check("factor", self.factor)
        check_choice("filter", self.filter, ("area", "bicubic"))

    def check(self, image: Shape) -> None:
        _, height, width = image
        require(
            height % self.factor == 0 and width % self.factor == 0,
            f"factor={self.factor} does not divide the images' {height} x {width} pixels",
        )

    def given(self, image: Shape) -> Shape:
        channels, height, width = image
        return channels, height // self.factor, width // self.factor

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        if self.filter == "area":
            return F.avg_pool2d(x_0, self.factor)
        size = [side // self.factor for side in x_0.shape[2:]]
        return F.interpolate(x_0, size, mode="bicubic", antialias=True).clamp(-1, 1)

    def prepare(self, condition: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(condition, size, mode="bicubic").clamp(-1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grey(ConditionKind):
    """The brightness of a coloured image, for colouring."""

    def check(self, image: Shape) -> None:
        require(image[0] == 3, f"grey needs RGB images, not {image[0]} channels")

    def given(self, image: Shape) -> Shape:
        return 1, *image[1:]

    def shown(self, image_channels: int) -> int:
        return 1

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        return luma(x_0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(ConditionKind):
    """The image with a part hidden, and which part, for inpainting.

    The last channel is 1 where the image is known, and -1 where it is hidden; the others are 0
    there.

    Attributes:
        mask: How training draws what it hides: a key of `masks.MASKS`, or a folder of pictures that
            are white where the image is hidden.
    """

    mask: str = "boxes"

    def __post_init__(self) -> None:
        require(isinstance(self.mask, str), f"mask={self.mask} must be a name or a folder")

    def given(self, image: Shape) -> Shape:
        return image[0] + 1, *image[1:]

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        height, width = x_0.shape[2:]
        return hide(x_0, draw_masks(self.mask, (height, width), randoms))

    def prepare(self, condition: Tensor, size: tuple[int, int]) -> Tensor:
        # What a user gives, such as a picture with transparency, may still hold what is hidden.
        return hide(condition[:, :-1], condition[:, -1:] < 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur(ConditionKind):
    """The image blurred by a Gaussian, for deblurring.

    Attributes:
        sigma: Standard deviation in pixels.
    """

    sigma: float = 2.0

    def __post_init__(self) -> None:
        Number(low=0.1, high=1000).check("sigma", self.sigma)

    def check(self, image: Shape) -> None:
        reach = math.ceil(3 * self.sigma)
        require(
            reach < min(image[1:]),
            f"sigma={self.sigma:g} reaches {reach} pixels, beyond images of "
            f"{image[1]} x {image[2]}",
        )

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        reach = math.ceil(3 * self.sigma)
        places = torch.arange(-reach, reach + 1, dtype=x_0.dtype)
        weights = torch.exp(-(places**2) / (2 * self.sigma**2))
        kernel = (weights / weights.sum()).expand(x_0.shape[1], 1, 1, -1)
        padded = F.pad(x_0, [reach] * 4, mode="reflect")
        rows = F.conv2d(padded, kernel, groups=x_0.shape[1])
        return F.conv2d(rows, kernel.transpose(2, 3), groups=x_0.shape[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(ConditionKind):
    """The image with white noise, for denoising.

    Attributes:
        std: Standard deviation of the noise, where images are in [-1, 1].
    """

    bounded = False
    std: float = 0.2

    def __post_init__(self) -> None:
        Number(low=1e-6, high=1000).check("std", self.std)

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        noise = np.stack([random.standard_normal(x_0.shape[1:], np.float32) for random in randoms])
        return x_0 + self.std * torch.from_numpy(noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges(ConditionKind):
    """The edges of an image: the gradient's length by Sobel's filters, bright on black."""

    def given(self, image: Shape) -> Shape:
        return 1, *image[1:]

    def shown(self, image_channels: int) -> int:
        return 1

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        grey = luma(x_0) if x_0.shape[1] == 3 else x_0.mean(dim=1, keepdim=True)
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        filters = torch.stack([sobel, sobel.T])[:, None]
        slopes = F.conv2d(F.pad(grey, [1] * 4, mode="replicate"), filters)
        # A step from black to white has a slope of 1.
        return (2 * slopes.norm(dim=1, keepdim=True) - 1).clamp(-1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jpeg(ConditionKind):
    """The image as a JPEG file keeps it, for removing its traces.

    Attributes:
        quality: Of the file, 1 to 95, as in Pillow.
    """

    quality: int = 20

    def __post_init__(self) -> None:
        Number(low=1, high=95, whole=True).check("quality", self.quality)

    def check(self, image: Shape) -> None:
        require(image[0] in (1, 3), f"jpeg needs grey or RGB images, not {image[0]} channels")

    def measure(self, x_0: Tensor, randoms: Randoms) -> Tensor:
        pixels = rearrange((x_0 * 127.5 + 127.5).round(), "b c h w -> b h w c").byte().numpy()
        files = [_through_jpeg(image, self.quality) for image in pixels]
        return rearrange(torch.from_numpy(np.stack(files)), "b h w c -> b c h w") / 127.5 - 1


def hide(x_0: Tensor, hidden: Tensor) -> Tensor:
    """Images with a part hidden, and the channel that says which.

    Args:
        x_0: (B, C, H, W).
        hidden: (B, 1, H, W), bool.

    Returns:
        (B, C + 1, H, W).
    """
    known = torch.where(hidden, HIDDEN, KNOWN).expand(len(x_0), 1, -1, -1)
    return torch.cat([x_0.masked_fill(hidden, 0.0), known], dim=1)


def luma(rgb: Tensor) -> Tensor:
    """The brightness of RGB images: (B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(LUMA, dtype=rgb.dtype, device=rgb.device)
    return torch.einsum("bchw,c->bhw", rgb, weights)[:, None]


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, C), uint8, written and read again, float32."""
    grey = pixels.shape[2] == 1
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "JPEG", quality=quality)
    image = np.asarray(Image.open(file), dtype=np.float32)
    return image[..., None] if grey else image


CONDITION_KINDS: dict[str, type[ConditionKind]] = {
    "downsample": Downsample,
    "grey": Grey,
    "mask": Mask,
    "blur": Blur,
    "noise": Noise,
    "edges": Edges,
    "jpeg": Jpeg,
}
"""The kinds by name."""


def name_of(kind: ConditionKind) -> str:
    """The name of a kind in `CONDITION_KINDS`."""
    return next(name for name, known in CONDITION_KINDS.items() if type(kind) is known)
