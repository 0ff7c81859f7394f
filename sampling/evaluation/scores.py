"""A set of images against the real ones, in numbers."""

import dataclasses
from functools import partial

from accelerate import PartialState

from ddpm_sa.data.cache import cache_folder
from ddpm_sa.data.dataset import Images
from ddpm_sa.distributed import by_process_0
from ddpm_sa.metrics.distances import frechet_distance, kernel_distance
from ddpm_sa.metrics.features import Extractor
from ddpm_sa.metrics.precision_recall import Shares, shares
from ddpm_sa.metrics.summary import (
    Summary,
    cache_key,
    load_summary,
    of_all_processes,
    save_summary,
    summarise,
)
from sampling.evaluation.image_sets import Entrant, real_images

KEPT = 10_000  # images of a set that are compared in pairs


@dataclasses.dataclass(frozen=True)
class Real:
    """The real images.

    Attributes:
        summary: Of all of them.
        fingerprint: Of their pixels.
        cached: Whether it was known.
    """

    summary: Summary
    fingerprint: str
    cached: bool


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came of one set.

    Attributes:
        name, count: Which, and how many images.
        frechet, kernel: Distances to the real images' features.
        score: exp E KL(p(y|x) || p(y)), or None where the features come without classes.
        shares: Precision, recall, density and coverage.
        tint: For each channel, the difference of its mean from the real images', in their standard
            deviations; the standard error of that; and the ratio of standard deviations.
    """

    name: str
    count: int
    frechet: float
    kernel: float
    score: float | None
    shares: Shares
    tint: list[dict[str, float]]


def of_real(images: Images, extractor: Extractor, batch_size: int, here: PartialState) -> Real:
    """The summary of the real images, from the cache if these pixels were seen before."""
    fingerprint = by_process_0(images.fingerprint, "the real images cannot be read")
    key = cache_key(fingerprint, extractor.identity(images.format.shape), str(KEPT))
    path = cache_folder(None) / "summaries" / f"{key}.safetensors"
    known = by_process_0(partial(load_summary, path))
    if known is not None:
        return Real(known, fingerprint, True)
    entrant = real_images("real images", images, batch_size, here)
    summary = of_all_processes(summarise(entrant.batches(), extractor, KEPT))
    by_process_0(
        partial(save_summary, summary, path), f"{path.parent} cannot be written to", "mend that"
    )
    return Real(summary, fingerprint, False)


def measured(entrant: Entrant, real: Real, extractor: Extractor) -> Measured:
    """Every number of a set.

    Raises:
        ValueError: If it has too few images, or values that are not finite.
    """
    try:
        made = of_all_processes(summarise(entrant.batches(), extractor, KEPT))
        return Measured(
            name=entrant.name,
            count=made.count,
            frechet=frechet_distance(made.features, real.summary.features),
            kernel=kernel_distance(made.rows, real.summary.rows),
            score=made.score,
            shares=shares(real.summary.rows, made.rows),
            tint=tint(made, real.summary),
        )
    except ValueError as error:
        raise ValueError(f"{entrant.name}: {error}") from error


def tint(made: Summary, real: Summary) -> list[dict[str, float]]:
    """How far each channel's mean and spread are from the real images'."""
    return [
        {
            "shift": (of_made["mean"] - of_real["mean"]) / of_real["spread"],
            "error": (of_made["error"] ** 2 + of_real["error"] ** 2) ** 0.5 / of_real["spread"],
            "spread_ratio": of_made["spread"] / of_real["spread"],
        }
        if of_real["spread"]
        else {"shift": of_made["mean"] - of_real["mean"], "error": 0.0, "spread_ratio": 1.0}
        for of_made, of_real in zip(made.channels(), real.channels(), strict=True)
    ]
