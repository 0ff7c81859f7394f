"""What methods of restoration have in common: a measurement, an estimate at each step, hooks."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ddpm_sa.errors import require
from ddpm_sa.restoration.linear import LinearOperator
from ddpm_sa.restoration.steps import LINEAR, LinearStep
from ddpm_sa.samplers.denoise import Step
from ddpm_sa.samplers.method import Method

Draw = Callable[[], Tensor]
"""Gives standard normal noise, (B, C, H, W)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """y = A x_0 + sigma_y n, of a batch of images.

    Attributes:
        operator: A.
        y: (B, ...).
        sigma_y: Standard deviation of the noise in y, in units where images are in [-1, 1].
    """

    operator: LinearOperator
    y: Tensor
    sigma_y: float = 0.0

    def residual(self, x_0: Tensor) -> Tensor:
        """y - A x_0."""
        return self.y - self.operator(x_0)


class Estimate(NamedTuple):
    """What is known at one step.

    Attributes:
        x_t, x_0: What the network saw, and the image that it predicts, (B, C, H, W). With
            `uses_gradient`, x_0 can be differentiated by x_t.
        a, s: Signal and noise scale of x_t, scalars.
        step: The step that follows, if the method `needs_steps`.
    """

    x_t: Tensor
    x_0: Tensor
    a: Tensor
    s: Tensor
    step: LinearStep | None


class RestorationMethod:
    """A way to sample from p(x_0 | y). A subclass overrides what it changes.

    Attributes:
        name: As the programs have it.
        uses_gradient: Whether it differentiates the network, which takes about as long again.
    """

    name: ClassVar[str]
    uses_gradient: ClassVar[bool] = False

    def check(self, measured: Measurement, method: Method, base: Any) -> None:
        """
        Raises:
            ValueError: If this method of restoration cannot be used with that measurement, or that
                method of sampling. `base` is the scheduler of the model.
        """

    def needs_steps(self, measured: Measurement) -> bool:
        """Whether `Estimate.step` is used, which ddpm and ddim alone have."""
        return False

    def x_0(self, measured: Measurement, estimate: Estimate) -> Tensor:
        """The image to step with, in the place of the predicted one."""
        return estimate.x_0

    def x_next(
        self, measured: Measurement, estimate: Estimate, step: Step, draw: Draw
    ) -> Tensor | None:
        """The state that replaces the scheduler's, or None. `draw` gives the noise of this step."""
        return None

    def noise(self, measured: Measurement, step: LinearStep | None, z: Tensor) -> Tensor:
        """The noise of a step, in the place of the standard normal z."""
        return z

    def _check_linear(self, method: Method) -> None:
        require(
            method.scheduler in LINEAR,
            f"method={self.name} changes single steps, which scheduler={method.scheduler!r} does "
            f"not allow; use {' or '.join(LINEAR)}",
        )
