"""An exact conditional network, through the pipeline, has the posterior of Gaussian data."""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ddpm_sa import NoiseSchedule, Pipeline
from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.kinds import Noise
from ddpm_sa.image_format import ImageFormat

SIDE, STD, SAMPLES = 4, 0.2, 16000


class ExactNetwork(nn.Module):
    """E[eps | x_t, c] for x_0 ~ N(0, prior) and c = x_0 + STD n."""

    def __init__(self, prior: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        gain = prior @ torch.linalg.inv(prior + STD**2 * torch.eye(len(prior)))
        self.gain, self.posterior = gain, prior - gain @ prior
        self.schedule = schedule
        self.config = SimpleNamespace(
            in_channels=2,
            out_channels=1,
            sample_size=SIDE,
            num_class_embeds=None,
            class_embed_type=None,
            block_out_channels=(1,),
            get=lambda name, default=None: {"out_channels": 1}.get(name, default),
        )

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def forward(self, sample: Tensor, t: Tensor) -> SimpleNamespace:
        x_t, condition = (part.double().flatten(1) for part in sample.split(1, dim=1))
        a, s = self.schedule.a[round(t[0].item())], self.schedule.s[round(t[0].item())]
        mean = condition @ self.gain.T
        identity = torch.eye(len(self.gain), dtype=torch.float64)
        weight = a * self.posterior @ torch.linalg.inv(a**2 * self.posterior + s**2 * identity)
        x_0 = mean + (x_t - a * mean) @ weight.T
        return SimpleNamespace(sample=((x_t - a * x_0) / s).reshape(len(sample), 1, SIDE, SIDE))


def test_samples_have_the_posteriors_mean_and_covariance():
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    prior = 0.04 * torch.exp(-torch.cdist(places, places) / 2)
    scheduler = DDPMScheduler(clip_sample=False)
    network = ExactNetwork(prior, NoiseSchedule.from_scheduler(scheduler))
    image_format = ImageFormat(
        channels=1,
        size=(SIDE, SIDE),
        bit_depth=32,
        value_range=(-1.0, 1.0),
        condition=ConditionFormat(kinds=(Noise(std=STD),)),
    )
    pipeline = Pipeline(network, scheduler, image_format)
    pipeline.set_progress_bar_config(disable=True)
    condition = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 0.25
    images = pipeline(
        num_images=SAMPLES,
        steps=200,
        scheduler="heun",
        batch_size=SAMPLES,
        condition=condition,
        output_type="pt",
    ).images
    samples = (images * 2 - 1).flatten(1).double()
    mean = condition.double().flatten() @ network.gain.T
    error = (samples.mean(0) - mean).norm() / mean.norm()
    expected = np.sqrt(network.posterior.trace().item() / SAMPLES) / mean.norm()
    assert error < 2 * expected
    covariance = torch.cov(samples.T)
    # The sampling error of a covariance of these 16 dimensions from 16,000 samples is 3 percent.
    assert (covariance - network.posterior).norm() / network.posterior.norm() < 0.05
    ratio = covariance.trace() / network.posterior.trace()
    assert abs(ratio - 1) < 0.02, ratio
    # It is not the prior that is sampled.
    assert network.posterior.trace() < 0.5 * prior.trace()
