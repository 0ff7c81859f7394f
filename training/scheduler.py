"""The scheduler of a run: of its settings, or of the model that it fine-tunes."""

import inspect
import json
from typing import Any

from diffusers import DDPMScheduler

from ddpm_sa.errors import UserError, require
from ddpm_sa.image_format import FILE_NAME, ImageFormat
from ddpm_sa.model_folder import (
    NETWORK_CONFIGS,
    SCHEDULER_CONFIGS,
    first_file,
    load_scheduler,
    local_folder,
)
from ddpm_sa.models.presets import predicting, preset
from ddpm_sa.models.sizing import AUTO
from training.config import OF_SAVED_MODEL, TrainConfig

# DDPMScheduler's names of the schedules.
BETA_SCHEDULE = {"linear": "linear", "cosine": "squaredcos_cap_v2", "quadratic": "scaled_linear"}
# These describe a noise schedule beyond its name and its ends.
SPECIAL_BETAS = {"trained_betas": None, "rescale_betas_zero_snr": False}


def make_scheduler(config: TrainConfig) -> DDPMScheduler:
    """Make the scheduler that a run trains for, and saves with its model.

    It has the preset's settings with the noise schedule of the configuration. A fine-tuned network
    keeps the scheduler of its model, except for the settings in `model.init_override`.

    Args:
        config: The settings of a run, as `training.fine_tuning.follow_saved_model` returns them.

    Raises:
        UserError: If the scheduler of the model cannot be used.
    """
    settings = None
    if config.model.init_from is not None:
        settings = saved_scheduler(config.model.init_from)
    if settings is not None:
        return DDPMScheduler(**settings | _overridden(config, settings))
    # A network of the automatic size is sampled like the paper's for CIFAR-10.
    name = "cifar10" if config.model.preset == AUTO else config.model.preset
    settings = preset(name).scheduler
    if config.objective.learned_variance:
        settings = settings | {"variance_type": "learned_range"}
    return DDPMScheduler(
        **settings
        | {
            "num_train_timesteps": config.schedule.num_timesteps,
            "beta_schedule": BETA_SCHEDULE[config.schedule.kind],
            "beta_start": config.schedule.beta_start,
            "beta_end": config.schedule.beta_end,
        }
        | predicting(config.objective.prediction_type)
    )


def saved_scheduler(folder_or_repo: str) -> dict[str, Any] | None:
    """The arguments of DDPMScheduler that describe the scheduler of a model.

    A scheduler of another class gives its betas, its prediction type and whatever else it shares
    with DDPMScheduler.

    Returns:
        The arguments; None for a network without a scheduler.

    Raises:
        UserError: If the scheduler cannot be read, or contradicts the network or itself.
    """
    folder = local_folder(folder_or_repo, weights=False)
    if not any((folder / name).is_file() for name in SCHEDULER_CONFIGS):
        return None
    scheduler = load_scheduler(folder)
    saved, known = scheduler.config, inspect.signature(DDPMScheduler).parameters
    settings = {name: saved[name] for name in known if saved.get(name) is not None}
    learned = predicts_variance(folder_or_repo)
    variance = settings.setdefault("variance_type", "learned_range" if learned else "fixed_small")
    require(
        learned == (variance == "learned_range"),
        f"{folder_or_repo} has variance_type={variance}, and a network with "
        f"{'two outputs' if learned else 'one output'} for each channel; learned_range, and no "
        "other variance_type, needs two",
    )
    # What a scheduler of another class does not say, such as clip_sample, follows as in a new run.
    return predicting(settings["prediction_type"]) | settings


def predicts_variance(folder_or_repo: str) -> bool:
    """Whether the network of a model has a second output for each channel, the variance."""
    folder = local_folder(folder_or_repo, weights=False)
    path = first_file(folder, NETWORK_CONFIGS)
    try:
        network = json.loads(path.read_text(encoding="utf-8"))
        channels = network.get("in_channels", 3)
        if (folder / FILE_NAME).is_file():  # the other inputs may be those of a condition
            channels = ImageFormat.load(folder).channels
        return network.get("out_channels", 3) == 2 * channels
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not the configuration of a network: {error}") from error


def kind_of(settings: dict[str, Any]) -> str:
    """schedule.kind for these arguments of DDPMScheduler; "saved" if they need more than a name."""
    if any(settings.get(name, usual) != usual for name, usual in SPECIAL_BETAS.items()):
        return "saved"
    names = {beta_schedule: kind for kind, beta_schedule in BETA_SCHEDULE.items()}
    return names.get(settings["beta_schedule"], "saved")


def _overridden(config: TrainConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of DDPMScheduler that this run has in place of its model's."""
    values = {
        "objective.prediction_type": config.objective.prediction_type,
        "schedule.kind": BETA_SCHEDULE.get(config.schedule.kind),
        "schedule.num_timesteps": config.schedule.num_timesteps,
        "schedule.beta_start": config.schedule.beta_start,
        "schedule.beta_end": config.schedule.beta_end,
    }
    names = config.model.init_override or []
    changed = {OF_SAVED_MODEL[name]: values[name] for name in names}
    if "objective.prediction_type" in names:
        changed |= predicting(config.objective.prediction_type)
    if "schedule.kind" in names:
        changed |= SPECIAL_BETAS
    elif settings.get("trained_betas") is not None:
        alone = [name for name in names if name.startswith("schedule.")]
        require(
            not alone,
            f"{', '.join(alone)} cannot be changed alone: {config.model.init_from} has betas of "
            "its own (trained_betas); give --schedule.kind too",
        )
    return changed
