"""Conditions as users give them: pictures, stored values or tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.kinds import ConditionKind, Shape, name_of
from ddpm_sa.errors import UserError, require
from ddpm_sa.image_format import ImageFormat, from_pil, pad_tensor, to_tensor
from ddpm_sa.randomness import standard_normal

Given = Any
"""Images that a network is conditioned on: a picture or a list of pictures; an array of stored
values, (N, h, w, C) or (h, w, C); or a tensor in [-1, 1], (N, C, h, w) or (C, h, w). For a network
with several conditions, a mapping from the name of each kind to such images."""


def read_given(given: Given, image_format: ImageFormat) -> list[Tensor]:
    """The condition of each kind, (N, C, h, w), as `ConditionFormat.assemble` takes them.

    Args:
        given: The images; one for all samples, or one for each.
        image_format: Of the network, which has a condition.

    Raises:
        UserError: If one is missing, or of another shape, type or range than the network's.
    """
    condition = image_format.condition
    assert condition is not None
    names = [name_of(kind) for kind in condition.kinds]
    require(given is not None, f"this network needs a condition: {describe(image_format)}")
    if not isinstance(given, Mapping):
        require(
            len(names) == 1,
            f"this network needs {len(names)} conditions, by name: {describe(image_format)}",
        )
        given = {names[0]: given}
    require(
        given.keys() == set(names),
        f"conditions are given for {', '.join(map(str, given)) or 'nothing'}; this network needs "
        f"{describe(image_format)}",
    )
    return [
        _read(given[name], kind, image_format)
        for name, kind in zip(names, condition.kinds, strict=True)
    ]


def channels_of(
    given: Given,
    image_format: ImageFormat,
    grid: tuple[int, int],
    indices: Sequence[int],
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> Tensor | None:
    """The channels that follow those of x_t, (B, K, *grid); None for a network without any.

    Args:
        given: The images of the condition, one for all samples or one for each.
        image_format: Of the network.
        grid: (height, width) of what the network sees.
        indices: Of the B samples.
        noise: The level of noise to add to the condition, up to that of the training.
        seed: Of that noise, which is a function of it and of a sample's index.

    Raises:
        UserError: If the images are not such as the network needs, or the noise is out of range.
    """
    condition = image_format.condition
    if condition is None:
        require(given is None, "this network is not conditioned on images")
        check_noise(noise, 0.0)
        return None
    images = read_given(given, image_format)
    for each in images:
        require(
            len(each) in (1, len(indices)),
            f"{len(each)} images of a condition for {len(indices)} samples",
        )
    images = [each.expand(len(indices), -1, -1, -1) for each in images]
    check_noise(noise, condition.noise)
    levels = eps = None
    if noise:
        levels = torch.full([len(indices)], noise)
        channels = sum(kind.channels(image_format.shape) for kind in condition.kinds)
        shape = (channels, *image_format.size)
        eps = standard_normal(shape, seed, "sampling: noise in the condition", indices)
    assembled = condition.assemble(images, image_format.size, levels=levels, eps=eps)
    return pad_tensor(assembled, grid)


def check_noise(noise: float, highest: float) -> None:
    """
    Raises:
        UserError: If a network was not trained with so much noise in its condition.
    """
    require(
        0 <= noise <= highest,
        f"condition_noise={noise} must be from 0 to {highest:g}, the highest level in this "
        "network's training",
    )


def describe(image_format: ImageFormat) -> str:
    """What a network must be given, such as "downsample (3 channels of 8 x 8 pixels)"."""
    condition = image_format.condition
    words = []
    for kind in condition.kinds if isinstance(condition, ConditionFormat) else ():
        channels, height, width = kind.given(image_format.shape)
        words.append(f"{name_of(kind)} ({_shape(channels, height, width)})")
    return " and ".join(words)


def _read(given: Any, kind: ConditionKind, image_format: ImageFormat) -> Tensor:
    x = _to_tensor(given, kind, image_format)
    x = x[None] if x.ndim == 3 else x
    expected: Shape = kind.given(image_format.shape)
    if x.ndim != 4 or x.shape[1:] != expected:
        found = _shape(*x.shape[1:]) if x.ndim == 4 else f"an array of shape {tuple(x.shape)}"
        raise UserError(f"the condition {name_of(kind)} is {found}; it must be {_shape(*expected)}")
    require(bool(x.isfinite().all()), f"the condition {name_of(kind)} is not finite everywhere")
    most = x.abs().max().item()
    require(
        most <= 1.001 or not kind.bounded,
        f"the condition {name_of(kind)} has values up to {most:g}; tensors must be in [-1, 1], "
        "arrays in the value range of the images",
    )
    return x


def _to_tensor(given: Any, kind: ConditionKind, image_format: ImageFormat) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().float().cpu()
    if isinstance(given, Image.Image):
        given = [given]
    if isinstance(given, Sequence) and given and isinstance(given[0], Image.Image):
        sizes = {(picture.size, picture.mode) for picture in given}
        require(len(sizes) == 1, f"the pictures of a condition must be alike, not {sizes}")
        given = from_pil(given)
    values = np.asarray(given)
    if values.dtype != image_format.dtype:
        raise UserError(
            f"the condition {name_of(kind)} is of {values.dtype}, the images are of "
            f"{np.dtype(image_format.dtype)}"
        )
    return to_tensor(values, image_format.value_range)


def _shape(channels: int, height: int, width: int) -> str:
    return f"{channels} channel{'s' * (channels > 1)} of {height} x {width} pixels"
