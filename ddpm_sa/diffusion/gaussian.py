"""Distances between normal distributions, and what they say of pixels that are whole numbers."""

import math

import torch
from torch import Tensor


def normal_kl(
    mean_difference: Tensor, log_variance: Tensor | float, other_log_variance: Tensor | float
) -> Tensor:
    """KL(N(m, v) || N(m', v')) of each pixel, in nats.

    Args:
        mean_difference: m - m', (B, C, H, W); taken as a difference, since float32 would lose that
            of two means which lie close.
        log_variance, other_log_variance: log v and log v', each broadcasting with it.
    """
    ratio = torch.as_tensor(log_variance - other_log_variance)
    spread = mean_difference**2 * torch.as_tensor(-other_log_variance).exp()
    return 0.5 * (ratio.exp() - ratio - 1 + spread)


def discretized_log_likelihood(
    x: Tensor, mean: Tensor, log_std: Tensor, levels: int = 256
) -> Tensor:
    """log of N(mean, std²)'s mass in the bin of each pixel (Ho et al. 2020, eq. 13), in nats.

    The bins are `levels` equal ones around -1 ... 1, the outermost open. The normal's cumulative
    distribution is the tanh approximation of the paper's code, and the mass is at least 1e-12 as
    there; both are computed in float64, since float32's tails are noise by several nats.

    Args:
        x: Pixels, (B, C, H, W), each the centre of a bin.
        mean, log_std: Of the normal, broadcasting with x.
        levels: How many values a pixel can have.

    Returns:
        (B, C, H, W), in float64 where the device has it.
    """
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    x, mean, log_std = x.to(dtype), mean.to(dtype), log_std.to(dtype)
    half = 1 / (levels - 1)
    below = _cdf((x - mean - half) * torch.exp(-log_std))
    upto = _cdf((x - mean + half) * torch.exp(-log_std))
    # The centres of the outermost bins are -1 and 1 up to float32's rounding.
    below = below.where(x > -1 + half, torch.zeros_like(below))
    upto = upto.where(x < 1 - half, torch.ones_like(upto))
    return (upto - below).clamp(min=1e-12).log()


def _cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
