"""diffusers' schedulers by short name, made to follow a model's own noise schedule.

A solver's options are the settings of its diffusers class, and of that class's `step`, as far as
they say how to sample; what describes the training is the model's and no option.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args, get_origin

import diffusers
import numpy as np
import torch
from diffusers import IPNDMScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ddpm_sa.diffusion.prediction import PREDICTIONS
from ddpm_sa.diffusion.schedule import NoiseSchedule

Option = bool | int | float | str
Options = Mapping[str, Option]

CHOICES = {
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "data_prediction", "noise_prediction"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
}
"""Values of options where diffusers does not say them, or says some that fail or will go."""


class VariancePreservingIPNDM(IPNDMScheduler):
    """Improved pseudo-linear multistep of order 4 (Zhang & Chen 2023, iPNDM) on a model's betas.

    diffusers' own has the times and the signal scales of one early network; here they are those of
    a noise schedule, evenly spaced from the noisiest timestep. It is given eps.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
    ) -> None:
        betas = torch.tensor(trained_betas, dtype=torch.float64)
        self.alphas_cumprod = NoiseSchedule(betas).alphas_cumprod.float()
        super().__init__(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self.num_inference_steps, self.ets = num_inference_steps, []
        last = len(self.alphas_cumprod) - 1
        times = np.linspace(last, 0, num_inference_steps + 1).round()[:-1]
        self.timesteps = torch.from_numpy(times.astype(np.int64))
        kept = torch.cat([self.alphas_cumprod[self.timesteps], torch.ones(1)]).double()
        # In IPNDMScheduler "alphas" and "betas" are the signal and noise scale, a and s.
        self.alphas, self.betas = kept.sqrt().float(), (1 - kept).sqrt().float()
        self._step_index, self._begin_index = None, 0

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True):
        if self.step_index is None:
            self._init_step_index(timestep)
        a, s = self.alphas[self.step_index], self.betas[self.step_index]
        return super().step((model_output - s * sample) / a, timestep, sample, return_dict)


@dataclass(frozen=True)
class Solver:
    """How one scheduler is made.

    Attributes:
        scheduler: Its class, or the name of diffusers' one.
        settings: What differs from the class's defaults.
        step_options: What its `step` can be asked for, with what it does if it is not.
        keeps_leading: Whether it follows the model's "leading" timesteps.
        predictions: The prediction types that it can step with; for others it is given eps.
    """

    scheduler: str | type
    settings: Options = field(default_factory=dict)
    step_options: Options = field(default_factory=dict)
    keeps_leading: bool = False
    predictions: tuple[str, ...] = tuple(PREDICTIONS)


EPSILON, NO_SAMPLE = ("epsilon",), ("epsilon", "v_prediction")
# Even timesteps let the noise scale s/a of a cosine schedule fall from thousands to ten in one
# step, whose second evaluation Heun weighs like its first; these are even in its logarithm.
SECOND_ORDER = {"use_exponential_sigmas": True}
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Options of which a scheduler takes one."""
SCHEDULERS = {
    "ddpm": Solver("DDPMScheduler", keeps_leading=True),
    "ddim": Solver(
        "DDIMScheduler",
        step_options={"eta": 0.0, "use_clipped_model_output": False},
        keeps_leading=True,
    ),
    "dpmsolver++": Solver("DPMSolverMultistepScheduler"),
    "dpmsolver++sde": Solver("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver++singlestep": Solver("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "unipc": Solver("UniPCMultistepScheduler"),
    "deis": Solver("DEISMultistepScheduler"),
    "sasolver": Solver("SASolverScheduler"),
    "euler": Solver("EulerDiscreteScheduler"),
    "euler_ancestral": Solver("EulerAncestralDiscreteScheduler", predictions=NO_SAMPLE),
    "heun": Solver("HeunDiscreteScheduler", SECOND_ORDER),
    "kdpm2": Solver("KDPM2DiscreteScheduler", SECOND_ORDER, predictions=NO_SAMPLE),
    "kdpm2_ancestral": Solver(
        "KDPM2AncestralDiscreteScheduler", SECOND_ORDER, predictions=NO_SAMPLE
    ),
    "lms": Solver("LMSDiscreteScheduler", step_options={"order": 4}),
    # PNDM takes the v of several timesteps for v of the last, and so misses the image; its
    # Runge-Kutta start costs 9 evaluations more. Where no signal is left its first steps go astray.
    "pndm": Solver(
        "PNDMScheduler",
        {"skip_prk_steps": True, "timestep_spacing": "leading"},
        predictions=EPSILON,
    ),
    "ipndm": Solver(VariancePreservingIPNDM, predictions=EPSILON),
}

_OF_THE_TRAINING = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
}
# Those of flow-matching networks, which these are not; and lists, which change no image's quality.
_NO_OPTIONS = {
    *("use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
    *("disable_corrector", "steps_offset"),
}


def make_scheduler(name: str, base: Any, steps: int, options: Options | None = None) -> Any:
    """A scheduler for one batch, with the betas, prediction type and clipping of the model's own.

    "ddpm" with fewer steps than the training had does what diffusers does: it visits evenly spaced
    timesteps, and takes the product of the betas between two of them for one beta.

    Args:
        name: One of SCHEDULERS.
        base: The diffusers scheduler of the model folder; it is not changed.
        steps: How many steps, from 1 to the training's.
        options: By name, as `known_options` has them.

    Raises:
        ValueError: If the name or an option is unknown, the steps are out of range, or the settings
            are none that this scheduler can follow.
    """
    known, options = known_options(name), dict(options or {})
    config = base.config
    if not 1 <= steps <= config.num_train_timesteps:
        raise ValueError(
            f"steps={steps} must lie between 1 and the {config.num_train_timesteps} timesteps of "
            "the training"
        )
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"scheduler={name!r} has no option {option!r}; its options are {', '.join(known)}"
            )
        _check_value(option, value, known[option])
    solver = SCHEDULERS[name]
    for_step = {o: options.pop(o, default) for o, default in solver.step_options.items()}
    asked = not options.keys().isdisjoint(SPACINGS)
    own = {o: value for o, value in solver.settings.items() if not (asked and o in SPACINGS)}
    try:
        scheduler = _class(name)(**_inherited(name, base) | own | options)
        scheduler.set_timesteps(steps)
    except (ValueError, NotImplementedError, ImportError, IndexError) as error:
        raise ValueError(
            f"scheduler={name!r} with steps={steps} and options {options}: {error}"
        ) from error
    if for_step:
        scheduler.step = partial(scheduler.step, **for_step)
    return scheduler


def known_options(name: str) -> dict[str, inspect.Parameter]:
    """The options of a scheduler.

    Raises:
        ValueError: If there is no scheduler of that name, or it needs a package that is not there.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler={name!r} is unknown; known are {', '.join(SCHEDULERS)}")
    solver, cls = SCHEDULERS[name], _class(name)
    settings = inspect.signature(cls.__init__).parameters
    step = inspect.signature(cls.step).parameters
    hidden = _OF_THE_TRAINING | _NO_OPTIONS
    if name != "ddpm":
        hidden = hidden | {"variance_type"}
    return {
        option: parameter
        for option, parameter in settings.items()
        if option not in hidden and isinstance(parameter.default, bool | int | float | str)
    } | {option: step[option] for option in solver.step_options}


