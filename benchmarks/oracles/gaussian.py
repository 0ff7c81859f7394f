"""Gaussian images: the exact network for them, and the exact posterior given a measurement."""

import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor

from ddpm_sa import NoiseSchedule, Pipeline
from ddpm_sa.condition import NO_CONDITION
from ddpm_sa.restoration import LinearOperator
from ddpm_sa.restoration.base import Measurement, RestorationMethod
from ddpm_sa.restoration.guide import MeasurementGuide
from ddpm_sa.restoration.steps import linear_steps
from ddpm_sa.samplers.denoise import last_state
from ddpm_sa.samplers.method import Method


class GaussianNetwork(ModelMixin, ConfigMixin):
    """eps of the best network for data N(mean, covariance), in closed form.

    E[eps | x_t] = s (a² covariance + s²)^-1 (x_t - a mean). It computes in float64 and has no
    weights; `gaussian_pipeline` sets its mean and covariance.
    """

    mean: Tensor
    spectrum: Tensor
    vectors: Tensor
    log_sigma: Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, int],
        in_channels: int,
        block_out_channels: tuple[int, ...] = (1,),
        num_class_embeds: int | None = None,
        class_embed_type: str | None = None,
    ) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        a, s = self._scales(t[0].double())
        flat = (x_t.double().flatten(1) - a * self.mean) @ self.vectors
        eps = s * (flat / (a**2 * self.spectrum + s**2)) @ self.vectors.mT
        return SimpleNamespace(sample=eps.reshape(x_t.shape).to(x_t.dtype))

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and s; between two timesteps log(s / a) is linear."""
        below = t.floor().long()
        above = (below + 1).clamp(max=len(self.log_sigma) - 1)
        sigma = self.log_sigma[below].lerp(self.log_sigma[above], t - below).exp()
        return 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()


def gaussian_pipeline(mean: Tensor, covariance: Tensor) -> Pipeline:
    """A pipeline of images N(mean, covariance), which clips nothing.

    Args:
        mean: (C, H, W).
        covariance: (C H W, C H W).
    """
    channels, height, width = mean.shape
    network = GaussianNetwork((height, width), channels)
    scheduler = DDPMScheduler(clip_sample=False)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    network.mean = mean.flatten().double()
    network.spectrum, network.vectors = torch.linalg.eigh(covariance.double())
    network.log_sigma = (schedule.s / schedule.a).log()
    pipeline = Pipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Gaussian(NamedTuple):
    """A distribution of images: mean (D,) and covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor

    def draw(self, count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
        """Images, (count, *shape), float32."""
        noise = torch.randn(
            count, len(self.mean), generator=torch.Generator().manual_seed(seed), dtype=torch.double
        )
        # A posterior may know some directions exactly.
        values, vectors = torch.linalg.eigh(self.covariance)
        root = vectors * values.clamp(min=0).sqrt()
        return (self.mean + noise @ root.mT).reshape(count, *shape).float()

    def given(self, operator: LinearOperator, y: Tensor, sigma_y: float) -> "Gaussian":
        """The posterior p(x_0 | y), y = A x_0 + sigma_y n of one image, y (...)."""
        A = matrix_of(operator)
        middle = A @ self.covariance @ A.mT + sigma_y**2 * torch.eye(len(A), dtype=torch.double)
        gain = self.covariance @ A.mT @ torch.linalg.pinv(middle, hermitian=True, rtol=1e-9)
        mean = self.mean + gain @ (y.double().flatten() - A @ self.mean)
        return Gaussian(mean, self.covariance - gain @ A @ self.covariance)


def matrix_of(operator: LinearOperator) -> Tensor:
    """A as a matrix, (M, D), float64."""
    size = torch.tensor(operator.image_shape).prod()
    columns = operator(torch.eye(int(size)).reshape(-1, *operator.image_shape))
    return rearrange(columns.flatten(1), "d m -> m d").double()


def smooth_covariance(channels: int, size: int, variance: float = 0.09) -> Tensor:
    """Pixels, and channels, that are alike where they are near: (C H W, C H W), float64."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    place = torch.stack([y, x], -1).reshape(-1, 2).double()
    pixels = torch.exp(-(torch.cdist(place, place) ** 2) / 8)
    colours = 0.7 + 0.3 * torch.eye(channels, dtype=torch.double)
    smooth = torch.kron(colours, pixels)
    return variance * smooth + 1e-3 * torch.eye(len(smooth), dtype=torch.double)


def samples_of_ddim(
    pipeline: Pipeline,
    restoration: RestorationMethod,
    measured: Measurement,
    steps: int,
) -> Gaussian:
    """The distribution of the samples that DDIM restores for one measurement, exactly.

    DDIM draws no noise, and with a Gaussian network and a linear restoration method it is an affine
    map of x_T: the samples are N(offset, M M^T), found from x_T = 0 and the unit vectors.
    """
    options = {"timestep_spacing": "trailing"}
    method = Method(steps=steps, scheduler="ddim", scheduler_options=options)
    shape = measured.operator.image_shape
    size = int(torch.tensor(shape).prod())
    x_T = torch.cat([torch.zeros(1, size), torch.eye(size)]).reshape(-1, *shape)
    y = measured.y.expand(len(x_T), *measured.y.shape[1:])
    table = linear_steps(method, pipeline.scheduler)
    batch = Measurement(measured.operator, y, measured.sigma_y)
    guide = MeasurementGuide(restoration, batch, pipeline.prediction, None, table)
    guided = dataclasses.replace(method, guide=guide)
    walk = pipeline.walk(x_T, lambda _: x_T, guided, NO_CONDITION)
    last = last_state(walk, lambda: None, lambda step: guide.x_next(step, lambda: x_T))
    x = last.double().flatten(1)
    return Gaussian(x[0], (x[1:] - x[0]).mT @ (x[1:] - x[0]))


def moments_of(samples: Tensor) -> Gaussian:
    """Mean and covariance of samples, (S, C, H, W)."""
    flat: Any = samples.double().flatten(1)
    return Gaussian(flat.mean(0), torch.cov(flat.mT))
