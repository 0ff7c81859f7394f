"""Posterior sampling without training: DPS, PiGDM, DDNM and DDNM+, DiffPIR, RePaint.

A measurement y = A x_0 + sigma_y n of an unknown image is given, and a network that was trained on
images alone. Each method changes the x_0 that the network predicts, or the step taken with it, so
that the samples fit the measurement:

    DDNM      x_0 <- x_0 + A^+ (y - A x_0)
    DDNM+     the same, scaled where the noise of y exceeds that of the step
    DiffPIR   x_0 <- x_0 + (A^T A + rho)^-1 A^T (y - A x_0),           rho = lambda (sigma_y a / s)²
    PiGDM     x_0 <- x_0 + s²/a J^T A^T (r² A A^T + sigma_y²)^-1 (y - A x_0),    J = dx_0 / dx_t
    DPS       x_next <- x_next - zeta' d|y - A x_0| / dx_t
    RePaint   x_next <- a y + s noise, where a pixel is known; each step several times
"""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm_sa.errors import UserError, require
from ddpm_sa.restoration.base import Draw, Estimate, Measurement, RestorationMethod
from ddpm_sa.restoration.linear import inverse
from ddpm_sa.restoration.operators import Mask
from ddpm_sa.restoration.steps import LinearStep
from ddpm_sa.samplers.denoise import Step
from ddpm_sa.samplers.method import Method, dry_run


@dataclasses.dataclass(frozen=True)
class DPS(RestorationMethod):
    """Diffusion posterior sampling (Chung et al. 2023, algorithm 1).

    x_{t-1} = x'_{t-1} - zeta' grad |y - A x_0|, where x' is the step without guidance. That is half
    of the paper's zeta_t grad |y - A x_0|² with its zeta_t = zeta' / |y - A x_0|; the authors' code
    has it so (condition_methods.py). sigma_y is not used.

    Attributes:
        step_size: zeta'.

    Raises:
        ValueError: If it is not above 0.
    """

    step_size: float = 1.0
    name = "dps"
    uses_gradient = True

    def __post_init__(self) -> None:
        require(self.step_size > 0, f"step_size={self.step_size} must be above 0")

    def check(self, measured: Measurement, method: Method, base: Any) -> None:
        self._check_linear(method)

    def x_next(self, measured: Measurement, estimate: Estimate, step: Step, draw: Draw) -> Tensor:
        with torch.enable_grad():
            distance = measured.residual(estimate.x_0).flatten(1).norm(dim=1)
        # The images of a batch do not mix, so the gradient of the sum is that of each.
        gradient = torch.autograd.grad(distance.sum(), estimate.x_t)[0]
        return step.x_next - self.step_size * gradient


@dataclasses.dataclass(frozen=True)
class PiGDM(RestorationMethod):
    """Pseudoinverse-guided diffusion (Song et al. 2023).

    With p(x_0 | x_t) taken for N(x_0, r² I), r² = sigma² / (1 + sigma²) at sigma = s / a,

        g = J^T A^T (r² A A^T + sigma_y²)^-1 (y - A x_0)  ≈  grad log p(y | x_t)   (section 3).

    Attributes:
        step: How g is used. "published" is algorithm 1: the step of x_0 without guidance, plus
            a_{t-1} a_t r² g. "score" adds g to the score, which moves x_0 by s² / a g and goes with
            every scheduler. That is exact for data N(m, I), whose variance given x_t is r². For
            images the published step, whose weight does not shrink with the steps, fits better.

    Raises:
        ValueError: If there is no such step.
    """

    step: Literal["published", "score"] = "published"
    name = "pigdm"
    uses_gradient = True

    def __post_init__(self) -> None:
        require(self.step in ("published", "score"), f"step={self.step!r} must be published, score")

    def check(self, measured: Measurement, method: Method, base: Any) -> None:
        if self.step == "published":
            self._check_linear(method)

    def needs_steps(self, measured: Measurement) -> bool:
        return self.step == "published"

    def x_0(self, measured: Measurement, estimate: Estimate) -> Tensor:
        # Where x_t keeps no signal it says nothing about y.
        if self.step == "published" or estimate.a == 0:
            return estimate.x_0
        return estimate.x_0 + estimate.s**2 / estimate.a * self._score(measured, estimate)

    def x_next(
        self, measured: Measurement, estimate: Estimate, step: Step, draw: Draw
    ) -> Tensor | None:
        if self.step == "score":
            return None
        a_next, _ = scales_after(estimate)
        weight = a_next * estimate.a * _variance(estimate)
        return step.x_next + weight * self._score(measured, estimate)

    def _score(self, measured: Measurement, estimate: Estimate) -> Tensor:
        """g."""
        r2, x_0 = _variance(estimate), estimate.x_0.detach()
        ridge = measured.sigma_y**2 / float(r2)
        # A^T (r² A A^T + sigma_y²)^-1 = (A^T A + sigma_y² / r²)^-1 A^T / r²
        back = measured.operator.pseudo_inverse(measured.residual(x_0), ridge) / r2
        return torch.autograd.grad(estimate.x_0, estimate.x_t, back)[0]  # J^T


