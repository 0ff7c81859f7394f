"""What benchmarks/recipe.py and quality.py compare is what they say."""

import numpy as np
import pytest
import yaml

from benchmarks.quality import minutes_to, recipe_of
from benchmarks.recipe import ROWS, row_config, table
from training.saved_config import to_plain

KINDS = yaml.safe_load(ROWS.read_text())


def flat(config):
    plain = to_plain(config)
    nested = {name: value for name, value in plain.items() if isinstance(value, dict)}
    inner = {f"{name}.{key}": value[key] for name, value in nested.items() for key in value}
    return {name: value for name, value in plain.items() if name not in nested} | inner


@pytest.mark.parametrize("kind", KINDS)
def test_rows_differ_from_the_baseline_in_what_they_name_alone(kind, tmp_path):
    sections = KINDS[kind]
    if kind == "cifar10":
        sections["base"]["data.source"] = str(tmp_path / "photographs.npy")
        np.save(sections["base"]["data.source"], np.zeros((2, 16, 16, 3), np.uint8))
    baseline = flat(row_config(sections, "baseline", 200, 1))
    assert baseline["steps"] == baseline["optim.decay_steps"] == 200
    for row, named in sections["rows"].items():
        found = flat(row_config(sections, row, 200, 1))
        differ = {name for name in found if found[name] != baseline[name]}
        brought = (
            {"model.unet", "model.attention_resolutions"} if "model.init_from" in named else set()
        )
        assert differ - brought == set(named), row


def test_table_has_the_mean_over_seeds_and_the_best_row_first():
    records = [
        {"row": row, "seed": seed, "distance": distance, "updates": 500, "images": 16000}
        for row, seed, distance in [("a", 0, 0.5), ("b", 0, 0.2), ("a", 1, 0.3)]
    ]
    lines = table(records).splitlines()[2:]
    assert lines[0] == "| b | 500 | 16,000 | 0.200 | 0.200 |"
    # The sample standard deviation of 0.5 and 0.3 is 0.2 / sqrt(2).
    assert lines[1] == "| a | 500 | 16,000 | 0.400 ± 0.141 | 0.500, 0.300 |"


@pytest.mark.parametrize("steps", [30, 1000])
def test_learning_rate_of_our_run_falls_with_its_last_update(steps):
    config = recipe_of(steps)
    assert config.steps == config.optim.decay_steps == steps
    assert config.optim.warmup_steps < steps / 5


def test_minutes_to_a_distance_lie_on_the_curve():
    minutes = [1.0, 2.0, 4.0]
    # On the line of slope -1 in log-log from (1, 8) by (2, 4) to (4, 2).
    assert minutes_to([8, 4, 2], minutes, 3) == pytest.approx(8 / 3)
    assert minutes_to([8, 4, 2], minutes, 9) == 1
    assert minutes_to([8, 4, 2], minutes, 1) is None
