"""Validation loss on held-out images, with fixed noise."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ddpm_sa.data.dataset import Images
from training.distributed.sharing import process_indices, sum_over_processes
from training.draws import validation_draw
from training.loop import Loss, micro_batch


class Validation:
    """Losses on held-out images, whose timesteps and noise are fixed by the seed.

    So changes of the loss come from the weights only, and it does not depend on the number of
    processes, up to rounding.

    Args:
        accelerator: The accelerator of the run.
        images: The held-out images.
        loss_fn: Computes the loss of each image of a micro-batch.
        seed: Seed of noise and timesteps.
        count: Number of losses; images repeat, with other noise, if there are fewer.
        num_timesteps: T; the timesteps are spread evenly over 0 ... T - 1.
        batch_size: Images evaluated at once.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        images: Images,
        loss_fn: Loss,
        seed: int,
        count: int,
        num_timesteps: int,
        batch_size: int,
    ):
        self.accelerator, self.images, self.loss_fn = accelerator, images, loss_fn
        self.draw = validation_draw(seed, images.length, count, num_timesteps)
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> np.ndarray:
        """All losses, (count,), float64, on every process; `draw.t` holds their timesteps."""
        accelerator, count = self.accelerator, len(self.draw.t)
        losses = torch.zeros(count, device=accelerator.device)
        mine = process_indices(count, accelerator)
        network.eval()
        for start in range(0, len(mine), self.batch_size):
            rows = mine[start : start + self.batch_size]
            batch = micro_batch(self.images, self.draw[rows]).to(accelerator.device)
            with accelerator.autocast():
                losses[rows] = self.loss_fn(network, batch).float()
        return sum_over_processes(losses, accelerator).double().numpy()
