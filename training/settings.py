"""The settings of a run on disk: written once, and compared when the run goes on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

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
        "sample_steps",
        "resume",
        "time_limit",
        "keep_checkpoints",
        "tracker",
        "data.num_workers",
        "data.memory",
        "model.gradient_checkpointing",
        "ema.keep_raw",
    }
)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as the YAML that `--config` reads."""
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """A configuration as dicts, lists, strings and numbers."""
    plain = asdict(config)
    plain["optim"]["betas"] = list(config.optim.betas)
    return plain


def check_same_run(saved: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to go on with a run under settings that would make it another run.

    Args:
        saved: `to_plain` of the settings that the checkpoint was made with.
        config: The settings now.

    Raises:
        ValueError: Names each field that differs and may not, with both values.
    """
    before, now = _flatten(saved), _flatten(to_plain(config))
    different = [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in MAY_CHANGE_ON_RESUME and before.get(name) != now.get(name)
    ]
    if different:
        raise ValueError(
            f"cannot resume: {'; '.join(different)}. Keep the settings of the run, or start "
            "another in a new output_dir"
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
