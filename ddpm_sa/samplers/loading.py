"""Reading scheduler_config.json, which may come from anybody.

The name in it chooses among the schedulers listed here and nothing else: an arbitrary name could
be that of DiffusionPipeline, which runs Python files of its folder. Every value is checked before
diffusers sees it, since diffusers would end in a traceback, allocate what it is told to, or give
noise.
"""

import inspect
from pathlib import Path
from typing import Any

import diffusers

from ddpm_sa.diffusion.prediction import PREDICTIONS
from ddpm_sa.diffusion.schedule import BETA_SCHEDULES, NoiseSchedule
from ddpm_sa.errors import UserError, require
from ddpm_sa.files.json_files import Number, check_choice, read_object, shown

# diffusers' schedulers whose configuration describes a DDPM: its betas and its prediction type.
SCHEDULER_CLASSES = (
    *("DDPMScheduler", "DDPMParallelScheduler"),
    *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler"),
    *("PNDMScheduler", "LCMScheduler", "TCDScheduler"),
)
CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": BETA_SCHEDULES,
    "prediction_type": tuple(PREDICTIONS),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "variance_type": (
        *("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        *("learned", "learned_range", None),
    ),
}
# Far more than any training has, and still small in memory.
MOST_TIMESTEPS = 10**6
RANGES = {
    "num_train_timesteps": Number(low=1, high=MOST_TIMESTEPS, whole=True),
    "beta_start": Number(low=0, high=1, inside=True),
    "beta_end": Number(low=0, high=1, inside=True),
    "clip_sample_range": Number(low=0, high=1e6, inside=True),
    "sample_max_value": Number(low=0, high=1e6, inside=True),
    "dynamic_thresholding_ratio": Number(low=0, high=1),
    "solver_order": Number(low=1, high=10, whole=True),
}


def read_scheduler(path: Path) -> Any:
    """Make the diffusers scheduler that a scheduler_config.json describes.

    Raises:
        UserError: If the file is not JSON, names no scheduler of SCHEDULER_CLASSES, or one that
            needs a missing package; or if a value has the wrong type or is out of range.
    """
    config = read_object(path)
    kind = _scheduler_class(path, config.get("_class_name"))
    # What begins with an underscore is for diffusers, which needs none of it here.
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        _check_settings(kind, settings)
        scheduler = kind.from_config(settings)
        NoiseSchedule.from_scheduler(scheduler)  # raises if the betas are not a noise schedule
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # Combinations that diffusers refuses.
    except (ValueError, NotImplementedError, ImportError) as error:
        raise UserError(f"{path} is refused by diffusers' {kind.__name__}: {error}") from error
    return scheduler


def _scheduler_class(path: Path, name: Any) -> Any:
    require(
        name in SCHEDULER_CLASSES,
        f"{path} has _class_name={shown(name)}, which is not a scheduler of diffusers that "
        "describes a DDPM, such as DDPMScheduler",
    )
    kind: Any = getattr(diffusers, name, None)
    require(kind is not None, f"{path} has _class_name={name!r}, which needs a newer diffusers")
    # Where a package is missing, diffusers has a stand-in of the same name.
    missing = getattr(kind, "_backends", None)
    if missing:
        raise UserError(f"{path} has _class_name={name!r}, which needs {' and '.join(missing)}")
    return kind


def _check_settings(kind: type, settings: dict[str, Any]) -> None:
    """Check each setting by its range or choices, or else by the type of its default."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name not in settings:
            continue
        value, default = settings[name], parameter.default
        optional = default is None or "None" in str(parameter.annotation)
        if name in RANGES:
            RANGES[name].check(name, value)
        elif name in CHOICES:
            check_choice(name, value, CHOICES[name])
        elif value == default or (value is None and optional):
            continue  # some defaults are infinite
        elif isinstance(default, bool):
            check_choice(name, value, (True, False))
        elif isinstance(default, int):
            Number(low=-MOST_TIMESTEPS, high=MOST_TIMESTEPS, whole=True).check(name, value)
        elif isinstance(default, float):
            Number().check(name, value)
        elif isinstance(default, str):
            require(isinstance(value, str), f"{name}={shown(value)} must be a text")
    _check_betas(settings)


def _check_betas(settings: dict[str, Any]) -> None:
    betas, timesteps = settings.get("trained_betas"), settings.get("num_train_timesteps", 1000)
    if betas is None:
        return
    require(
        isinstance(betas, list), f"trained_betas={shown(betas)} must be a list of numbers, or null"
    )
    require(
        len(betas) == timesteps,
        f"trained_betas has {len(betas)} numbers, and must have num_train_timesteps={timesteps}",
    )
    for t, beta in enumerate(betas):
        fits = Number(low=0, high=1).holds(beta) and beta > 0
        require(fits, f"trained_betas[{t}]={shown(beta)} must be above 0 and at most 1")
