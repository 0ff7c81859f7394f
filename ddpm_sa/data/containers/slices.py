"""Which images of a stack are taken: `data.slices`, and what an empty image is."""

import re

import numpy as np

EVERY, FROM_TO = re.compile(r"every:(\d{1,9})"), re.compile(r"(\d{0,9}):(\d{0,9})")


def parse_slices(slices: str) -> slice | None:
    """The images that `every:2` or `10:50` takes of each stack; None if it is neither."""
    if every := EVERY.fullmatch(slices):
        step = int(every[1])
        return slice(None, None, step) if step > 0 else None
    bounds = FROM_TO.fullmatch(slices)
    if bounds is None or slices == ":":
        return None
    start, stop = (int(bound) if bound else None for bound in bounds.groups())
    return slice(start, stop) if stop is None or (start or 0) < stop else None


def span(image: np.ndarray) -> tuple[float, float]:
    """The lowest and highest value that is not NaN; (nan, nan) if there is none."""
    finite = image[~np.isnan(image)] if image.dtype.kind == "f" else image
    return (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)


def empty(spans: np.ndarray, threshold: float) -> np.ndarray:
    """Which images of a stack are empty, (N,) bool.

    An image is empty if its values span less than `threshold` of what those of the stack span, so
    that noise around a constant background counts as empty too; or if all of it is NaN.

    Args:
        spans: The lowest and highest value of each image, (N, 2).
        threshold: Between 0 and 1.
    """
    if np.isnan(spans).all():
        return np.ones(len(spans), dtype=bool)
    whole = np.nanmax(spans[:, 1]) - np.nanmin(spans[:, 0])
    own = spans[:, 1] - spans[:, 0]
    return np.isnan(own) | (own < threshold * whole)
