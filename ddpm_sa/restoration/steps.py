"""The steps of ddpm and ddim as the linear maps that they are, read off the scheduler itself."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.errors import require
from ddpm_sa.samplers.denoise import Evaluate, View, denoise
from ddpm_sa.samplers.method import Method

LINEAR = ("ddpm", "ddim")
"""Schedulers without a history, whose state is x_t."""


class LinearStep(NamedTuple):
    """One step of a scheduler, x_next = weight_0 x_0 + weight_t x_t + deviation z.

    z is standard normal. For ddpm the numbers are those of the posterior q(x_{t-1} | x_t, x_0)
    (Ho et al. 2020, eq. 7).
    """

    weight_0: float
    weight_t: float
    deviation: float


def linear_steps(method: Method, base: Any) -> dict[float, LinearStep]:
    """The steps of a method by timestep.

    Three pixels pass through the scheduler, in each of which one of x_t, x_0 and z is 1 and the
    others are 0.

    Args:
        method: Of a scheduler in LINEAR.
        base: The diffusers scheduler of the model.

    Raises:
        ValueError: If the network itself predicts the variance: then the steps are not known
            beforehand.
    """
    assert method.scheduler in LINEAR
    scheduler, kind = method.make_scheduler(base), base.config.prediction_type
    require(
        scheduler.config.get("variance_type") != "learned_range",
        "the noise of this network's steps is predicted by the network, and must be known here; "
        "give --scheduler_options.variance_type fixed_small",
    )
    x_t, x_0, z = torch.eye(3).reshape(3, 3, 1, 1, 1)

    def guide(_: Evaluate, view: View) -> Tensor:
        eps = (view.x_t - view.a * x_0) / view.s
        return prediction(kind).target(x_0, eps, view.a, view.s)

    walk = denoise(lambda *_: None, scheduler, x_t, lambda _: z, predicts=kind, guide=guide)
    found, step = {}, next(walk)
    while True:
        weight_t, weight_0, deviation = step.x_next.flatten().tolist()
        found[float(step.t)] = LinearStep(weight_0, weight_t, deviation)
        try:
            step = walk.send(x_t)
        except StopIteration:
            return found
