"""From a batch of images to one loss an image."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm_sa.prediction import Prediction
from ddpm_sa.schedule import NoiseSchedule

Weighting = Literal["uniform", "min_snr"]


def denoising_loss(
    network: Callable[[Tensor, Tensor, Tensor | None], Any],
    schedule: NoiseSchedule,
    prediction: Prediction,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    class_labels: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """w_t · mean over pixels of (F - target)², L_simple for epsilon (Ho et al. 2020, eq. 14).

    Noise is added, and the error taken, in float32 whatever precision the network runs in.

    Args:
        network: (x_t, t, class_labels) -> an object whose `.sample` is F, (B, C, H, W).
        schedule, prediction: What x_t and F are.
        x_0: Clean images, (B, C, H, W), float32, in [-1, 1].
        eps: Standard normal noise, same shape.
        t: Timesteps, (B,), int64.
        class_labels: (B,), int64, for a class-conditional network.
        weights: Weight of each timestep, (T,), as from `timestep_weights`; None is all ones.

    Returns:
        Loss of each image, (B,), float32.
    """
    x_t = schedule.add_noise(x_0, eps, t)
    a, s = schedule.at(schedule.a, t, x_t), schedule.at(schedule.s, t, x_t)
    F = network(x_t, t, class_labels).sample.to(x_t.dtype)
    loss = (F - prediction.target(x_0, eps, a, s)).square().mean(dim=(1, 2, 3))
    return loss if weights is None else loss * schedule.at(weights, t, loss)


def timestep_weights(
    schedule: NoiseSchedule, prediction: Prediction, kind: Weighting, gamma: float = 5.0
) -> Tensor:
    """The weight of each timestep's loss.

    "uniform" leaves the squared error of F as it is. "min_snr" is min(snr, gamma) in terms of the
    squared error of x_0 (Hang et al. 2023, eq. 6), translated to F by the prediction's own row; for
    epsilon that is min(snr, gamma) / snr, for v min(snr, gamma) / (snr + 1).

    Returns:
        (T,), float64.

    Raises:
        ValueError: If kind is neither, gamma is not positive, or the weights are not finite: where
            no signal is left, epsilon says nothing of x_0.
    """
    if kind == "uniform":
        return torch.ones_like(schedule.betas)
    if kind != "min_snr":
        raise ValueError(f"weighting={kind!r} is unknown; known are uniform, min_snr")
    if gamma <= 0:
        raise ValueError(f"gamma={gamma} must be greater than 0")
    weights = schedule.snr.clamp(max=gamma) * prediction.x_0_error(schedule)
    if not weights.isfinite().all():
        t = int((~weights.isfinite()).nonzero()[0])
        raise ValueError(
            f"min_snr has no weight for prediction_type={prediction.name!r} at t={t}, where the "
            "schedule leaves no signal; use v_prediction"
        )
    return weights
