"""The variational bound on an image's likelihood, term by term."""

import math

from torch import Tensor

from ddpm_sa.diffusion.gaussian import discretized_log_likelihood, normal_kl
from ddpm_sa.diffusion.schedule import NoiseSchedule


def learned_log_variance(schedule: NoiseSchedule, values: Tensor, t: Tensor) -> Tensor:
    """log variance of a reverse step, between its two bounds (Nichol & Dhariwal 2021, eq. 15).

    Args:
        schedule: Gives the bounds, the posterior's variance and beta.
        values: Second half of the network's channels, (B, C, H, W): -1 is the lower bound, 1 the
            upper one; others reach beyond.
        t: (B,), int64.
    """
    share = (values + 1) / 2
    lowest = schedule.at(schedule.posterior_log_variance_clipped, t, values)
    return share * schedule.at(schedule.betas.log(), t, values) + (1 - share) * lowest


def variational_term(
    schedule: NoiseSchedule,
    x_0: Tensor,
    x_0_predicted: Tensor,
    log_variance: Tensor,
    t: Tensor,
    levels: int = 256,
) -> Tensor:
    """L_t of the variational bound (Ho et al. 2020, eq. 5), in bits a dimension.

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0; the discretised decoder's
    -log p(x_0 | x_1) for t = 0, whose mean is x_0_predicted itself.

    Args:
        x_0: Clean images, (B, C, H, W), in [-1, 1].
        x_0_predicted: What the network takes them for, clipped or not, same shape.
        log_variance: Of the reverse step, broadcasting with them.
        t: (B,), int64.
        levels: How many values a pixel can have.

    Returns:
        (B,), float32 for float32 images.
    """
    difference = schedule.at(schedule.posterior_mean_coef1, t, x_0) * (x_0 - x_0_predicted)
    lowest = schedule.at(schedule.posterior_log_variance_clipped, t, x_0)
    nats = normal_kl(difference, lowest, log_variance)
    first = t == 0
    if first.any():
        likelihood = discretized_log_likelihood(x_0, x_0_predicted, 0.5 * log_variance, levels)
        first = first.to(x_0.device).reshape(-1, *[1] * (x_0.ndim - 1))
        nats = nats.where(~first, -likelihood.to(nats.dtype))
    return nats.flatten(1).mean(1) / math.log(2)
