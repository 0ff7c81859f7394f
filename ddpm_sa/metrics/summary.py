"""Summary of a set of images of any size, from which every metric can be computed."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.metrics.features import Extractor
from ddpm_sa.metrics.moments import Moments

LAYOUT = "1"  # version of the file format


@dataclass(frozen=True, eq=False)
class Summary:
    """Statistics of a set of images, computed with an `Extractor`.

    Attributes:
        features: Mean and covariance of the features of all images.
        colours: Mean and covariance of each image's channel means and mean squares, 2 C numbers
            in [-1, 1].
        indices, rows: Indices, (N,) int64, and features, (N, D) float32, of the images that are
            stored individually, sorted by index.
        classes: Sums over the images of p(y|x) and of Σ p log p, (K + 1,) float64; K is 0 for an
            extractor without classes.
    """

    features: Moments
    colours: Moments
    indices: Tensor
    rows: Tensor
    classes: Tensor

    @property
    def count(self) -> int:
        """Number of images."""
        return self.features.count

    def __add__(self, other: "Summary") -> "Summary":
        indices = torch.cat([self.indices, other.indices])
        order = indices.argsort()
        return Summary(
            features=self.features + other.features,
            colours=self.colours + other.colours,
            indices=indices[order],
            rows=torch.cat([self.rows, other.rows])[order],
            classes=self.classes + other.classes,
        )

    @property
    def score(self) -> float | None:
        """exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, section 4) over all images.

        Published values are a mean over ten parts, which is lower for few images. None for an
        extractor without classes.
        """
        if len(self.classes) == 1:
            return None
        mean = self.classes / self.count
        marginal = mean[:-1]
        return math.exp(float(mean[-1] - torch.special.xlogy(marginal, marginal).sum()))

    def channels(self) -> list[dict[str, float]]:
        """Return mean, standard deviation ("spread") and standard error of each channel.

        The pixels are in [-1, 1]; the standard error of the mean is taken over images.
        """
        C = len(self.colours.mean) // 2
        mean, square = self.colours.mean.split(C)
        errors = (self.colours.covariance.diagonal()[:C] / self.count).sqrt()
        spread = (square - mean**2).clamp(min=0).sqrt()
        names = ("mean", "spread", "error")
        return [
            dict(zip(names, map(float, row), strict=True))
            for row in zip(mean, spread, errors, strict=True)
        ]


def summarise(
    batches: Iterable[tuple[Sequence[int], Tensor]], extractor: Extractor, kept: int
) -> Summary | None:
    """Summarise batches of images; None if there are no images.

    Args:
        batches: Batches of indices and images, (B, C, H, W) in [-1, 1].
        extractor: The feature extractor.
        kept: Store the features of images below this index, for metrics of pairs.

    Raises:
        ValueError: If images or features are not finite.
    """
    total: Summary | None = None
    for batch_indices, images in batches:
        rows, probabilities = extractor(images)
        indices = torch.as_tensor(list(batch_indices))
        is_kept = indices < kept
        flat = images.detach().cpu().double().flatten(2)
        part = Summary(
            features=Moments.of(rows),
            colours=Moments.of(torch.cat([flat.mean(2), flat.square().mean(2)], 1)),
            indices=indices[is_kept],
            rows=rows[is_kept],
            classes=_sum_classes(probabilities),
        )
        total = part if total is None else total + part
    return total


def of_all_processes(mine: Summary | None) -> Summary:
    """Sum the summaries of all processes, in the same order in every process."""
    parts = [part for part in gather_object([mine]) if part is not None]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _sum_classes(probabilities: Tensor | None) -> Tensor:
    if probabilities is None:
        return torch.zeros(1, dtype=torch.float64)
    negative_entropy = torch.special.xlogy(probabilities, probabilities).sum()
    return torch.cat([probabilities.sum(0), negative_entropy[None]])


def cache_key(*parts: str) -> str:
    """Hash strings that identify a summary into a file name."""
    return hashlib.sha256("\n".join((LAYOUT, *parts)).encode()).hexdigest()[:32]


def save_summary(summary: Summary, path: Path) -> None:
    """Write a summary atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "indices": summary.indices,
        "rows": summary.rows,
        "classes": summary.classes,
        "count": torch.tensor(summary.count),
    }
    for name in ("features", "colours"):
        moments = getattr(summary, name)
        tensors |= {f"{name}.mean": moments.mean, f"{name}.scatter": moments.scatter}
    with write_atomically(path) as partial:
        save_file(tensors, partial)


def load_summary(path: Path) -> Summary | None:
    """Load a saved summary; None if it does not exist or is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        count = int(tensors["count"])
        return Summary(
            *(
                Moments(count, tensors[f"{name}.mean"], tensors[f"{name}.scatter"])
                for name in ("features", "colours")
            ),
            indices=tensors["indices"],
            rows=tensors["rows"],
            classes=tensors["classes"],
        )
    except (OSError, SafetensorError, KeyError):
        return None
