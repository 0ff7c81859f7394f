"""Guidance by short name."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.errors import UserError
from ddpm_sa.guidance.attention import WithBlurredImage, WithoutAttention, WithSmoothAttention
from ddpm_sa.guidance.base import (
    Guidance,
    Weaker,
    WithoutCondition,
    WithoutLabel,
    WithWeakerNetwork,
)

Kind = Literal["cfg", "condition", "pag", "sag", "seg", "auto"]
SIGMAS = {"sag": 3.0, "seg": math.inf}
USED_BY: dict[str, tuple[Kind, ...]] = {
    "null_class": ("cfg",),
    "layers": ("pag", "sag", "seg"),
    "sigma": ("sag", "seg"),
    "model": ("auto",),
}
"""The kinds that use an argument which not all use; "model" is the weaker one."""


def make_guidance(
    kind: Kind,
    scale: float,
    unet: Any,
    prediction_type: str,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    null_class: int | None = None,
    layers: Sequence[str] | None = None,
    sigma: float | None = None,
    weaker: Any = None,
) -> Guidance:
    """A guide for a network.

    Args:
        kind: "cfg" needs a null class, "condition" a network that was trained with its condition
            withheld now and then, "auto" a weaker network, the others a ddpm_sa.UNet with
            attention.
        scale, interval, rescale: As in `Guidance`.
        unet: The network that is guided.
        prediction_type: What it predicts.
        null_class: For "cfg", the class that stands for "no label".
        layers: For "pag" and "seg", the layers whose attention is degraded; for "sag", the one
            layer whose attention says where to blur. By default the middle's.
        sigma: For "sag" and "seg", the width of the blur in pixels; by default 3 and infinity.
        weaker: For "auto", a network with the same prediction type for the same images.

    Raises:
        ValueError: If the kind is unknown, or an argument is missing or of no use for it.
    """
    if kind not in get_args(Kind):
        raise UserError(f"guidance={kind!r} is unknown; known are {', '.join(get_args(Kind))}")
    given = {"null_class": null_class, "layers": layers, "sigma": sigma, "model": weaker}
    for name, value in given.items():
        if value is not None and kind not in USED_BY[name]:
            what = "a weaker model" if name == "model" else name
            raise UserError(
                f"guidance {kind!r} has no use for {what}; {', '.join(USED_BY[name])} has"
            )
    blur = SIGMAS.get(kind, 0.0) if sigma is None else sigma
    weak_evaluation: Weaker
    if kind == "cfg":
        weak_evaluation = WithoutLabel(_null_class(unet, null_class))
    elif kind == "condition":
        weak_evaluation = WithoutCondition()
    elif kind == "pag":
        weak_evaluation = WithoutAttention(unet, layers)
    elif kind == "seg":
        weak_evaluation = WithSmoothAttention(unet, layers, blur)
    elif kind == "sag":
        if layers is not None and len(layers) != 1:
            raise UserError(f"guidance 'sag' looks at one layer, not at {len(layers)}")
        weak_evaluation = WithBlurredImage(
            unet, prediction(prediction_type), layers[0] if layers else None, blur
        )
    else:
        weak_evaluation = WithWeakerNetwork(_checked_weaker(unet, weaker), weaker.dtype)
    return Guidance(weaker=weak_evaluation, scale=scale, interval=interval, rescale=rescale)


def check_together(guide: Any, cache_interval: int) -> None:
    """
    Raises:
        ValueError: If this guidance cannot use deep features of the step before.
    """
    if cache_interval > 1 and getattr(guide, "more", ()):
        raise UserError(
            f"two kinds of guidance evaluate the network three times in each step, and cached "
            f"features fit only one: cache_interval={cache_interval} must be 1"
        )
    if cache_interval > 1 and isinstance(getattr(guide, "weaker", None), WithBlurredImage):
        raise UserError(
            "guidance 'sag' evaluates two different images in each step, and cached features fit "
            f"only one: cache_interval={cache_interval} must be 1; or use pag or seg"
        )


def check_weaker(pipeline: Any, weaker: Any) -> None:
    """Refuse a weaker model whose predictions mean something else at the same x_t and t.

    Raises:
        ValueError: If it predicts another quantity, was trained with another noise schedule, or is
            of images of another format.
    """
    pipelines = (pipeline, weaker)
    ours, theirs = (each.scheduler.config.prediction_type for each in pipelines)
    if ours != theirs:
        raise UserError(f"the weaker model predicts {theirs!r}, the model {ours!r}")
    for name in ("channels", "size", "bit_depth", "value_range", "labels"):
        ours, theirs = (getattr(each.image_format, name) for each in pipelines)
        # A folder of diffusers has no names of its classes.
        if ours != theirs and None not in (ours, theirs):
            raise UserError(f"the weaker model is of images with {name}={theirs}, the model {ours}")
    betas, others = (NoiseSchedule.from_scheduler(each.scheduler).betas for each in pipelines)
    if len(betas) != len(others) or not betas.allclose(others):
        raise UserError(
            "the weaker model was trained with another noise schedule than the model: at the same "
            "timestep, it expects another amount of noise"
        )


def _null_class(unet: Any, null_class: int | None) -> int:
    classes = unet.config.num_class_embeds
    if classes is None:
        raise UserError(
            "guidance 'cfg' needs labels, and this network is unconditional; pag, sag, seg and "
            "auto need none"
        )
    if null_class is None:
        raise UserError(
            "guidance 'cfg' needs a class that stands for \"no label\", and this network was not "
            "trained with one (label_dropout); if it was, say which by null_class"
        )
    if not 0 <= null_class < classes:
        raise UserError(f"null_class={null_class} is not among the classes 0 ... {classes - 1}")
    return null_class


def _checked_weaker(unet: Any, weaker: Any) -> Any:
    if weaker is None:
        raise UserError("guidance 'auto' needs a weaker model")
    for name in ("in_channels", "out_channels", "num_class_embeds"):
        ours, theirs = unet.config[name], weaker.config[name]
        if ours != theirs:
            raise UserError(
                f"the weaker model of guidance 'auto' has {name}={theirs}, the model {ours}"
            )
    return weaker
