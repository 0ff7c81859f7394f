"""Diagnostics of a model: likelihood of held-out images, and loss by timestep."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from ddpm_sa import NoiseSchedule, Pipeline
from ddpm_sa.condition import NO_CONDITION, Condition
from ddpm_sa.data.dataset import Images
from ddpm_sa.diffusion.likelihood import Bound, variational_bound
from ddpm_sa.diffusion.loss import denoising_loss
from ddpm_sa.diffusion.loss_by_timestep import Buckets
from ddpm_sa.errors import UserError
from ddpm_sa.metrics.gaussian_baseline import least_loss
from ddpm_sa.metrics.moments import Moments
from ddpm_sa.progress import ProgressBar
from ddpm_sa.randomness import standard_normal, stream
from ddpm_sa.samplers.denoise import evaluating
from sampling.evaluation.image_sets import process_batches
from sampling.evaluation.memorization import NearestImages

LIKELIHOOD_NOISE, LOSS_NOISE = "evaluation: likelihood", "evaluation: loss"
MAX_VALUES = 4096  # of an image; the covariance of larger ones takes minutes and gigabytes
TABLE_ROWS = 10  # as in table 4 of Ho et al. 2020


@dataclass
class Diagnostics:
    """Results beyond the scores, by the name of the image set or model; empty if not requested."""

    nearest: dict[str, NearestImages] = field(default_factory=dict)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    likelihood: dict[str, dict[str, Any]] = field(default_factory=dict)


@torch.no_grad()
def evaluate_likelihood(
    name: str,
    pipeline: Pipeline,
    images: Images,
    count: int,
    seed: int,
    batch_size: int,
    state: PartialState,
) -> dict[str, Any]:
    """Bits per dimension of the first images of a set, with every term, for evaluation.json.

    Raises:
        ValueError: If the images are floats, or the model has no variational bound.
    """
    kind = images.format
    if kind.bit_depth == 32:
        raise UserError("bits per dimension need integer pixel values; these images are float32")
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    batches = process_batches(min(count, images.length), batch_size, state)
    images = images.pad_to(*pipeline.padded_size)
    parts: list[tuple[int, Bound]] = []
    total = len(batches) * len(schedule)
    progress = ProgressBar(
        f"likelihood {name}", "evaluation", total=total, shown=state.is_main_process
    )
    with evaluating(pipeline.unet), progress:
        for batch in batches:
            x_0, condition = _load_batch(images, np.arange(batch.start, batch.stop), pipeline)

            def noise_at(t: int, batch: range = batch, x_0: Tensor = x_0) -> Tensor:
                progress.update()
                noise = standard_normal(x_0.shape[1:], seed, LIKELIHOOD_NOISE, batch, t)
                return noise.to(x_0.device)

            bound = variational_bound(
                _make_network(pipeline),
                schedule,
                pipeline.prediction,
                pipeline.scheduler.config.variance_type,
                x_0,
                noise_at,
                condition=condition,
                levels=round(kind.value_range[1] - kind.value_range[0]) + 1,
            )
            parts.append((batch.start, bound))
    bounds = [part for _, part in sorted(gather_object(parts), key=lambda pair: pair[0])]
    return _summarise_bound(
        Bound(
            torch.cat([part.terms for part in bounds]).double(),
            torch.cat([part.mse for part in bounds]).double(),
            torch.cat([part.prior for part in bounds]).double(),
        )
    )


def _summarise_bound(bound: Bound) -> dict[str, Any]:
    total, T = bound.total, bound.terms.shape[1]
    rows = min(TABLE_ROWS, T)
    return {
        "images": len(total),
        "bits_per_dimension": float(total.mean()),
        "standard_error": float(total.std() / len(total) ** 0.5) if len(total) > 1 else None,
        "prior": float(bound.prior.mean()),
        "decoder": float(bound.terms[:, 0].mean()),
        "rate": float(bound.rate[0]),
        "distortion": float(bound.distortion[0]),
        "table": [
            {
                "reverse_steps": T - t,
                "rate": float(bound.rate[t]),
                "distortion": float(bound.distortion[t]),
            }
            for t in (T * i // rows for i in range(rows))
        ],
        "terms": bound.terms.mean(0).tolist(),
        "rate_at": bound.rate.tolist(),
        "distortion_at": bound.distortion.tolist(),
    }


@torch.no_grad()
def measure_losses(
    pipeline: Pipeline,
    sets: dict[str, Images],
    count: int,
    seed: int,
    batch_size: int,
    state: PartialState,
) -> dict[str, Any]:
    """Mean squared error of F by timestep range, and the least possible for Gaussian data.

    Args:
        pipeline: The model.
        sets: Images by name; the first set gives the covariance of the Gaussian.
        count: Number of losses of each set, at evenly spread timesteps; images repeat if needed.
        seed: Seed of noise and timesteps, which are the same for every model.
        batch_size: Images at once.
        state: This process, one of those that share the work.
    """
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    T = len(schedule)
    padded = {name: images.pad_to(*pipeline.padded_size) for name, images in sets.items()}
    losses: dict[str, Any] = {"timesteps": Buckets(T).names}
    for name, images in padded.items():
        order = stream(seed, LOSS_NOISE, images.length).permutation(count)
        parts = []
        with evaluating(pipeline.unet):
            for batch in process_batches(count, batch_size, state):
                positions = np.arange(batch.start, batch.stop)
                t = order[positions] * T // count
                x_0, condition = _load_batch(images, positions % images.length, pipeline)
                eps = standard_normal(x_0.shape[1:], seed, LOSS_NOISE, positions.tolist())
                loss = denoising_loss(
                    _make_network(pipeline),
                    schedule,
                    pipeline.prediction,
                    x_0,
                    eps.to(x_0.device),
                    torch.from_numpy(t).to(x_0.device),
                    condition=condition,
                )
                parts.append((t, loss.double().cpu().numpy()))
        buckets = Buckets(T)
        for t, values in gather_object(parts):
            buckets.add(t, values)
        losses[name] = buckets.means()
    first = next(iter(padded.values()))
    losses["gaussian"] = _gaussian_losses(schedule, pipeline, first, batch_size, state)
    return losses


def _gaussian_losses(
    schedule: NoiseSchedule,
    pipeline: Pipeline,
    images: Images,
    batch_size: int,
    state: PartialState,
) -> list[float | None] | None:
    """`least_loss` by timestep range; None if the images are too large."""
    height, width = pipeline.padded_size
    if images.format.channels * height * width > MAX_VALUES:
        return None
    moments: Moments | None = None
    for batch in process_batches(images.length, batch_size, state):
        x_0, _ = _load_batch(images, np.arange(batch.start, batch.stop), None)
        part = Moments.of(x_0.flatten(1))
        moments = part if moments is None else moments + part
    parts = [part for part in gather_object([moments]) if part is not None]
    moments = parts[0]
    for part in parts[1:]:
        moments = moments + part
    assert moments is not None
    buckets = Buckets(len(schedule))
    least = least_loss(schedule, pipeline.prediction, moments)
    buckets.add(np.arange(len(schedule)), least.numpy())
    return buckets.means()


def _load_batch(
    images: Images, indices: np.ndarray, pipeline: Pipeline | None
) -> tuple[Tensor, Condition]:
    """Load images and their conditioning."""
    x_0 = images.tensors(indices, np.zeros(len(indices), dtype=bool))
    if pipeline is None:
        return x_0, NO_CONDITION
    conditional = pipeline.unet.config.num_class_embeds is not None
    condition = images.condition(indices) if conditional else NO_CONDITION
    return x_0.to(pipeline.device), condition.to(pipeline.device)


def _make_network(pipeline: Pipeline) -> Callable[..., Any]:
    """The network as a function that casts x_t to the precision of the weights."""
    unet = pipeline.unet
    return lambda x_t, t, **condition: unet(x_t.to(unet.dtype), t, **condition)
