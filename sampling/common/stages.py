"""Sampling in stages: a model, and perhaps another one whose condition its samples are."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ddpm_sa.condition import Condition
from ddpm_sa.conditions.given import check_noise, describe
from ddpm_sa.errors import require
from ddpm_sa.pipeline import Batch, Pipeline
from ddpm_sa.samplers.method import Method
from sampling.common.conditions import ReadConditions
from sampling.common.model_loading import model_identity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One model of a cascade (Ho et al. 2021).

    Attributes:
        pipeline: The model.
        method: How to sample from it.
        noise: The level of noise that is added to its condition.

    Raises:
        UserError: If the model was not trained with that much.
    """

    pipeline: Pipeline
    method: Method
    noise: float = 0.0

    def __post_init__(self) -> None:
        condition = self.pipeline.image_format.condition
        check_noise(self.noise, 0.0 if condition is None else condition.noise)

    def identity(self, conditions: ReadConditions | None) -> dict[str, Any]:
        """What its samples depend on besides the sampler's settings, for samples.json."""
        identity = model_identity(self.pipeline)
        if conditions is not None:
            digest = hashlib.sha256()
            for images in conditions.given:
                digest.update(images.contiguous().numpy().tobytes())
            identity |= {"condition_sha256": digest.hexdigest(), "condition_noise": self.noise}
        return identity


def check_cascade(first: Pipeline, second: Pipeline) -> None:
    """Refuse a second model whose condition the first one's samples are not.

    Raises:
        UserError: If it has no condition, several, or one of another format.
    """
    condition = second.image_format.condition
    require(condition is not None, "--then needs a model that is conditioned on images")
    assert condition is not None
    ours, needed = first.image_format.shape, condition.kinds[0].given(second.image_format.shape)
    require(
        len(condition.kinds) == 1 and ours == needed,
        f"--then needs {describe(second.image_format)}, and --model makes {ours[0]} channels of "
        f"{ours[1]} x {ours[2]} pixels",
    )


def sample_batches(
    stages: Sequence[Stage],
    labels: Mapping[int, int | None],
    conditions: ReadConditions | None,
    seed: int,
    batch_size: int,
) -> Iterator[Batch]:
    """Sample the images with these indices and labels through all stages, batch by batch."""
    indices, first = list(labels), stages[0]
    condition = _condition(first, labels, indices, conditions, seed)
    for batch in first.pipeline.batches(
        indices, first.method, seed, batch_size, condition=condition
    ):
        for stage in stages[1:]:
            given = _condition(stage, labels, batch.indices, batch.images, seed)
            (batch,) = stage.pipeline.batches(
                batch.indices, stage.method, seed, batch_size, condition=given
            )
        yield batch


def _condition(
    stage: Stage,
    labels: Mapping[int, int | None],
    indices: Sequence[int],
    images: ReadConditions | torch.Tensor | None,
    seed: int,
) -> Condition:
    pipeline = stage.pipeline
    if isinstance(images, ReadConditions):
        images = images.of(indices, pipeline.image_format)  # type: ignore[assignment]
    has_classes = pipeline.unet.config.num_class_embeds is not None
    classes = [label for index in indices if (label := labels[index]) is not None]
    return pipeline.condition(
        indices, classes or None if has_classes else None, images, noise=stage.noise, seed=seed
    )
