"""Features as a user may bring them, for the programs under test."""

import torch
from torch import Tensor

WEIGHT = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)) / 8


def eight(images: Tensor) -> Tensor:
    """Eight sums of pixels, with a bend."""
    pixels = images.flatten(1)
    weight = WEIGHT[: pixels.shape[1]].to(pixels.device)
    return (pixels @ weight).tanh() + pixels.mean(1, keepdim=True)


def three(images: Tensor) -> Tensor:
    return eight(images)[:, :3]


def all_pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def broken(images: Tensor) -> Tensor:
    return eight(images) / 0
