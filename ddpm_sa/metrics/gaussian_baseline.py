"""Is there more to learn: the loss by timestep, beside the least that a Gaussian would leave."""

import torch
from torch import Tensor

from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.metrics.moments import Moments


def least_loss(schedule: NoiseSchedule, prediction: Prediction, pixels: Moments) -> Tensor:
    """The mean squared error of the best F for normal data with these pixels' covariance, (T,).

    E[x_0 | x_t] errs by λ s² / (a² λ + s²) along each eigenvector of the covariance, λ its
    variance; the error of F follows by the prediction's row. Real images have more structure than
    their covariance, so a network that has learned goes below this; one that lies above it has
    not yet learned what a linear map knows.

    Args:
        schedule, prediction: What x_t and F are.
        pixels: Of the images as rows, (C H W) values each.

    Returns:
        (T,), float64.
    """
    spectrum = torch.linalg.eigvalsh(pixels.covariance).clamp(min=0)
    a2, s2 = schedule.alphas_cumprod[:, None], 1 - schedule.alphas_cumprod[:, None]
    # x_0's error over s²: finite where no signal is left, and where none is lost.
    over_s2 = (spectrum / (a2 * spectrum + s2)).mean(1)
    p, q = prediction.row(schedule.a, schedule.s)
    return over_s2 * (schedule.a * q - schedule.s * p) ** 2
