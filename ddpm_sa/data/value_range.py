"""The values that images have, and which of them are mapped to -1 and 1."""

from typing import Any

import numpy as np

from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.sources.source import Source
from ddpm_sa.errors import UserError


def update_extremes(extremes: dict[str, Any], i: int, image: np.ndarray) -> None:
    """Update the lowest and highest value so far, each with the index of its image."""
    low, high = image.min().item(), image.max().item()
    if "lowest" not in extremes or low < extremes["lowest"][0]:
        extremes["lowest"] = (low, i)
    if "highest" not in extremes or high > extremes["highest"][0]:
        extremes["highest"] = (high, i)


def count_outside(images: np.ndarray, value_range: tuple[float, float]) -> int:
    """How many values lie outside of the range."""
    low, high = value_range
    counts = (np.count_nonzero((image < low) | (image > high)) for image in images)
    return int(sum(counts))


def percentile_range(images: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """The stored values at two percentiles; the nearest values outwards, where they lie between."""
    low = np.percentile(images, percentiles[0], method="lower")
    high = np.percentile(images, percentiles[1], method="higher")
    return float(low), float(high)


def full_range(dtype: str) -> tuple[float, float] | None:
    """The full range of an integer dtype; None for floats."""
    return None if dtype == "float32" else (0, np.iinfo(dtype).max)


def resolve_value_range(
    source: Source, config: DataConfig, index: dict[str, Any]
) -> tuple[float, float]:
    """Return data.value_range, or else the full range of integers or the range of the floats.

    Percentiles of it are in the index.

    Raises:
        ValueError: If a value is outside the range, or all float values are equal.
    """
    extremes = index["extremes"]
    if config.percentiles is not None:
        low, high = index["value_range"]
        if low == high:
            raise UserError(
                f"both percentiles of data.value_range={config.value_range} are {low:g} in "
                f"data.source={config.source}; choose others, or give two numbers"
            )
        return low, high
    value_range = config.fixed_range or full_range(index["dtype"])
    if value_range is None:
        low, high = extremes["lowest"][0], extremes["highest"][0]
        if low == high:
            raise UserError(
                f"every value of data.source={config.source} is {low:g}; images need a range"
            )
        return low, high
    for value, i in () if config.clip else extremes.values():
        check_range(value_range, value, value, source.name(i))
    return value_range


def check_range(value_range: tuple[float, float], low: float, high: float, name: str) -> None:
    """Check that the values of an image, low to high, are within the range.

    Raises:
        ValueError: If a value is outside the range.
    """
    if not value_range[0] <= low <= high <= value_range[1]:
        outside = low if low < value_range[0] else high
        raise UserError(
            f"{name} has the value {outside:g}, outside data.value_range={value_range[0]:g}, "
            f"{value_range[1]:g}; widen the range, so that no value is clipped, or "
            "set data.clip true"
        )
