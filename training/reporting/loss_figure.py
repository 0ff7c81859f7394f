"""The figure of a run's losses: over the steps, and by timestep at the end."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
NAMES = {"loss": "training", "validation_loss": "held out, averaged weights"}


def read_records(path: Path) -> list[Row]:
    """Read the rows of metrics.jsonl; none if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_losses(records: Path, buckets: list[str]) -> "Figure | str":
    """Draw metrics.jsonl, if it has records and matplotlib is installed.

    Args:
        records: Path of metrics.jsonl.
        buckets: Names of the timestep ranges.

    Returns:
        The figure, or the reason why there is none.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "it needs matplotlib (pip install matplotlib)"
    from matplotlib.figure import Figure  # imported late, since it takes a second

    rows = read_records(records)
    if not any("loss" in row for row in rows):
        return "there are no records yet"
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_steps, by_timestep = figure.subplots(1, 2)
    for name, label in NAMES.items():
        curve = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if not curve:
            continue
        over_steps.plot(*zip(*curve, strict=True), label=label, marker="." * (len(curve) < 50))
        last = next(row for row in reversed(rows) if row.get(name) is not None)
        parts = [float("nan") if part is None else part for part in last[f"{name}_by_timestep"]]
        by_timestep.plot(buckets, parts, label=f"{label}, step {last['step']}", marker=".")
    for axes in (over_steps, by_timestep):
        axes.set_yscale("log")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    over_steps.set_xlabel("step")
    by_timestep.set_xlabel("timestep, from least to most noise")
    by_timestep.tick_params("x", rotation=45)
    return figure
