"""What is kept of a set of images: enough for every distance, whatever the size of the set."""

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

from ddpm_sa.atomic_files import write_atomically
from ddpm_sa.metrics.features import Extractor
from ddpm_sa.metrics.moments import Moments

LAYOUT = "1"  # of a file; another one is not read


@dataclass(frozen=True, eq=False)
class Summary:
    """A set of images in terms of an `Extractor`.

    Attributes:
        features: Mean and covariance of the features, of every image.
        colours: Those of each image's channel means and mean squares, 2 C numbers in [-1, 1].
        indices, rows: The features of the images that are kept one by one, (N,) int64 and (N, D)
            float32, in the order of their indices.
        classes: Sum of p(y|x) over the images, and of Σ p log p: (K + 1,) float64; K is 0 where
            the features come without classes.
    """

    features: Moments
    colours: Moments
    indices: Tensor
    rows: Tensor
    classes: Tensor

    @property
    def count(self) -> int:
        """Images."""
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
        """exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, section 4), of all images at once.

        The published numbers are a mean over ten parts of the images, which is lower for few.
        None where the features come without classes.
        """
        if len(self.classes) == 1:
            return None
        mean = self.classes / self.count
        marginal = mean[:-1]
        return math.exp(float(mean[-1] - torch.special.xlogy(marginal, marginal).sum()))

    def channels(self) -> list[dict[str, float]]:
        """Mean and standard deviation of each channel's pixels, in [-1, 1], and the mean's error.

        The error is the standard error over images of the mean.
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
    """Of images as they come; None if there are none.

    Args:
        batches: The images' indices, and the images, (B, C, H, W) in [-1, 1].
        extractor: Gives their features.
        kept: Images below this index are kept one by one, for what compares pairs.

    Raises:
        ValueError: If images or features are not finite.
    """
    whole: Summary | None = None
    for numbers, images in batches:
        rows, probabilities = extractor(images)
        indices = torch.as_tensor(list(numbers))
        near = indices < kept
        flat = images.detach().cpu().double().flatten(2)
        part = Summary(
            features=Moments.of(rows),
            colours=Moments.of(torch.cat([flat.mean(2), flat.square().mean(2)], 1)),
            indices=indices[near],
            rows=rows[near],
            classes=_of_classes(probabilities),
        )
        whole = part if whole is None else whole + part
    return whole


def of_all_processes(mine: Summary | None) -> Summary:
    """The sum over the processes, in their order, on every one of them."""
    parts = [part for part in gather_object([mine]) if part is not None]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def _of_classes(probabilities: Tensor | None) -> Tensor:
    if probabilities is None:
        return torch.zeros(1, dtype=torch.float64)
    certain = torch.special.xlogy(probabilities, probabilities).sum()
    return torch.cat([probabilities.sum(0), certain[None]])


def cache_key(*parts: str) -> str:
    """A file's name for what these say."""
    return hashlib.sha256("\n".join((LAYOUT, *parts)).encode()).hexdigest()[:32]


def save_summary(summary: Summary, path: Path) -> None:
    """Write it, whole or not at all."""
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
    """What `save_summary` wrote; None if it isn't there or is damaged."""
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
