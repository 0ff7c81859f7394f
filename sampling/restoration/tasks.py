"""The measurement operator of each task, from command-line settings."""

from typing import Literal

import torch

from ddpm_sa.data.resize import Fit
from ddpm_sa.errors import UserError, require
from ddpm_sa.restoration import (
    DDNM,
    DPS,
    Bicubic,
    BlockMean,
    DiffPIR,
    FourierMask,
    GaussianBlur,
    Grey,
    LinearOperator,
    Mask,
    PiGDM,
    RePaint,
)
from ddpm_sa.restoration.base import RestorationMethod
from ddpm_sa.restoration.operators import cartesian_lines
from ddpm_sa.settings.importing import import_named
from sampling.common.image_files import read_mask

Task = Literal["superres", "inpaint", "deblur", "colorize", "mri", "custom"]
MethodName = Literal["ddnm", "pigdm", "dps", "diffpir", "repaint"]
Downsampling = Literal["mean", "bicubic"]
PiGDMStep = Literal["published", "score"]


def make_operator(
    task: Task,
    shape: tuple[int, int, int],
    *,
    factor: int,
    downsampling: Downsampling,
    blur: float,
    mask: str | None,
    acceleration: int,
    fit: Fit | None,
    operator: str | None,
) -> LinearOperator:
    """The operator of a task for images of a shape (C, H, W).

    Raises:
        ValueError: If the task does not suit images of this shape, the mask cannot be read or hides
            everything, or the operator of one's own cannot be imported.
    """
    size = shape[1:]
    if task == "superres":
        return (BlockMean if downsampling == "mean" else Bicubic)(shape, factor)
    if task == "deblur":
        return GaussianBlur(shape, blur)
    if task == "colorize":
        return Grey(shape)
    if task == "inpaint":
        assert mask is not None
        return Mask(shape, ~read_mask(mask, size, fit))
    if task == "mri":
        if mask is None:
            return FourierMask(shape, cartesian_lines(size, acceleration))
        # In pictures of k-space frequency 0 is in the centre.
        return FourierMask(shape, torch.fft.ifftshift(~read_mask(mask, size, fit)))
    assert operator is not None
    return import_operator(operator, shape)


def import_operator(name: str, shape: tuple[int, int, int]) -> LinearOperator:
    """An operator of one's own, or what makes one from the shape of the images.

    Raises:
        ValueError: If there is none of that name.
    """
    found = import_named("operator", name)
    if not isinstance(found, LinearOperator):
        require(callable(found), f"operator={name} is a {type(found).__name__}, no LinearOperator")
        found = found(shape)
    if not isinstance(found, LinearOperator):
        raise UserError(
            f"operator={name} gives a {type(found).__name__}; it must be, or give, a "
            "ddpm_sa.restoration.LinearOperator"
        )
    return found


def make_restoration(
    method: MethodName,
    *,
    pigdm_step: PiGDMStep,
    step_size: float,
    prior_weight: float,
    zeta: float | None,
    repeats: int,
) -> RestorationMethod:
    """The method of restoration with that name."""
    return {
        "ddnm": DDNM(),
        "pigdm": PiGDM(pigdm_step),
        "dps": DPS(step_size),
        "diffpir": DiffPIR(prior_weight, zeta),
        "repaint": RePaint(repeats),
    }[method]
