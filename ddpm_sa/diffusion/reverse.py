"""One reverse step, written out: from x_t to a less noisy image, as DDPM and as DDIM take it.

Sampling drives diffusers' schedulers (`ddpm_sa.samplers`), which compute the same and much more.
These are the equations themselves, for reading and for short programs.
"""

import torch
from torch import Tensor

from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule, VarianceType


def ddpm_step(
    schedule: NoiseSchedule,
    prediction: Prediction,
    F: Tensor,
    x_t: Tensor,
    t: Tensor,
    z: Tensor,
    variance: VarianceType = "fixed_small",
    clip: bool = True,
) -> Tensor:
    """Draw x_{t-1} ~ p(x_{t-1} | x_t)  (Ho et al. 2020, algorithm 2, lines 3 and 4).

    x_{t-1} = coef1 x_0 + coef2 x_t + sigma_t z, the posterior's mean (eq. 7) with the predicted
    x_0 in the place of the true one. Nothing is added at t = 0.

    Args:
        schedule, prediction: What x_t and F are.
        F: The network's output, (B, C, H, W).
        x_t: What it saw, same shape.
        t: Timesteps, (B,), int64.
        z: Standard normal noise, same shape as x_t.
        variance: sigma_t², "fixed_small" or "fixed_large"; see `NoiseSchedule.variance`.
        clip: Clamp the predicted x_0 to [-1, 1], as the paper's code does.

    Returns:
        x_{t-1}, (B, C, H, W); at t = 0 the image.
    """
    a, s = schedule.at(schedule.a, t, x_t), schedule.at(schedule.s, t, x_t)
    x_0 = prediction.x_0(F, x_t, a, s)
    if clip:
        x_0 = x_0.clamp(-1, 1)
    sigma = schedule.at(schedule.variance(variance).sqrt(), t, x_t)
    sigma = sigma * (t > 0).to(x_t).reshape(sigma.shape)
    return schedule.posterior_mean(x_0, x_t, t) + sigma * z


def ddim_step(
    schedule: NoiseSchedule,
    prediction: Prediction,
    F: Tensor,
    x_t: Tensor,
    t: Tensor,
    t_next: Tensor,
    clip: bool = False,
) -> Tensor:
    """Move from timestep t to a lower one without noise (Song et al. 2021, eq. 12 with sigma = 0).

    x_{t_next} = a_next x_0 + s_next eps, with x_0 and eps as the network's output implies them.

    Args:
        schedule, prediction: What x_t and F are.
        F: The network's output, (B, C, H, W).
        x_t: What it saw, same shape.
        t, t_next: Timesteps, (B,), int64, t_next < t; -1 stands for the image itself.
        clip: Clamp the predicted x_0 to [-1, 1]; eps stays as predicted.

    Returns:
        (B, C, H, W).
    """
    a, s = schedule.at(schedule.a, t, x_t), schedule.at(schedule.s, t, x_t)
    x_0, eps = prediction.x_0(F, x_t, a, s), prediction.eps(F, x_t, a, s)
    if clip:
        x_0 = x_0.clamp(-1, 1)
    # alphas_cumprod_prev[t + 1] is alphas_cumprod[t], and 1 for the image itself.
    alphas = torch.cat([schedule.alphas_cumprod_prev, schedule.alphas_cumprod[-1:]])
    a_next = schedule.at(alphas.sqrt(), t_next + 1, x_t)
    s_next = schedule.at((1 - alphas).sqrt(), t_next + 1, x_t)
    return a_next * x_0 + s_next * eps
