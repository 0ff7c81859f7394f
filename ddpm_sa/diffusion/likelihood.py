"""Negative ELBO in bits per dimension (Ho et al. 2020, eq. 5).

From the bottom up: KL divergence and discretised likelihood of normal distributions, one term L_t
of the bound, and all of its terms with the prior, as rate and distortion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_sa.condition import NO_CONDITION, Condition
from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule, VarianceType
from ddpm_sa.errors import UserError

# diffusers' variance_type, and the variance it stands for; "log" says how its sampler computes.
FIXED: dict[str, VarianceType] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
}
LEARNED = "learned_range"


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
    """L_t of the variational bound (Ho et al. 2020, eq. 5), in bits per dimension.

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0; the discretised decoder's
    -log p(x_0 | x_1) for t = 0, whose mean is x_0_predicted itself.

    Args:
        x_0: Clean images, (B, C, H, W), in [-1, 1].
        x_0_predicted: The images that the network predicts, clipped or not, same shape.
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


@dataclass(frozen=True, eq=False)
class Bound:
    """The variational bound of B images over T timesteps.

    Attributes:
        terms: L_t of each image, (B, T), bits per dimension; L_0 is the decoder's.
        mse: Mean squared error of the image predicted at each timestep, (B, T), in [-1, 1]².
        prior: KL(q(x_T | x_0) || N(0, I)), (B,), bits per dimension.
    """

    terms: Tensor
    mse: Tensor
    prior: Tensor

    @property
    def total(self) -> Tensor:
        """-log2 p(x_0) is at most this, (B,), bits per dimension (Ho et al. 2020, eq. 5)."""
        return self.terms.sum(1) + self.prior

    @property
    def rate(self) -> Tensor:
        """Bits per dimension needed to transmit x_t, for each t, (T,): the prior and L_i for i > t.

        At t = 0 this is the rate of the paper's table 1; all t give its table 4, whose reverse
        steps are T - t (Ho et al. 2020, section 4.3).
        """
        later = self.terms.mean(0).flip(0).cumsum(0).flip(0)
        return torch.cat([later[1:], later.new_zeros(1)]) + self.prior.mean()

    @property
    def distortion(self) -> Tensor:
        """Root of the mean squared error of the image predicted from x_t, (T,), in 0 ... 255."""
        return self.mse.mean(0).sqrt() * 127.5


def variational_bound(
    network: Callable[..., Any],
    schedule: NoiseSchedule,
    prediction: Prediction,
    variance_type: str,
    x_0: Tensor,
    noise_at: Callable[[int], Tensor],
    *,
    condition: Condition = NO_CONDITION,
    clip: bool = True,
    levels: int = 256,
) -> Bound:
    """Every term of the bound of a batch of images, with one draw of noise per term.

    Args:
        network: Called as UNet is; the `.sample` of its output is F, (B, C, H, W), or with a
            learned variance F and what `learned_log_variance` takes, (B, 2 C, H, W).
        schedule, prediction: What x_t and F are.
        variance_type: Of the reverse steps, as diffusers' DDPMScheduler names it.
        x_0: (B, C, H, W), float32, in [-1, 1], each pixel one of `levels` values.
        noise_at: t -> standard normal noise for x_t, as x_0.
        condition: The conditioning of the network.
        clip: Clamp predicted images to [-1, 1], as sampling does.
        levels: How many values a pixel can have.

    Raises:
        ValueError: If the variance type is unknown, or a term is not finite.
    """
    if variance_type not in FIXED and variance_type != LEARNED:
        raise UserError(
            f"variance_type={variance_type!r} has no known bound; known are {', '.join(FIXED)}, "
            f"{LEARNED}"
        )
    channels, terms, mse = x_0.shape[1], [], []
    for moment in range(len(schedule)):
        t = torch.full((len(x_0),), moment, device=x_0.device)
        x_t = schedule.add_noise(x_0, noise_at(moment), t)
        output = condition.evaluate(network, x_t, t).sample.to(x_t.dtype)
        a, s = schedule.at(schedule.a, t, x_t), schedule.at(schedule.s, t, x_t)
        guess = prediction.x_0(output[:, :channels], x_t, a, s)
        guess = guess.clamp(-1, 1) if clip else guess
        if variance_type == LEARNED:
            log_variance = learned_log_variance(schedule, output[:, channels:], t)
        else:
            log_variance = schedule.at(schedule.log_variance(FIXED[variance_type]), t, x_t)
        terms.append(variational_term(schedule, x_0, guess, log_variance, t, levels))
        mse.append((guess - x_0).square().flatten(1).mean(1))
    bound = Bound(torch.stack(terms, 1).cpu(), torch.stack(mse, 1).cpu(), prior(schedule, x_0))
    if not bound.total.isfinite().all():
        moment = int((~bound.terms.isfinite().all(0)).nonzero()[0])
        raise UserError(
            f"the bound is not finite at t={moment}: {prediction.name} says nothing of x_0 there"
        )
    return bound


def prior(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)) of images (B, C, H, W): (B,), bits per dimension."""
    # In float64: what is left of the signal is small, and its variance near 1.
    log_variance = torch.log1p(-schedule.alphas_cumprod[-1])
    nats = normal_kl(schedule.a[-1] * x_0.double().cpu(), log_variance, 0.0)
    return (nats.flatten(1).mean(1) / math.log(2)).to(x_0.dtype)
