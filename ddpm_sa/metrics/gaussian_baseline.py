"""The loss by timestep of the best network for Gaussian data, as a baseline."""

import torch
from torch import Tensor

from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.metrics.moments import Moments


def least_loss(schedule: NoiseSchedule, prediction: Prediction, pixels: Moments) -> Tensor:
    """Compute the lowest mean squared error of F for Gaussian data with this covariance, (T,).

    Along an eigenvector of the covariance with eigenvalue λ, E[x_0 | x_t] has the squared error
    λ s² / (a² λ + s²); the error of F follows from the prediction type. Real images have more
    structure than their covariance, so a trained network is below this loss. One above it has not
    yet learned as much as a linear map.

    Args:
        schedule, prediction: Define x_t and F.
        pixels: Moments of the images as rows of C H W values.

    Returns:
        (T,), float64.
    """
    spectrum = torch.linalg.eigvalsh(pixels.covariance).clamp(min=0)
    a2, s2 = schedule.alphas_cumprod[:, None], 1 - schedule.alphas_cumprod[:, None]
    # The error of x_0 over s²: finite at both ends of the schedule.
    over_s2 = (spectrum / (a2 * spectrum + s2)).mean(1)
    p, q = prediction.row(schedule.a, schedule.s)
    return over_s2 * (schedule.a * q - schedule.s * p) ** 2
