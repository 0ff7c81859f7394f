"""The variational bound on the likelihood of images: its terms, their sum, and what they buy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_sa.diffusion.gaussian import normal_kl
from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.diffusion.reverse_step_likelihood import learned_log_variance, variational_term
from ddpm_sa.diffusion.schedule import NoiseSchedule, VarianceType

# diffusers' variance_type, and the variance it stands for; "log" says how its sampler computes.
FIXED: dict[str, VarianceType] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
}
LEARNED = "learned_range"


@dataclass(frozen=True, eq=False)
class Bound:
    """Of B images over T timesteps.

    Attributes:
        terms: L_t of each image, (B, T), bits a dimension; L_0 is the decoder's.
        mse: Mean squared error of the image predicted at each timestep, (B, T), in [-1, 1]².
        prior: KL(q(x_T | x_0) || N(0, I)), (B,), bits a dimension.
    """

    terms: Tensor
    mse: Tensor
    prior: Tensor

    @property
    def total(self) -> Tensor:
        """-log2 p(x_0) is at most this, (B,), bits a dimension (Ho et al. 2020, eq. 5)."""
        return self.terms.sum(1) + self.prior

    @property
    def rate(self) -> Tensor:
        """Bits a dimension that x_t has cost at each t, (T,): the prior and L_i of i > t.

        Of the first, t = 0, it is the rate of the paper's table 1; of all, that of table 4, whose
        reverse steps are T - t (Ho et al. 2020, section 4.3).
        """
        later = self.terms.mean(0).flip(0).cumsum(0).flip(0)
        return torch.cat([later[1:], later.new_zeros(1)]) + self.prior.mean()

    @property
    def distortion(self) -> Tensor:
        """Root of the mean squared error of the image predicted from x_t, (T,), in 0 ... 255."""
        return self.mse.mean(0).sqrt() * 127.5


def variational_bound(
    network: Callable[[Tensor, Tensor, Tensor | None], Any],
    schedule: NoiseSchedule,
    prediction: Prediction,
    variance_type: str,
    x_0: Tensor,
    noise_at: Callable[[int], Tensor],
    class_labels: Tensor | None = None,
    clip: bool = True,
    levels: int = 256,
) -> Bound:
    """Every term of the bound of some images, one draw of noise for each.

    Args:
        network: (x_t, t, class_labels) -> an object whose `.sample` is F, (B, C, H, W), or with
            a learned variance F and what `learned_log_variance` takes, (B, 2 C, H, W).
        schedule, prediction: What x_t and F are.
        variance_type: Of the reverse steps, as diffusers' DDPMScheduler names it.
        x_0: (B, C, H, W), float32, in [-1, 1], each pixel one of `levels` values.
        noise_at: t -> standard normal noise for x_t, as x_0.
        class_labels: (B,), int64, for a class-conditional network.
        clip: Take predicted images within [-1, 1], as sampling does.
        levels: How many values a pixel can have.

    Raises:
        ValueError: If the variance type is unknown, or a term is not finite.
    """
    if variance_type not in FIXED and variance_type != LEARNED:
        raise ValueError(
            f"variance_type={variance_type!r} has no bound here; known are {', '.join(FIXED)}, "
            f"{LEARNED}"
        )
    channels, terms, mse = x_0.shape[1], [], []
    for moment in range(len(schedule)):
        t = torch.full((len(x_0),), moment, device=x_0.device)
        x_t = schedule.add_noise(x_0, noise_at(moment), t)
        output = network(x_t, t, class_labels).sample.to(x_t.dtype)
        a, s = schedule.at(schedule.a, t, x_t), schedule.at(schedule.s, t, x_t)
        guess = prediction.x_0(output[:, :channels], x_t, a, s)
        guess = guess.clamp(-1, 1) if clip else guess
        if variance_type == LEARNED:
            log_variance = learned_log_variance(schedule, output[:, channels:], t)
        else:
            log_variance = schedule.at(schedule.log_variance(FIXED[variance_type]), t, x_t)
        terms.append(variational_term(schedule, x_0, guess, log_variance, t, levels))
        mse.append((guess - x_0).square().flatten(1).mean(1))
    found = Bound(torch.stack(terms, 1).cpu(), torch.stack(mse, 1).cpu(), prior(schedule, x_0))
    if not found.total.isfinite().all():
        moment = int((~found.terms.isfinite().all(0)).nonzero()[0])
        raise ValueError(f"the bound is not finite at t={moment}: {prediction.name} says no image")
    return found


def prior(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)) of images (B, C, H, W): (B,), bits a dimension."""
    # In float64: what is left of the signal is small, and its variance near 1.
    log_variance = torch.log1p(-schedule.alphas_cumprod[-1])
    nats = normal_kl(schedule.a[-1] * x_0.double().cpu(), log_variance, 0.0)
    return (nats.flatten(1).mean(1) / math.log(2)).to(x_0.dtype)
