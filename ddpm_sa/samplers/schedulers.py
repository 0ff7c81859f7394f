"""diffusers' schedulers by short name, set up for a model's own noise schedule.

The options of a scheduler are the settings of its diffusers class, and of that class's `step`, that
say how to sample. Settings that describe the training come from the model and are no options.
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
from ddpm_sa.errors import UserError

Option = bool | int | float | str
Options = Mapping[str, Option]

CHOICES = {
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "data_prediction", "noise_prediction"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
}
"""Values of options that diffusers does not declare, or declares with some that fail."""


class VariancePreservingIPNDM(IPNDMScheduler):
    """Improved pseudo-linear multistep of order 4 (Zhang & Chen 2023, iPNDM) on a model's betas.

    diffusers' class has the times and signal scales of one early network built in. Here they are
    those of a noise schedule, evenly spaced from the noisiest timestep. Its input is eps.
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
    """How to construct one scheduler.

    Attributes:
        scheduler: Its class, or the name of diffusers' one.
        settings: What differs from the class's defaults.
        step_options: Options of its `step`, with their defaults.
        keeps_leading: Whether it keeps the model's "leading" timestep spacing.
        predictions: The prediction types it can step with; others are converted to eps.
    """

    scheduler: str | type
    settings: Options = field(default_factory=dict)
    step_options: Options = field(default_factory=dict)
    keeps_leading: bool = False
    predictions: tuple[str, ...] = tuple(PREDICTIONS)


EPSILON, NO_SAMPLE = ("epsilon",), ("epsilon", "v_prediction")
# With evenly spaced timesteps, the first step on a cosine schedule drops sigma = s/a from thousands
# to about ten, and Heun weighs both ends equally. Space the steps evenly in log sigma instead.
SECOND_ORDER = {"use_exponential_sigmas": True}
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Options that exclude each other."""
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
    # PNDM would combine the v of several timesteps as if they belonged to the last, which gives
    # wrong images. Its Runge-Kutta start costs 9 more evaluations. On a schedule without terminal
    # signal its first steps are far off.
    "pndm": Solver(
        "PNDMScheduler",
        {"skip_prk_steps": True, "timestep_spacing": "leading"},
        predictions=EPSILON,
    ),
    "ipndm": Solver(VariancePreservingIPNDM, predictions=EPSILON),
}

NEEDED_BY = {
    "dynamic_thresholding_ratio": "thresholding",
    "sample_max_value": "thresholding",
    "clip_sample_range": "clip_sample",
}
"""Options without effect unless another one is true."""

_OF_THE_TRAINING = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
}
# Settings of flow-matching models, which these are not, and some without effect on the images.
_NO_OPTIONS = {
    *("use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
    *("disable_corrector", "steps_offset"),
}


def make_scheduler(name: str, base: Any, steps: int, options: Options | None = None) -> Any:
    """A scheduler for one batch, with the betas, prediction type and clipping of the model's own.

    "ddpm" with fewer steps than the training works as in diffusers: it visits evenly spaced
    timesteps, and each pair of neighbours defines one beta by the ratio of their alphas_cumprod.

    Args:
        name: One of SCHEDULERS.
        base: The diffusers scheduler of the model folder; it is not changed.
        steps: How many steps, from 1 to the training's.
        options: By name, as `known_options` has them.

    Raises:
        ValueError: If the name or an option is unknown, the steps are out of range, or the settings
            do not suit this scheduler.
    """
    known, options = known_options(name), dict(options or {})
    config = base.config
    if not 1 <= steps <= config.num_train_timesteps:
        raise UserError(
            f"steps={steps} must lie between 1 and the {config.num_train_timesteps} timesteps of "
            "the training"
        )
    for option, value in options.items():
        if option not in known:
            raise UserError(
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
        raise UserError(
            f"scheduler={name!r} with steps={steps} and options {options}: {error}"
        ) from error
    for option, needed in NEEDED_BY.items():
        if option in options and not scheduler.config[needed]:
            raise UserError(f"option {option} has no effect without {needed}=True")
    if for_step:
        scheduler.step = partial(scheduler.step, **for_step)
    return scheduler


def known_options(name: str) -> dict[str, inspect.Parameter]:
    """The options of a scheduler.

    Raises:
        ValueError: If there is no scheduler of that name, or it needs a missing package.
    """
    if name not in SCHEDULERS:
        raise UserError(f"scheduler={name!r} is unknown; known are {', '.join(SCHEDULERS)}")
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
        raise UserError(f"scheduler={name!r} needs scipy: pip install scipy")
    return cls


def _check_value(option: str, value: Option, parameter: inspect.Parameter) -> None:
    """diffusers accepts any value, and silently falls back to a default for some unknown ones."""
    default = parameter.default
    choices = CHOICES.get(option, ())
    if not choices and get_origin(parameter.annotation) is Literal:
        choices = get_args(parameter.annotation)
    if choices and value not in choices:
        raise UserError(f"option {option}={value!r} must be one of {', '.join(map(str, choices))}")
    kind = type(default)
    fits = isinstance(value, float | int if kind is float else kind)
    if not fits or isinstance(value, bool) != isinstance(default, bool):
        raise UserError(f"option {option}={value!r} must be of type {kind.__name__}")


def _inherited(name: str, base: Any) -> dict[str, Any]:
    """The settings of the model's scheduler that the new one understands.

    `from_config` would leave out settings that equal the defaults of the model's scheduler. Heun
    would then use its own betas, and the timesteps would change when the model is saved.
    """
    solver, config = SCHEDULERS[name], base.config
    known = inspect.signature(_class(name).__init__).parameters
    settings = {name: value for name, value in config.items() if name in known}
    # "leading" is DDPMScheduler's default. It starts below the noise level of x_T, which DDPM and
    # DDIM tolerate, and which diffusers' own pipelines do.
    if settings.get("timestep_spacing") == "leading" and not solver.keeps_leading:
        del settings["timestep_spacing"]
    if config["prediction_type"] not in solver.predictions:
        settings["prediction_type"] = "epsilon"
    # A scheduler refuses, or silently drops, parts of a noise schedule that it does not know.
    rescaled = config.get("rescale_betas_zero_snr", False)
    if rescaled and "rescale_betas_zero_snr" not in known:
        schedule = NoiseSchedule.from_scheduler(base).with_some_terminal_snr()
        settings["trained_betas"] = schedule.betas.tolist()
    elif name == "ipndm" or (config["beta_schedule"] == "sigmoid" and name != "ddpm"):
        unscaled = type(base).from_config(config, rescale_betas_zero_snr=False)
        settings["trained_betas"] = NoiseSchedule.from_scheduler(unscaled).betas.tolist()
        settings |= {"beta_schedule": "linear"} if "beta_schedule" in known else {}
    if name != "ddpm":
        settings.pop("variance_type", None)  # DPM-Solver's "learned" assumes 3 channels
    elif settings["variance_type"] in ("learned", "fixed_large_log"):
        raise UserError(
            f"variance_type={settings['variance_type']!r} gives NaN in diffusers' DDPMScheduler, "
            "which takes the root of a logarithm; use another scheduler, such as ddim"
        )
    return settings
