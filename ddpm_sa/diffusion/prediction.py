"""Prediction types: what the network's output F stands for.

Every noisy image is x_t = a x_0 + s eps, and every network predicts some other combination
F = p x_0 + q eps. The pair (p, q) is the prediction type; its target, its denoiser and the weight
of its error all follow from that 2 x 2 system:

    [x_t]   [a  s] [x_0]                 x_0 = (q x_t - s F) / det
    [ F ] = [p  q] [eps]                 eps = (a F - p x_t) / det       det = a q - s p
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """One prediction type. In all methods a and s broadcast with the images and a² + s² = 1.

    Attributes:
        name: diffusers' `prediction_type`.
        row: (a, s) -> (p, q).
    """

    name: str
    row: Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]

    def target(self, x_0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """F = p x_0 + q eps, the target of the regression, (B, C, H, W)."""
        p, q = self.row(a, s)
        return p * x_0 + q * eps

    def x_0(self, F: Tensor, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The clean image that the output F implies, (B, C, H, W), not clipped."""
        p, q = self.row(a, s)
        return (q * x_t - s * F) / (a * q - s * p)

    def eps(self, F: Tensor, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The noise that the output F implies, (B, C, H, W)."""
        p, q = self.row(a, s)
        return (a * F - p * x_t) / (a * q - s * p)

    def error_of_x_0(self, a: Tensor, s: Tensor) -> Tensor:
        """Error of x_0 for a unit error of F, s / det; it may be negative."""
        p, q = self.row(a, s)
        return s / (a * q - s * p)

    def x_0_error(self, schedule: NoiseSchedule) -> Tensor:
        """Squared error of x_0 for a unit squared error of F, float64, (T,)."""
        return self.error_of_x_0(schedule.a, schedule.s) ** 2


PREDICTIONS = {
    prediction.name: prediction
    for prediction in (
        Prediction("epsilon", lambda a, s: (0.0, 1.0)),  # Ho et al. 2020
        Prediction("sample", lambda a, s: (1.0, 0.0)),
        Prediction("v_prediction", lambda a, s: (-s, a)),  # Salimans & Ho 2022, appendix D
    )
}


def prediction(name: str) -> Prediction:
    """The prediction type of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in PREDICTIONS:
        raise UserError(f"prediction_type={name!r} is unknown; known are {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]