@dataclasses.dataclass(frozen=True)
class DDNM(RestorationMethod):
    """Denoising diffusion null-space model (Wang et al. 2023): DDNM, and DDNM+ for noisy y.

    x_0 <- x_0 - Sigma_t A^+ (A x_0 - y)  (eq. 13 and 17). Sigma_t = V diag(lambda) V^T and the
    covariance of the step's noise, V diag(gamma) V^T, are such that the noise of y and that of the
    step add up to the step's own variance (eq. 19, for each singular value).

    Without noise it is exact, in the limit of many steps of ddpm, where what A sees of an image is
    independent of what it does not.
    """

    name = "ddnm"

    def check(self, measured: Measurement, method: Method, base: Any) -> None:
        if measured.sigma_y == 0:
            return
        self._check_linear(method)
        require(
            dry_run(method, base).stochastic,
            f"method=ddnm with sigma={measured.sigma_y:g} needs a scheduler that draws noise, and "
            f"{method} draws none; use ddpm, or ddim with eta above 0",
        )
        measured.operator.filtered(torch.zeros(1, *measured.operator.image_shape), torch.zeros_like)

    def needs_steps(self, measured: Measurement) -> bool:
        return measured.sigma_y > 0

    def x_0(self, measured: Measurement, estimate: Estimate) -> Tensor:
        correction = measured.operator.pseudo_inverse(measured.residual(estimate.x_0))
        if measured.sigma_y > 0:
            step = _known(estimate.step)

            def share(s: Tensor) -> Tensor:  # lambda
                noise = step.weight_0 * measured.sigma_y * inverse(s)
                return torch.where(noise <= step.deviation, 1.0, step.deviation / noise)

            correction = measured.operator.filtered(correction, share)
        return estimate.x_0 + correction

    def noise(self, measured: Measurement, step: LinearStep | None, z: Tensor) -> Tensor:
        if measured.sigma_y == 0 or _known(step).deviation == 0:
            return z
        known = _known(step)

        def share(s: Tensor) -> Tensor:  # the square root of gamma, over the step's deviation
            noise = known.weight_0 * measured.sigma_y * inverse(s) / known.deviation
            return (1 - noise**2).clamp(min=0).sqrt()

        return measured.operator.filtered(z, share)


@dataclasses.dataclass(frozen=True)
class DiffPIR(RestorationMethod):
    """Plug-and-play restoration with a diffusion model as the denoiser (Zhu et al. 2023).

    x_0 <- argmin_x |y - A x|² + rho_t |x - x_0|²,  rho_t = lambda sigma_y² a² / s²  (algorithm
    1). Without noise in y that is A^+, as DDNM has it.

    Attributes:
        prior_weight: lambda.
        zeta: The share of fresh noise in the step, from 0 to 1,
            x_{t-1} = a x_0 + s (sqrt(1 - zeta) eps + sqrt(zeta) z); None takes
            the step of the scheduler, which may be any.

    Raises:
        ValueError: If a number is out of range.
    """

    prior_weight: float = 1.0
    zeta: float | None = 0.5
    name = "diffpir"

    def __post_init__(self) -> None:
        require(self.prior_weight > 0, f"prior_weight={self.prior_weight} must be above 0")
        if self.zeta is not None and not 0 <= self.zeta <= 1:
            raise UserError(f"zeta={self.zeta} must lie between 0 and 1")

    def check(self, measured: Measurement, method: Method, base: Any) -> None:
        if self.zeta is not None:
            self._check_linear(method)

    def needs_steps(self, measured: Measurement) -> bool:
        return self.zeta is not None

    def x_0(self, measured: Measurement, estimate: Estimate) -> Tensor:
        ridge = self.prior_weight * float((measured.sigma_y * estimate.a / estimate.s) ** 2)
        residual = measured.residual(estimate.x_0)
        return estimate.x_0 + measured.operator.pseudo_inverse(residual, ridge)

    def x_next(
        self, measured: Measurement, estimate: Estimate, step: Step, draw: Draw
    ) -> Tensor | None:
        if self.zeta is None:
            return None
        a_next, s_next = scales_after(estimate)
        eps = (step.x_t - estimate.a * step.x_0) / estimate.s
        noise = (1 - self.zeta) ** 0.5 * eps + self.zeta**0.5 * draw()
        return a_next * step.x_0 + s_next * noise


@dataclasses.dataclass(frozen=True)
class RePaint(RestorationMethod):
    """Resampling of the hidden pixels (Lugmayr et al. 2022), for masks and no noise in y.

    It is `ddpm_sa.editing.Editor.inpaint`, which the restorer calls.

    Attributes:
        repeats: How often each step is taken.
    """

    repeats: int = 10
    name = "repaint"

    def check(self, measured: Measurement, method: Method, base: Any) -> None:
        self._check_linear(method)
        require(
            isinstance(measured.operator, Mask),
            "method=repaint fills in hidden pixels, and the measurement is no mask of pixels; use "
            "another method, such as pigdm",
        )
        require(
            measured.sigma_y == 0,
            f"method=repaint keeps the known pixels as they are, with sigma={measured.sigma_y:g} "
            "their noise too; use another method, such as pigdm, or sigma 0",
        )


def scales_after(estimate: Estimate) -> tuple[Tensor, Tensor]:
    """a and s after the step: what it makes of a x_0 and of the two independent noises."""
    step = _known(estimate.step)
    a = step.weight_t * estimate.a + step.weight_0
    return a, (1 - a**2).clamp(min=0).sqrt()


def _known(step: LinearStep | None) -> LinearStep:
    assert step is not None, "checked before: only ddpm and ddim come here"
    return step


def _variance(estimate: Estimate) -> Tensor:
    """PiGDM's r²."""
    return estimate.s**2 / (estimate.a**2 + estimate.s**2)
