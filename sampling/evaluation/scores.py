"""Score a set of images against the real images: distances, precision and recall, colour shift."""

import dataclasses
from functools import partial

from accelerate import PartialState

from ddpm_sa.data.cache import cache_folder
from ddpm_sa.data.dataset import Images
from ddpm_sa.distributed import by_process_0
from ddpm_sa.errors import UserError
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
from sampling.evaluation.image_sets import ImageSet, read_dataset

MAX_COMPARED = 10_000  # images of a set whose features are compared in pairs


@dataclasses.dataclass(frozen=True)
class Reference:
    """Summary of the real images, which image sets are scored against.

    Attributes:
        summary: Statistics of their features.
        fingerprint: Hash of their pixels.
        cached: Whether the summary was read from the cache.
    """

    summary: Summary
    fingerprint: str
    cached: bool


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of one image set.

    Attributes:
        name, count: Name of the set, and number of images.
        frechet, kernel: Distances between its features and those of the real images.
        score: exp E KL(p(y|x) || p(y)), or None if the features come without class
            probabilities.
        shares: Precision, recall, density and coverage.
        tint: For each channel: shift of the mean from the real images', in their standard
            deviations; its standard error; and the ratio of the standard deviations.
    """

    name: str
    count: int
    frechet: float
    kernel: float
    score: float | None
    shares: Shares
    tint: list[dict[str, float]]


def summarise_reference(
    images: Images, extractor: Extractor, batch_size: int, state: PartialState
) -> Reference:
    """Summarise the real images, or read the summary from the cache if the pixels are the same."""
    fingerprint = by_process_0(images.fingerprint, "the real images cannot be read")
    key = cache_key(fingerprint, extractor.identity(images.format.shape), str(MAX_COMPARED))
    path = cache_folder(None) / "summaries" / f"{key}.safetensors"
    known = by_process_0(partial(load_summary, path))
    if known is not None:
        return Reference(known, fingerprint, True)
    image_set = read_dataset("real images", images, batch_size, state)
    summary = of_all_processes(summarise(image_set.batches(), extractor, MAX_COMPARED))
    by_process_0(
        partial(save_summary, summary, path), f"{path.parent} cannot be written to", "fix that"
    )
    return Reference(summary, fingerprint, False)


def score_images(image_set: ImageSet, reference: Reference, extractor: Extractor) -> Scores:
    """Compute every score of an image set.

    Raises:
        ValueError: If the set has too few images, or values that are not finite.
    """
    try:
        summary = of_all_processes(summarise(image_set.batches(), extractor, MAX_COMPARED))
        return Scores(
            name=image_set.name,
            count=summary.count,
            frechet=frechet_distance(summary.features, reference.summary.features),
            kernel=kernel_distance(summary.rows, reference.summary.rows),
            score=summary.score,
            shares=shares(reference.summary.rows, summary.rows),
            tint=measure_tint(summary, reference.summary),
        )
    except UserError as error:
        raise UserError(f"{image_set.name}: {error}") from error


def measure_tint(images: Summary, real: Summary) -> list[dict[str, float]]:
    """Compare each channel's mean and standard deviation with the real images'."""
    return [
        {
            "shift": (channel["mean"] - other["mean"]) / other["spread"],
            "error": (channel["error"] ** 2 + other["error"] ** 2) ** 0.5 / other["spread"],
            "spread_ratio": channel["spread"] / other["spread"],
        }
        if other["spread"]
        else {"shift": channel["mean"] - other["mean"], "error": 0.0, "spread_ratio": 1.0}
        for channel, other in zip(images.channels(), real.channels(), strict=True)
    ]
