"""diffusers' examples/unconditional_image_generation/train_unconditional.py, transcribed.

Its wheel does not carry the script. Kept are UNet2DModel, DDPMScheduler, AdamW, the cosine
schedule and EMAModel with the script's defaults (batch 16, betas 0.95 and 0.999, weight decay 1e-6,
power 3/4); left out are its launcher, its files and its RGB. The warm-up of 500 updates is at most
a tenth of the run, in favour of short ones.
"""

from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ddpm_sa import Pipeline, preset

Weights = dict[str, Tensor]
Run = Generator[Callable[[], Weights]]
"""Trains, and yields after each update a function that copies the averaged weights."""


def theirs(images: Tensor, lr: float, steps: int, batch_size: int = 16) -> Run:
    """Train on these, (N, 1, 32, 32) in [-1, 1]."""
    torch.manual_seed(0)
    network = their_network()
    random = torch.Generator().manual_seed(0)  # its own: other trainings take turns with it
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    rates = get_scheduler(
        "cosine", optimizer, num_warmup_steps=min(500, steps // 10), num_training_steps=steps
    )
    loader = torch.utils.data.DataLoader(
        images,  # type: ignore[arg-type]
        batch_size,
        shuffle=True,
        generator=random,
    )
    names, done = [name for name, _ in network.named_parameters()], 0
    while done < steps:
        for clean in loader:
            noise = torch.randn(clean.shape, generator=random)
            t = torch.randint(0, 1000, (len(clean),), generator=random)
            output = network(scheduler.add_noise(clean, noise, t), t).sample  # type: ignore[arg-type]
            F.mse_loss(output, noise).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            ema.step(network.parameters())
            done += 1
            yield lambda: copied(dict(zip(names, ema.shadow_params, strict=True)))


def their_network() -> UNet2DModel:
    """A network of the same size as ours, with diffusers' initial weights."""
    return UNet2DModel(**preset("mnist").unet)


def their_pipeline(weights: Weights, **options: Any) -> Pipeline:
    """A function that samples with these weights; options are those of DDPMScheduler."""
    network = their_network()
    network.load_state_dict(weights)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", **options)
    return Pipeline(network, scheduler)


def copied(weights: Weights) -> Weights:
    return {name: weight.detach().clone() for name, weight in weights.items()}
