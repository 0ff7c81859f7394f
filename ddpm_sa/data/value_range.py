"""What values images hold, and which of them become -1 and 1."""

from typing import Any

import numpy as np

from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.sources import Source


def note_extremes(extremes: dict[str, Any], i: int, image: np.ndarray) -> None:
    """Keep the lowest and highest value so far, each with the index of its image."""
    low, high = image.min().item(), image.max().item()
    if "lowest" not in extremes or low < extremes["lowest"][0]:
        extremes["lowest"] = (low, i)
    if "highest" not in extremes or high > extremes["highest"][0]:
        extremes["highest"] = (high, i)


def whole_range(dtype: str) -> tuple[float, float] | None:
    """All that whole numbers of a type can be; None of floats."""
    return None if dtype == "float32" else (0, np.iinfo(dtype).max)


def value_range_of(
    source: Source, config: DataConfig, index: dict[str, Any]
) -> tuple[float, float]:
    """What is asked for, else all that whole numbers can be, else what floats are.

    Raises:
        ValueError: If a value is outside it, or all values are one.
    """
    extremes = index["extremes"]
    asked = config.value_range or whole_range(index["dtype"])
    if asked is None:
        low, high = extremes["lowest"][0], extremes["highest"][0]
        if low == high:
            raise ValueError(f"every value of data.source={config.source} is {low:g}")
        return low, high
    for value, i in extremes.values():
        check_range(asked, value, value, source.name(i))
    return asked


def check_range(asked: tuple[float, float], low: float, high: float, name: str) -> None:
    """Refuse an image whose values, low to high, are not all in the range asked for."""
    if not asked[0] <= low <= high <= asked[1]:
        wrong = low if low < asked[0] else high
        raise ValueError(
            f"{name} holds the value {wrong:g}, outside data.value_range={asked[0]:g}, "
            f"{asked[1]:g}; widen the range, so that no value is cut off"
        )
