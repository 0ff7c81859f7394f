"""The settings of a run on disk: written once, and compared when the run goes on."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ddpm_sa.atomic_files import write_atomically
from training.config import TrainConfig

# What a resumed run may change: how long, how often and where it is looked at and kept, and how
# its numbers are spread over machines; nothing that changes which numbers it computes.
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
    """Write a configuration as the YAML that `--config` reads, and that repeats the run."""
    anew = replace(config, resume="never", override=False)
    with write_atomically(path) as partial:
        partial.write_text(yaml.safe_dump(to_plain(anew), sort_keys=False), encoding="utf-8")


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """A configuration as dicts, lists, strings and numbers."""

    def without_tuples(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in items}

    return asdict(config, dict_factory=without_tuples)


def check_same_run(saved: dict[str, Any], now: dict[str, Any], override: bool) -> list[str]:
    """Refuse to go on with a run under settings that would make it another run.

    Args:
        saved: `to_plain` of the settings that the checkpoint was made with, and what else counts.
        now: The same, as it is now.
        override: Go on nevertheless.

    Returns:
        With `override`, what is to be said of each field that differs and should not.

    Raises:
        ValueError: Without it, naming each of these fields with both values.
    """
    before, after = _flatten(saved), _flatten(now)
    different = [
        f"{name} was {before.get(name)!r} and is now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in MAY_CHANGE_ON_RESUME and before.get(name) != after.get(name)
    ]
    if different and not override:
        raise ValueError(
            f"cannot resume: {'; '.join(different)}. Keep the settings of the run, start another "
            "in a new output_dir, or go on nevertheless with --override true"
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
