"""Restoration of images from measurements: samples of p(x_0 | y)."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ddpm_sa.condition import Condition, concatenate
from ddpm_sa.editing.editor import Editor
from ddpm_sa.errors import UserError, require
from ddpm_sa.pipeline import INITIAL_NOISE, STEP_NOISE, Pipeline
from ddpm_sa.randomness import standard_normal
from ddpm_sa.restoration.base import Measurement, RestorationMethod
from ddpm_sa.restoration.guide import MeasurementGuide
from ddpm_sa.restoration.linear import LinearOperator, Padded, check_adjoint
from ddpm_sa.restoration.methods import RePaint
from ddpm_sa.restoration.operators import Mask
from ddpm_sa.restoration.steps import linear_steps
from ddpm_sa.samplers.denoise import evaluating, last_state
from ddpm_sa.samplers.method import Method, dry_run

MEASUREMENT_NOISE = "restoration: measurement"
MOST_SAMPLES = 2**32
"""The noise of sample j of image i has the index i * MOST_SAMPLES + j."""


class Batch(NamedTuple):
    """Samples that are drawn together.

    Attributes:
        measured: The measurement of each.
        condition: The condition of each.
        noise_of: The index of each one's noise.
    """

    measured: Measurement
    condition: Condition
    noise_of: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restorer:
    """How images are restored.

    Attributes:
        pipeline: The model.
        method: How to sample. With guidance, the samples are those of the guided network.
        seed: Of all noise. Sample j of image i is the same whatever the batch, the other images
            or the number of samples.
    """

    pipeline: Pipeline
    method: Method
    seed: int = 0

    def degrade(
        self,
        images: Tensor,
        operator: LinearOperator,
        sigma_y: float = 0.0,
        *,
        indices: Sequence[int] | None = None,
    ) -> Tensor:
        """Measure images, y = A x + sigma_y n, with each image's own noise.

        Args:
            images: (N, C, H, W), in [-1, 1].
            operator: A, on the CPU.
            sigma_y: Standard deviation of the noise.
            indices: The images' indices, 0, 1, ... if None.

        Returns:
            y, (N, ...), float32, on the CPU.

        Raises:
            ValueError: If the images do not fit the operator, or sigma_y is negative.
        """
        check_sigma(sigma_y)
        check_shape("images", images, operator.image_shape)
        y = operator(images)
        who = range(len(images)) if indices is None else indices
        return y + sigma_y * standard_normal(y.shape[1:], self.seed, MEASUREMENT_NOISE, who)

    def restore(
        self,
        y: Tensor,
        operator: LinearOperator,
        restoration: RestorationMethod,
        sigma_y: float = 0.0,
        num_samples: int = 8,
        *,
        batch_size: int = 8,
        condition: Condition | None = None,
        indices: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw samples of p(x_0 | y) for each measurement.

        Their mean and standard deviation, `samples.mean(1)` and `samples.std(1)`, estimate the
        image, and how unsure the model is of it.

        Args:
            y: Measurements of N images, (N, ...).
            operator: A, of images in the model's size, on the CPU. Its adjoint is checked.
            restoration: The method.
            sigma_y: Standard deviation of the noise in y, in units where images are in [-1, 1].
            num_samples: S, of each image.
            batch_size: Samples at once, for speed alone.
            condition: As `Pipeline.condition` makes it for the N images.
            indices: The images' indices, 0, 1, ... if None.

        Returns:
            (N, S, C, H, W), float32, on the CPU. They are not clipped to [-1, 1], which would bias
            their mean and deviation.

        Raises:
            ValueError: If the measurements do not fit the operator, or the operator the model; if
                the operator's adjoint is none; if the method cannot be used with them or with the
                scheduler; or if a number is out of range.
        """
        require(1 <= num_samples <= MOST_SAMPLES, f"num_samples={num_samples} must be at least 1")
        require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
        measured = Measurement(operator, y.float(), sigma_y)
        self.check(measured, restoration)
        who = range(len(y)) if indices is None else indices
        condition = condition or self.pipeline.condition(who)
        rows = [(row, j) for row in range(len(y)) for j in range(num_samples)]
        batches = [
            Batch(
                dataclasses.replace(measured, y=measured.y[[row for row, _ in batch]]),
                concatenate([condition[row : row + 1] for row, _ in batch]),
                [who[row] * MOST_SAMPLES + j for row, j in batch],
            )
            for batch in (rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
        ]
        if isinstance(restoration, RePaint):
            samples = [self._repaint(batch, restoration.repeats) for batch in batches]
        else:
            samples = self._guided(batches, restoration)
        return rearrange(torch.cat(samples), "(n s) c h w -> n s c h w", n=len(y))

    def check(self, measured: Measurement, restoration: RestorationMethod) -> None:
        """
        Raises:
            ValueError: As `restore` does for its operator, measurements and method.
        """
        check_sigma(measured.sigma_y)
        operator, shape = measured.operator, self.pipeline.image_format.shape
        require(
            operator.image_shape == shape,
            f"a measurement of images of shape {operator.image_shape} does not fit the model, "
            f"whose images are of {shape}",
        )
        check_shape("measurements", measured.y, operator.measurement_shape())
        require(bool(measured.y.isfinite().all()), "measurements must be finite numbers")
        check_adjoint(operator)
        restoration.check(measured, self.method, self.pipeline.scheduler)
        require(
            not (restoration.uses_gradient and self.method.cache_interval > 1),
            f"method={restoration.name} differentiates the network, which reused features do not "
            f"allow: cache_interval={self.method.cache_interval} must be 1",
        )

    def _repaint(self, batch: Batch, repeats: int) -> Tensor:
        operator = batch.measured.operator
        assert isinstance(operator, Mask)
        editor = Editor(pipeline=self.pipeline, method=self.method, seed=self.seed)
        known = operator.adjoint(batch.measured.y)
        return editor.inpaint(
            known, ~operator.known, repeats, condition=batch.condition, indices=batch.noise_of
        )

    def _guided(self, batches: Sequence[Batch], restoration: RestorationMethod) -> list[Tensor]:
        pipeline, base = self.pipeline, self.pipeline.scheduler
        known = restoration.needs_steps(batches[0].measured)
        steps = linear_steps(self.method, base) if known else {}
        # A copy: the user's own stays on the CPU.
        padded = Padded(copy.deepcopy(batches[0].measured.operator), pipeline.padded_size)
        operator = padded.to(pipeline.device)
        total = len(batches) * dry_run(self.method, base).steps
        samples = []
        with evaluating(pipeline.unet), pipeline.progress_bar(total=total) as bar:  # type: ignore[call-arg]
            for batch in batches:
                y, sigma_y = batch.measured.y.to(pipeline.device), batch.measured.sigma_y
                measured = Measurement(operator, y, sigma_y)
                inner = self.method.guide
                guide = MeasurementGuide(restoration, measured, pipeline.prediction, inner, steps)
                samples.append(self._sampled(guide, batch, bar.update))
        return samples

    def _sampled(self, guide: MeasurementGuide, batch: Batch, tick: Callable[[], object]) -> Tensor:
        """A sample for each measurement of a batch."""
        noise = partial(self.pipeline.noise, seed=self.seed, indices=batch.noise_of)
        walk = self.pipeline.walk(
            noise(INITIAL_NOISE),
            lambda number: guide.noise(noise(STEP_NOISE, step=number)),
            dataclasses.replace(self.method, guide=guide),
            batch.condition,
        )
        x = last_state(
            walk,
            tick,
            lambda step: guide.x_next(step, lambda: noise(STEP_NOISE, step=step.number)),
        )
        if not x.isfinite().all():
            raise UserError(
                f"method={guide.restoration.name} with {self.method} gave values that are not "
                "finite; use more steps, or another method"
            )
        height, width = self.pipeline.image_format.size
        return x[..., :height, :width].cpu()


def check_sigma(sigma_y: float) -> None:
    """
    Raises:
        ValueError: If it is no standard deviation.
    """
    require(0 <= sigma_y < math.inf, f"sigma={sigma_y} must be 0 or greater, a standard deviation")


def check_shape(what: str, batch: Tensor, shape: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: If this is no batch of tensors of the shape.
    """
    require(
        batch.shape[1:] == shape,
        f"{what} of shape {tuple(batch.shape[1:])} do not fit: the operator's are {shape}",
    )
