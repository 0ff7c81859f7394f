"""EDM's preconditionings (Karras et al. 2022, table 1) for a network of x_t and t.

EDM writes a denoiser D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) of x = x_0 + sigma eps. Here
x_t = a x with a = 1 / sqrt(1 + sigma²), and s = a sigma, so that x_t = a x_0 + s eps with
a² + s² = 1. The prediction is written such that neither small nor large sigmas cancel digits.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

# VPPrecond's defaults, which are those of Song et al. (2021): beta_d, beta_min and M.
BETA_D, BETA_MIN, VP_STEPS = 19.9, 0.1, 1000


@dataclass(frozen=True)
class EDM:
    """EDMPrecond: c_skip = d² / n², c_out = sigma d / n, c_in = 1 / n, with n² = sigma² + d².

    The network predicts v = a eps - s D, which is bounded at every noise level.

    Attributes:
        sigma_data: d.
    """

    sigma_data: float
    prediction_type: ClassVar[Literal["v_prediction"]] = "v_prediction"

    def c_in(self, sigma: Tensor) -> Tensor:
        """The factor of x_t; that of x is c_in a."""
        return ((1 + sigma**2) / (sigma**2 + self.sigma_data**2)).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def prediction(self, x_t: Tensor, raw: Tensor, sigma: Tensor) -> Tensor:
        """v = sigma (1 - d²) / n² x_t - d sqrt(1 + sigma²) / n F.

        From D above and eps = (x - D) / sigma = (sigma x - d n F) / n².
        """
        d = self.sigma_data
        return sigma * (1 - d**2) / (sigma**2 + d**2) * x_t - d * self.c_in(sigma) * raw


@dataclass(frozen=True)
class VP:
    """VPPrecond: c_skip = 1, c_out = -sigma, c_in = a, so that F is eps itself.

    Attributes:
        sigma_data: Not used; the argument of every preconditioning.
    """

    sigma_data: float
    prediction_type: ClassVar[Literal["epsilon"]] = "epsilon"

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(M - 1) t, where sigma² + 1 = exp(beta_d t² / 2 + beta_min t)."""
        root = (BETA_MIN**2 + 2 * BETA_D * torch.log1p(sigma**2)).sqrt()
        return (VP_STEPS - 1) * (root - BETA_MIN) / BETA_D

    def prediction(self, x_t: Tensor, raw: Tensor, sigma: Tensor) -> Tensor:
        return raw


PRECONDITIONINGS: dict[str, type[EDM | VP]] = {"edm": EDM, "vp": VP}


def geometric_sigma(t: Tensor, sigma_min: float, sigma_max: float, timesteps: int) -> Tensor:
    """sigma_min (sigma_max / sigma_min)^(t / (timesteps - 1)), (B,), float32."""
    share = t.float() / (timesteps - 1)
    return torch.exp(math.log(sigma_min) + share * math.log(sigma_max / sigma_min))


def geometric_betas(sigma_min: float, sigma_max: float, timesteps: int) -> list[float]:
    """The betas of the noise schedule whose s / a are the sigmas of the whole timesteps.

    1 - beta_t is the ratio of neighbouring a² = 1 / (1 + sigma²).
    """
    logs = torch.linspace(math.log(sigma_min), math.log(sigma_max), timesteps, dtype=torch.float64)
    signal = 1 / (1 + torch.exp(2 * logs))
    before = torch.cat([signal.new_ones(1), signal[:-1]])
    return (1 - signal / before).tolist()