def _class(name: str) -> Any:
    scheduler = SCHEDULERS[name].scheduler
    if isinstance(scheduler, type):
        return scheduler
    cls = getattr(diffusers, scheduler)
    if "scipy" in getattr(cls, "_backends", ()):  # diffusers' stand-in where scipy is not installed
        raise ValueError(f"scheduler={name!r} needs scipy: pip install scipy")
    return cls


def _check_value(option: str, value: Option, parameter: inspect.Parameter) -> None:
    """diffusers takes any value, and falls back in silence on some that it does not know."""
    default = parameter.default
    choices = CHOICES.get(option, ())
    if not choices and get_origin(parameter.annotation) is Literal:
        choices = get_args(parameter.annotation)
    if choices and value not in choices:
        raise ValueError(f"option {option}={value!r} must be one of {', '.join(map(str, choices))}")
    kind = type(default)
    fits = isinstance(value, float | int if kind is float else kind)
    if not fits or isinstance(value, bool) != isinstance(default, bool):
        raise ValueError(f"option {option}={value!r} must be of type {kind.__name__}")


def _inherited(name: str, base: Any) -> dict[str, Any]:
    """The settings of the model's scheduler that the new one understands.

    Taken by hand: `from_config` leaves out what equals a default of the model's scheduler, and so
    would give Heun betas of its own, and other timesteps before the model is saved than after.
    """
    solver, config = SCHEDULERS[name], base.config
    known = inspect.signature(_class(name).__init__).parameters
    settings = {name: value for name, value in config.items() if name in known}
    # "leading" is what DDPMScheduler says when nobody chose. It starts below the noise of x_T,
    # which DDPM and DDIM bear, and which diffusers' own pipelines do.
    if settings.get("timestep_spacing") == "leading" and not solver.keeps_leading:
        del settings["timestep_spacing"]
    if config["prediction_type"] not in solver.predictions:
        settings["prediction_type"] = "epsilon"
    # What a scheduler does not know of a schedule, it would refuse, or drop without a word.
    rescaled = config.get("rescale_betas_zero_snr", False)
    if rescaled and "rescale_betas_zero_snr" not in known:
        settings["trained_betas"] = _with_some_terminal_snr(NoiseSchedule.from_scheduler(base))
    elif name == "ipndm" or (config["beta_schedule"] == "sigmoid" and name != "ddpm"):
        unscaled = type(base).from_config(config, rescale_betas_zero_snr=False)
        settings["trained_betas"] = NoiseSchedule.from_scheduler(unscaled).betas.tolist()
        settings |= {"beta_schedule": "linear"} if "beta_schedule" in known else {}
    if name != "ddpm":
        settings.pop("variance_type", None)  # DPM-Solver's "learned" keeps 3 channels, no matter C
    elif settings["variance_type"] in ("learned", "fixed_large_log"):
        raise ValueError(
            f"variance_type={settings['variance_type']!r} gives NaN in diffusers' DDPMScheduler, "
            "which takes the root of a logarithm; use another scheduler, such as ddim"
        )
    return settings


def _with_some_terminal_snr(schedule: NoiseSchedule) -> list[float]:
    """Its betas, but with the last one leaving a little signal, for schedulers that divide by it.

    diffusers leaves a² = 2^-24 in those that know such schedules; or half of the a² before.
    """
    betas = schedule.betas.clone()
    betas[-1] = max(1 - 2**-24 / schedule.alphas_cumprod[-2].item(), 0.5)
    return betas.tolist()
