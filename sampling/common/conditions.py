"""The images that a network is conditioned on: read from files, or made of true images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.conditions.given import describe, read_given
from ddpm_sa.conditions.kinds import name_of
from ddpm_sa.data.conditioning import ConditionDraw, Conditioner
from ddpm_sa.errors import UserError, require
from ddpm_sa.image_format import ImageFormat, to_tensor
from sampling.common.image_files import read_images

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# Sample n of condition c has the index n * SAMPLES + c: noise of its own, whatever the numbers of
# conditions and samples are, and for n = 0 that of image c of an unconditional network.
SAMPLES = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadConditions:
    """The conditions of a sampling run.

    Attributes:
        given: For each kind of the network (N, C, h, w), in [-1, 1].
        truth: The images that they are conditions of, (N, C, H, W), or None.
    """

    given: list[Tensor]
    truth: Tensor | None

    def __len__(self) -> int:
        return len(self.given[0])

    def of(self, indices: Sequence[int], image_format: ImageFormat) -> dict[str, Tensor]:
        """What `Pipeline.condition` takes for samples of these indices."""
        assert image_format.condition is not None
        places = [index % SAMPLES for index in indices]
        kinds = image_format.condition.kinds
        pairs = zip(kinds, self.given, strict=True)
        return {name_of(kind): images[places] for kind, images in pairs}

    def shown(self, place: int, image_format: ImageFormat) -> Tensor:
        """The first condition as an image of the network's size, (1, C, H, W)."""
        condition, size = image_format.condition, image_format.size
        assert condition is not None
        given = [images[place : place + 1] for images in self.given]
        return condition.preview(condition.assemble(given, size), image_format.channels)


def posterior_indices(conditions: int, samples: range) -> list[int]:
    """The indices of these samples of each condition, condition by condition."""
    return [sample * SAMPLES + place for place in range(conditions) for sample in samples]


def read_conditions(
    condition: Sequence[str], truth: Sequence[str], image_format: ImageFormat, seed: int
) -> ReadConditions | None:
    """Read what a network is conditioned on; None for one that has no condition.

    Args:
        condition: Files or folders; for a network with several conditions KIND=PATH of each. If
            there is none, the conditions are made of the true images, as in training.
        truth: Files or folders of images, resized to the network's size; may be empty.
        image_format: Of the network.
        seed: Of what is random in conditions that are made.

    Raises:
        UserError: If one is missing, or is not such as the network needs.
    """
    if image_format.condition is None:
        require(
            not condition and not truth,
            "this network is not conditioned on images: leave out --condition and --truth",
        )
        return None
    true = _read(truth, dataclasses.replace(image_format, condition=None)) if truth else None
    if condition:
        given = _read_given(condition, image_format)
    else:
        require(
            true is not None and all(kind.made for kind in image_format.condition.kinds),
            f"this network needs --condition: {describe(image_format)}"
            + ("; or --truth, images that it is made of" if true is None else ""),
        )
        assert true is not None
        given = _make(true, image_format, seed)
    counts = {len(images) for images in given} | ({len(true)} if true is not None else set())
    require(
        len(counts) == 1,
        f"--condition and --truth hold different numbers of images: {sorted(counts)}",
    )
    return ReadConditions(given=given, truth=true)


def _read_given(condition: Sequence[str], image_format: ImageFormat) -> list[Tensor]:
    assert image_format.condition is not None
    kinds = {name_of(kind): kind for kind in image_format.condition.kinds}
    named = dict(word.split("=", 1) for word in condition if "=" in word)
    if len(kinds) == 1 and not named:
        places = {next(iter(kinds)): list(condition)}
    else:
        places = {name: [path] for name, path in named.items()}
        require(
            places.keys() == kinds.keys(),
            f"--condition needs {' '.join(f'{name}=PATH' for name in kinds)}: "
            f"{describe(image_format)}",
        )
    images = {}
    for name, kind in kinds.items():
        channels, height, width = kind.given(image_format.shape)
        one = dataclasses.replace(
            image_format, channels=channels, size=(height, width), condition=None, labels=None
        )
        images[name] = _read(places[name], one, fit=False)
    return read_given(images, image_format)


def _read(paths: Sequence[str], image_format: ImageFormat, fit: bool = True) -> Tensor:
    """Images of files, of folders of files, or of .npy stacks (N, H, W, C)."""
    parts = []
    for path in map(Path, paths):
        if path.suffix == ".npy" and path.is_file():
            stack = np.load(path)
            if stack.ndim == 4:
                parts.append(to_tensor(stack, image_format.value_range))
                continue
        files = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in (*PICTURES, ".npy"))
            if (path.is_dir())
            else [path]
        )
        if not files:
            raise UserError(f"{path} holds no images")
        parts.append(
            read_images([str(file) for file in files], image_format, "crop" if fit else None)
        )
    return torch.cat(parts)


def _make(true: Tensor, image_format: ImageFormat, seed: int) -> list[Tensor]:
    assert image_format.condition is not None
    places, no = np.arange(len(true)), np.zeros(len(true), dtype=bool)
    draw = ConditionDraw(
        seed=seed, purpose="sampling", positions=places, withheld=no, shares=np.zeros(len(true))
    )
    return Conditioner(format=image_format.condition).given(true, places, no, draw)
