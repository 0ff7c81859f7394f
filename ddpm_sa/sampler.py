"""From noise to images: diffusers' schedulers by short name, and the loop that drives them.

Noise belongs to images, not to batches: a scheduler that draws gets the noise it is handed, so that
an image is the same whatever stands beside it.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ddpm_sa.prediction import PREDICTIONS, prediction

Network = Callable[[Tensor, Tensor, Tensor | None], Any]
"""(x_t, t, class_labels) -> an object whose `.sample` is F, as UNet and UNet2DModel are called."""


@dataclass(frozen=True)
class Solver:
    """How one of diffusers' schedulers is made.

    Attributes:
        scheduler: Its class.
        stochastic: Whether its steps draw noise.
        options: What differs from the class's defaults.
        keeps_leading: Whether it follows the model's "leading" timesteps.
        predictions: The prediction types that it can step with.
    """

    scheduler: type
    stochastic: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    keeps_leading: bool = False
    predictions: tuple[str, ...] = tuple(PREDICTIONS)


SCHEDULERS = {
    "ddpm": Solver(DDPMScheduler, stochastic=True, keeps_leading=True),
    "ddim": Solver(DDIMScheduler, keeps_leading=True),
    "dpmsolver++": Solver(DPMSolverMultistepScheduler),
    "dpmsolver++sde": Solver(
        DPMSolverMultistepScheduler, stochastic=True, options={"algorithm_type": "sde-dpmsolver++"}
    ),
    "unipc": Solver(UniPCMultistepScheduler),
    "euler": Solver(EulerDiscreteScheduler),
    "euler_ancestral": Solver(
        EulerAncestralDiscreteScheduler, stochastic=True, predictions=("epsilon", "v_prediction")
    ),
    "heun": Solver(HeunDiscreteScheduler),
    "pndm": Solver(
        PNDMScheduler,
        options={"skip_prk_steps": True},  # its Runge-Kutta start costs 9 evaluations more
        keeps_leading=True,
        # It takes the v of several timesteps for v of the last, and so misses the image.
        predictions=("epsilon",),
    ),
}


def make_scheduler(name: str, base: Any, steps: int) -> Any:
    """A scheduler for one batch, with the betas, prediction type and clipping of the model's own.

    "ddpm" with fewer steps than the training had does what diffusers does: it visits evenly spaced
    timesteps, and takes the product of the betas between two of them for one beta. "heun" evaluates
    the network 2 steps - 1 times, "pndm" steps + 1 times; the others, steps times.

    Args:
        name: One of SCHEDULERS.
        base: The diffusers scheduler of the model folder; it is not changed.
        steps: How many steps, from 1 to the training's.

    Raises:
        ValueError: If the name is unknown, the steps are out of range, or the settings of the model
            are none that this scheduler can follow.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler={name!r} is unknown; known are {', '.join(SCHEDULERS)}")
    solver, config = SCHEDULERS[name], base.config
    if not 1 <= steps <= config.num_train_timesteps:
        raise ValueError(
            f"steps={steps} must lie between 1 and the {config.num_train_timesteps} timesteps of "
            "the training"
        )
    if config.prediction_type not in solver.predictions:
        raise ValueError(
            f"scheduler={name!r} cannot use prediction_type={config.prediction_type!r}, only "
            f"{', '.join(solver.predictions)}; use ddim"
        )
    scheduler = solver.scheduler(**_inherited(solver, config) | solver.options)
    scheduler.set_timesteps(steps)
    return scheduler


def _inherited(solver: Solver, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the model's scheduler that the new one understands.

    Taken by hand: `from_config` leaves out what equals a default of the model's scheduler, and so
    would give Heun betas of its own, and other timesteps before the model is saved than after.
    """
    known = inspect.signature(solver.scheduler.__init__).parameters
    settings = {name: value for name, value in config.items() if name in known}
    # "leading" is what DDPMScheduler says when nobody chose. It starts below the noise of x_T,
    # which DDPM and DDIM bear, and which diffusers' own pipelines do.
    if settings.get("timestep_spacing") == "leading" and not solver.keeps_leading:
        del settings["timestep_spacing"]
    if solver.scheduler is not DDPMScheduler:
        settings.pop("variance_type", None)  # DPM-Solver's "learned" keeps 3 channels, no matter C
    elif settings["variance_type"] in ("learned", "fixed_large_log"):
        raise ValueError(
            f"variance_type={settings['variance_type']!r} gives NaN in diffusers' DDPMScheduler, "
            "which takes the root of a logarithm; use another scheduler, such as ddim"
        )
    return settings


class Step(NamedTuple):
    """One evaluation of the network and what became of it.

    Attributes:
        number: 0, 1, ... from the noisiest on.
        t: Timestep that the network was told, a scalar, an integer or between two.
        x_t: What the network saw, a x_0 + s eps, (B, C, H, W).
        x_0: The clean image it implies, (B, C, H, W), not clipped.
        x_next: The scheduler's state after the step (its own scale); after the last, the image.
    """

    number: int
    t: Tensor
    x_t: Tensor
    x_0: Tensor
    x_next: Tensor


@torch.no_grad()
def denoise(
    network: Network,
    scheduler: Any,
    x_T: Tensor,
    noise_of_step: Callable[[int], Tensor],
    class_labels: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Step]:
    """Denoise one batch, yielding after every evaluation of the network.

    The state stays in float32; the network alone runs in `dtype`.

    Args:
        network: Sees x_t (B, C, H, W) in `dtype` and t (B,); gives F with C channels, or 2 C where
            the second half is a learned variance (used by "ddpm" with "learned_range" alone).
        scheduler: From `make_scheduler`, for this batch alone.
        x_T: Standard normal noise, (B, C, H, W), float32.
        noise_of_step: Index of a step -> the noise that it adds if it adds any, like x_T.
        class_labels: (B,), int64, for a class-conditional network.
    """
    denoiser = prediction(scheduler.config.prediction_type)
    learned_variance = scheduler.config.get("variance_type") == "learned_range"
    x, channels = x_T * scheduler.init_noise_sigma, x_T.shape[1]
    for index, t in enumerate(scheduler.timesteps):
        x_t = scheduler.scale_model_input(x, t)
        output = network(x_t.to(dtype), t.to(x.device).expand(len(x)), class_labels).sample.float()
        F = output[:, :channels]
        with _ServedNoise(lambda index=index: noise_of_step(index)):
            x = scheduler.step(output if learned_variance else F, t, x).prev_sample
        yield Step(index, t, x_t, denoiser.x_0(F, x_t, *_scales(scheduler, index, t)), x)


def _scales(scheduler: Any, index: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of what the network sees at a step, float32 scalars."""
    if hasattr(scheduler, "sigmas"):
        a_squared = 1 / (1 + scheduler.sigmas[index].double() ** 2)
    else:
        a_squared = scheduler.alphas_cumprod[t].double()
    return a_squared.sqrt().float(), (1 - a_squared).sqrt().float()


class _ServedNoise(TorchFunctionMode):
    """Inside it, `torch.randn` returns the noise that is served.

    The means by which `with torch.device(...)` works. diffusers' schedulers take torch Generators
    alone, whose CPU seeds have 32 bits and whose numbers depend on the image's type and device.
    """

    def __init__(self, serve: Callable[[], Tensor]) -> None:
        super().__init__()
        self.serve, self.served = serve, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        assert not self.served, "a scheduler drew twice in one step; the noise would be the same"
        self.served = True
        noise = self.serve()
        assert noise.shape == tuple(args[0])
        return noise.to(device=kwargs["device"], dtype=kwargs["dtype"])
