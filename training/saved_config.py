"""Save the settings of a run, and compare them when the run is resumed."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ddpm_sa.errors import UserError, require
from ddpm_sa.files.atomic_files import write_atomically
from training.config import TrainConfig

# Settings that a resumed run may change: duration, logging, saving, evaluation and the split over
# machines; nothing that changes the numbers that it computes.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "output_dir",
        "steps",
        "micro_batch_size",
        "save_every",
        "sample_every",
        "log_every",
        "num_samples",
        "validate_every",
        "num_validation",
        "sample_steps",
        "resume",
        "override",
        "time_limit",
        "keep_checkpoints",
        "keep_every",
        "on_nonfinite",
        "sharding",
        "tracker",
        "data.num_workers",
        "data.memory",
        "data.cache_dir",
        "model.gradient_checkpointing",
        "ema.keep_raw",
    }
)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as a YAML file, which `--config` reads to repeat the run."""
    fresh = replace(config, resume="never", override=False)
    with write_atomically(path) as partial:
        partial.write_text(yaml.safe_dump(to_plain(fresh), sort_keys=False), encoding="utf-8")


def check_ours(path: Path) -> None:
    """Refuse to replace a config.yaml that is not that of a run.

    Raises:
        UserError: If it lacks a setting that every configuration has.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    ours = isinstance(settings, dict) and {"output_dir", "data", "model"} <= settings.keys()
    require(ours, f"{path} is not that of a run, and would be replaced; choose another output_dir")


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Convert a configuration to dicts, lists, strings and numbers."""

    def without_tuples(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in items}

    return asdict(config, dict_factory=without_tuples)


def check_same_run(saved: dict[str, Any], now: dict[str, Any], override: bool) -> list[str]:
    """Refuse to resume a run with settings that would change its results.

    Args:
        saved: `run_identity` of the checkpoint.
        now: `run_identity` of this run.
        override: Resume anyway.

    Returns:
        With `override`, a line to print for each field that differs.

    Raises:
        ValueError: Without `override`, naming each field that differs with both values.
    """
    before, after = _flatten(saved), _flatten(now)
    different = [
        f"{name} was {before.get(name)!r} and is now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in MAY_CHANGE_ON_RESUME and before.get(name) != after.get(name)
    ]
    if different and not override:
        raise UserError(
            f"cannot resume: {'; '.join(different)}. Keep the settings of the run, start another "
            "run in a new output_dir, or resume anyway with --override true"
        )
    return [f"override    {change}" for change in different]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
