"""The training loss of each image, and its weight at each timestep."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm_sa.condition import NO_CONDITION, Condition
from ddpm_sa.diffusion.likelihood import learned_log_variance, variational_term
from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.errors import UserError

Weighting = Literal["uniform", "min_snr", "p2"]
# Nichol & Dhariwal 2021, section 3.1: lambda of L_hybrid = L_simple + lambda L_vlb.
VLB_WEIGHT = 1e-3
DEFAULT_GAMMA = {"min_snr": 5.0, "p2": 1.0}


def denoising_loss(
    network: Callable[..., Any],
    schedule: NoiseSchedule,
    prediction: Prediction,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    *,
    condition: Condition = NO_CONDITION,
    weights: Tensor | None = None,
    learned_variance: bool = False,
    levels: int = 256,
) -> Tensor:
    """w_t · mean over pixels of (F - target)², L_simple for epsilon (Ho et al. 2020, eq. 14).

    With a learned variance, plus 0.001 · T · L_t in bits per dimension, through which the variance
    alone learns: L_hybrid (Nichol & Dhariwal 2021, section 3.1).

    Noise is added, and the error taken, in float32 whatever precision the network runs in.

    Args:
        network: Called as UNet is; the `.sample` of its output is F, (B, C, H, W), or with a
            learned variance F and what `learned_log_variance` takes, (B, 2 C, H, W).
        schedule, prediction: What x_t and F are.
        x_0: Clean images, (B, C, H, W), float32, in [-1, 1].
        eps: Standard normal noise, same shape.
        t: Timesteps, (B,), int64.
        condition: The conditioning of the network.
        weights: Weight of each timestep, (T,), as from `timestep_weights`; None is all ones.
        learned_variance: Whether the network gives the variance of the reverse step too.
        levels: How many values a pixel can have, which matters to a learned variance alone.

    Returns:
        Loss of each image, (B,), float32.
    """
    x_t = schedule.add_noise(x_0, eps, t)
    a, s = schedule.at(schedule.a, t, x_t), schedule.at(schedule.s, t, x_t)
    output = condition.evaluate(network, x_t, t).sample.to(x_t.dtype)
    F = output[:, : x_0.shape[1]]
    loss = (F - prediction.target(x_0, eps, a, s)).square().mean(dim=(1, 2, 3))
    if weights is not None:
        loss = loss * schedule.at(weights, t, loss)
    if learned_variance:
        log_variance = learned_log_variance(schedule, output[:, x_0.shape[1] :], t)
        x_0_predicted = prediction.x_0(F.detach(), x_t, a, s)
        bound = variational_term(schedule, x_0, x_0_predicted, log_variance, t, levels)
        loss = loss + VLB_WEIGHT * len(schedule) * bound
    return loss


def timestep_weights(
    schedule: NoiseSchedule, prediction: Prediction, kind: Weighting, gamma: float | None = None
) -> Tensor:
    """The weight of each timestep's loss.

    "uniform" leaves the squared error of F as it is. The others are stated in terms of the squared
    error of x_0, and translated to F by the prediction's own row:

    "min_snr" is min(snr, gamma), gamma = 5 (Hang et al. 2023, eq. 6); for epsilon that is
    min(snr, gamma) / snr, for v min(snr, gamma) / (snr + 1).

    "p2" is snr / (1 + snr)^gamma, gamma = 1 (Choi et al. 2022, eq. 8, k = 1); for epsilon that is
    1 / (1 + snr)^gamma, for v snr / (1 + snr)^(gamma + 1).

    Returns:
        (T,), float64.

    Raises:
        ValueError: If kind is none of them, gamma is not positive, or the weights are not finite:
            where no signal is left, epsilon says nothing of x_0.
    """
    if kind == "uniform":
        return torch.ones_like(schedule.betas)
    if kind not in DEFAULT_GAMMA:
        raise UserError(f"weighting={kind!r} is unknown; known are uniform, min_snr, p2")
    gamma = DEFAULT_GAMMA[kind] if gamma is None else gamma
    if gamma <= 0:
        raise UserError(f"gamma={gamma} must be greater than 0")
    snr = schedule.snr
    of_x_0 = snr.clamp(max=gamma) if kind == "min_snr" else snr / (1 + snr) ** gamma
    weights = of_x_0 * prediction.x_0_error(schedule)
    if not weights.isfinite().all():
        t = int((~weights.isfinite()).nonzero()[0])
        raise UserError(
            f"{kind} has no weight for prediction_type={prediction.name!r} at t={t}, where the "
            "schedule leaves no signal; use v_prediction"
        )
    return weights
