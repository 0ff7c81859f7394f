"""A closer look at a model: the likelihood of held-out images, and its loss by timestep."""

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
from ddpm_sa.metrics.gaussian_baseline import least_loss
from ddpm_sa.metrics.moments import Moments
from ddpm_sa.pipeline import evaluating
from ddpm_sa.randomness import standard_normal, stream
from sampling.evaluation.image_sets import dealt
from sampling.evaluation.memorization import LookedUp

LIKELIHOOD_NOISE, LOSS_NOISE = "evaluation: likelihood", "evaluation: loss"
MOST_VALUES = 4096  # of an image whose covariance is taken apart: minutes and gigabytes above
TABLE_ROWS = 10  # of the paper's table 4


@dataclass
class Looks:
    """What was found beyond the distances, by the name of the set or model; empty if not asked."""

    nearest: dict[str, LookedUp] = field(default_factory=dict)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    likelihood: dict[str, dict[str, Any]] = field(default_factory=dict)


@torch.no_grad()
def likelihood(
    name: str,
    pipeline: Pipeline,
    images: Images,
    count: int,
    seed: int,
    batch_size: int,
    here: PartialState,
) -> dict[str, Any]:
    """Bits a dimension of the first images of a set, every term, as evaluation.json keeps them.

    Raises:
        ValueError: If their values are no whole numbers, or the model has no such bound.
    """
    kind = images.format
    if kind.bit_depth == 32:
        raise ValueError("bits a dimension are of whole numbers; these images are float32")
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    batches = dealt(min(count, images.length), batch_size, here)
    images = images.pad_to(*pipeline.padded_size)
    parts: list[tuple[int, Bound]] = []
    total = len(batches) * len(schedule)
    pipeline.set_progress_bar_config(
        desc=f"likelihood {name}", unit="step", disable=not here.is_main_process
    )
    with evaluating(pipeline.unet), pipeline.progress_bar(total=total) as bar:  # type: ignore[call-arg]
        for batch in batches:
            x_0, condition = _tensors(images, np.arange(batch.start, batch.stop), pipeline)

            def noise_at(t: int, batch: range = batch, x_0: Tensor = x_0) -> Tensor:
                bar.update()
                noise = standard_normal(x_0.shape[1:], seed, LIKELIHOOD_NOISE, batch, t)
                return noise.to(x_0.device)

            found = variational_bound(
                _network(pipeline),
                schedule,
                pipeline.prediction,
                pipeline.scheduler.config.variance_type,
                x_0,
                noise_at,
                condition=condition,
                levels=round(kind.value_range[1] - kind.value_range[0]) + 1,
            )
            parts.append((batch.start, found))
    whole = [part for _, part in sorted(gather_object(parts), key=lambda pair: pair[0])]
    return _in_numbers(
        Bound(
            torch.cat([part.terms for part in whole]).double(),
            torch.cat([part.mse for part in whole]).double(),
            torch.cat([part.prior for part in whole]).double(),
        )
    )


def _in_numbers(bound: Bound) -> dict[str, Any]:
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
def losses(
    pipeline: Pipeline,
    sets: dict[str, Images],
    count: int,
    seed: int,
    batch_size: int,
    here: PartialState,
) -> dict[str, Any]:
    """Mean squared errors of F by parts of the timesteps, and the least that a Gaussian leaves.

    Args:
        pipeline: The model.
        sets: Images by what they are called; the first give the covariance.
        count: Losses of each set, at timesteps spread evenly; images come again if they are fewer.
        seed: Of noise and timesteps, which are the same for every model.
        batch_size: Images at once.
        here: Shares the work.
    """
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    T = len(schedule)
    padded = {name: images.pad_to(*pipeline.padded_size) for name, images in sets.items()}
    found: dict[str, Any] = {"timesteps": Buckets(T).names}
    for name, images in padded.items():
        order = stream(seed, LOSS_NOISE, images.length).permutation(count)
        parts = []
        with evaluating(pipeline.unet):
            for batch in dealt(count, batch_size, here):
                positions = np.arange(batch.start, batch.stop)
                t = order[positions] * T // count
                x_0, condition = _tensors(images, positions % images.length, pipeline)
                eps = standard_normal(x_0.shape[1:], seed, LOSS_NOISE, positions.tolist())
                loss = denoising_loss(
                    _network(pipeline),
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
        found[name] = buckets.means()
    first = next(iter(padded.values()))
    found["gaussian"] = _gaussian(schedule, pipeline, first, batch_size, here)
    return found


def _gaussian(
    schedule: NoiseSchedule,
    pipeline: Pipeline,
    images: Images,
    batch_size: int,
    here: PartialState,
) -> list[float | None] | None:
    """`least_loss` by parts of the timesteps; None where the images are too large."""
    height, width = pipeline.padded_size
    if images.format.channels * height * width > MOST_VALUES:
        return None
    whole: Moments | None = None
    for batch in dealt(images.length, batch_size, here):
        x_0, _ = _tensors(images, np.arange(batch.start, batch.stop), None)
        part = Moments.of(x_0.flatten(1))
        whole = part if whole is None else whole + part
    parts = [part for part in gather_object([whole]) if part is not None]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    assert whole is not None
    buckets = Buckets(len(schedule))
    least = least_loss(schedule, pipeline.prediction, whole)
    buckets.add(np.arange(len(schedule)), least.numpy())
    return buckets.means()


def _tensors(
    images: Images, indices: np.ndarray, pipeline: Pipeline | None
) -> tuple[Tensor, Condition]:
    """Images as the network sees them, and what it is told of them."""
    x_0 = images.tensors(indices, np.zeros(len(indices), dtype=bool))
    if pipeline is None:
        return x_0, NO_CONDITION
    conditional = pipeline.unet.config.num_class_embeds is not None
    condition = images.condition(indices) if conditional else NO_CONDITION
    return x_0.to(pipeline.device), condition.to(pipeline.device)


def _network(pipeline: Pipeline) -> Callable[..., Any]:
    """The network, in the precision that its weights have."""
    unet = pipeline.unet
    return lambda x_t, t, **condition: unet(x_t.to(unet.dtype), t, **condition)
