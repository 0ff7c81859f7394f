"""One batch under a restoration method: the guide of its steps, their noise, their results."""

import torch
from torch import Tensor

from ddpm_sa.diffusion.prediction import Prediction
from ddpm_sa.restoration.base import Draw, Estimate, Measurement, RestorationMethod
from ddpm_sa.restoration.steps import LinearStep
from ddpm_sa.samplers.denoise import Evaluate, Guide, Step, View


class MeasurementGuide:
    """A `ddpm_sa.samplers.denoise.Guide` that makes the samples fit a measurement.

    It keeps the estimate of the step at hand: create one for each batch.

    Args:
        restoration: The method.
        measured: The measurements of the batch, on the network's device.
        predicts: What the network predicts.
        inner: Guidance of the network itself, or None.
        steps: As `linear_steps` has them; empty if the method needs none.
    """

    def __init__(
        self,
        restoration: RestorationMethod,
        measured: Measurement,
        predicts: Prediction,
        inner: Guide | None,
        steps: dict[float, LinearStep],
    ) -> None:
        self.restoration, self.measured, self.predicts = restoration, measured, predicts
        self.inner, self.steps = inner, steps
        self.estimate: Estimate | None = None

    def __call__(self, evaluate: Evaluate, view: View) -> Tensor:
        """F of the image to step with, and the predicted variance if there is one."""
        differentiates, a, s = self.restoration.uses_gradient, view.a, view.s
        with torch.set_grad_enabled(differentiates):
            view = view._replace(x_t=view.x_t.detach().requires_grad_(differentiates))
            output = self.inner(evaluate, view) if self.inner else evaluate(*view[:3])
            F, variance = output.tensor_split([view.x_t.shape[1]], dim=1)
            x_0 = self.predicts.x_0(F, view.x_t, a, s)
        self.estimate = Estimate(view.x_t, x_0, a, s, self.steps.get(float(view.t[0])))
        x_t = view.x_t.detach()
        x_0 = self.restoration.x_0(self.measured, self.estimate).detach()
        return torch.cat([self.predicts.target(x_0, (x_t - a * x_0) / s, a, s), variance], dim=1)

    def noise(self, z: Tensor) -> Tensor:
        """The noise of the step at hand, from standard normal noise."""
        assert self.estimate is not None
        return self.restoration.noise(self.measured, self.estimate.step, z)

    def x_next(self, step: Step, draw: Draw) -> Tensor | None:
        """What replaces the state after a step, or None. `draw` gives the noise of this step."""
        assert self.estimate is not None
        return self.restoration.x_next(self.measured, self.estimate, step, draw)
