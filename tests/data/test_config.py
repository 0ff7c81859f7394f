"""Numbers of the data settings that make no sense are refused, each by its name."""

import math
import re

import pytest

from ddpm_sa.data.config import DataConfig


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("memory", -1.0),
        ("memory", math.inf),
        ("memory", math.nan),
        ("size", 0),
        ("size", 100_000),
        ("size", "8x100000"),
        ("size", "9" * 5000),
        ("channels", 0),
        ("channels", 10**9),
        ("num_classes", 0),
        ("num_classes", -3),
        ("num_classes", 10**9),
        ("value_range", (0.0, math.inf)),
        ("value_range", (-math.inf, 0.0)),
        ("value_range", (math.nan, 1.0)),
        ("value_range", (1.0, 1.0)),
        ("shuffle_buffer", 0),
        ("shuffle_buffer", 10**12),
        ("num_workers", 0),
        ("num_workers", 10**6),
        ("validation", math.nan),
        ("label_dropout", math.nan),
        ("label_dropout", 1.0),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(setting, value):
    shown = re.escape(str(value)[:10])
    with pytest.raises(ValueError, match=rf"^data\.{setting}={shown}.* must be "):
        DataConfig(source="x", class_conditional=True, **{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("memory", 0.0), ("size", 1), ("size", "512x384"), ("num_classes", 1), ("num_workers", 64)],
)
def test_a_number_at_the_edge_is_taken(setting, value):
    assert getattr(DataConfig(source="x", **{setting: value}), setting) == value
