"""Fine-tuning: the prediction type and the noise schedule are those of the model it starts from.

A network of eps that is trained as if it predicted v has to unlearn everything. So the settings of
a --config file, which are meant for new networks, give way to the model's. A flag that contradicts
the model is an error, unless the user overrides it.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm_sa.errors import UserError, require
from ddpm_sa.model_folder import is_run, model_of_run
from training.config import OF_SAVED_MODEL, TrainConfig
from training.scheduler import kind_of, predicts_variance, saved_scheduler

LEARNED_VARIANCE = "objective.learned_variance"


def follow_saved_model(
    config: TrainConfig, flags: Collection[str] = ()
) -> tuple[TrainConfig, list[str]]:
    """Replace settings by those of the model in `model.init_from`, if there is one.

    Args:
        config: The settings of the run.
        flags: Names of the settings that were given on the command line.

    Returns:
        The settings to train with, which repeat the run when they are read from a file, and lines
        for the report.

    Raises:
        UserError: If a flag contradicts the model, naming both values; or if it is a run that has
            not written its model.
    """
    if config.model.init_from is None:
        return config, []
    model = _model_folder(config.model.init_from)
    config = replace(config, model=replace(config.model, init_from=model))
    saved = saved_scheduler(model)
    require(
        saved is not None or config.schedule.kind != "saved",
        f"schedule.kind=saved, but model.init_from={model} has no scheduler; give another kind",
    )
    theirs = _settings_of(model, saved)
    ours = {name: _setting(config, name) for name in theirs}
    different = [name for name in theirs if ours[name] not in (theirs[name], "saved")]

    allowed = set(config.model.init_override or [])
    if config.override:
        allowed |= OF_SAVED_MODEL.keys() & set(flags)
    kept = [name for name in different if name in allowed]
    replaced = [name for name in different if name not in allowed]
    if contradicting := [name for name in replaced if name in flags]:
        raise UserError(_refusal(model, contradicting, ours, theirs))

    values = {name: value for name, value in theirs.items() if name not in kept}
    config = replace(
        config,
        model=replace(config.model, init_override=kept or None),
        objective=replace(config.objective, **_fields("objective", values)),
        schedule=replace(config.schedule, **_fields("schedule", values)),
    )
    notes = [_summary(config, saved)]
    if replaced:
        changes = _list_changes(replaced, theirs, ours, "not")
        notes.append(f"as it was   {changes}")
    if kept:
        notes.append(f"override    {_list_changes(kept, ours, theirs, 'it was trained with')}")
    return config, notes


def _model_folder(init_from: str) -> str:
    """The model of a run, where a run is given, as in sampling; anything else as it is."""
    if not is_run(Path(init_from)):
        return init_from
    model = model_of_run(Path(init_from))
    if model is None:
        raise UserError(
            f"model.init_from={init_from} is a run that has no model/ yet: it is written when the "
            "run ends, or is stopped with Ctrl-C"
        )
    return str(model)


def _settings_of(model: str, saved: dict[str, Any] | None) -> dict[str, Any]:
    """Our settings for what a model is: its outputs and, if it has one, its scheduler."""
    settings: dict[str, Any] = {LEARNED_VARIANCE: predicts_variance(model)}
    if saved is not None:
        settings |= {
            name: saved[argument] for name, argument in OF_SAVED_MODEL.items() if argument in saved
        }
        settings["schedule.kind"] = kind_of(saved)
    return settings


def _setting(config: TrainConfig, name: str) -> Any:
    group, _, field = name.partition(".")
    return getattr(getattr(config, group), field)


def _fields(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of one group of settings."""
    start = f"{group}."
    return {name[len(start) :]: values[name] for name in values if name.startswith(start)}


def _refusal(model: str, names: list[str], ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    changes = ", ".join(f"--{name} {ours[name]}, but it has {theirs[name]}" for name in names)
    if LEARNED_VARIANCE in names:
        way_out = f"its outputs are fixed, so leave out --{LEARNED_VARIANCE}"
    else:
        way_out = "leave the flag out, or give --override true to train for another objective"
    return f"model.init_from={model} contradicts {changes}; {way_out}"


def _summary(config: TrainConfig, saved: dict[str, Any] | None) -> str:
    kind = config.schedule.kind
    if saved is not None and kind == "saved":
        kind = "trained_betas" if "trained_betas" in saved else saved["beta_schedule"]
        kind += " rescaled to zero SNR" if saved.get("rescale_betas_zero_snr") else ""
    words = (
        f"{config.objective.prediction_type}, {kind} schedule of "
        f"{config.schedule.num_timesteps} timesteps"
    )
    if saved is None:
        words = f"it has no scheduler, so as the settings say: {words}"
    return f"fine-tuning {config.model.init_from}: {words}"


def _list_changes(names: list[str], now: dict[str, Any], other: dict[str, Any], words: str) -> str:
    return ", ".join(f"{name}={now[name]} ({words} {other[name]})" for name in names)
