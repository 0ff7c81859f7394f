"""The loss on held-out images, with noise that is the same every time."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ddpm_sa.data.dataset import Images
from training.distributed.sharing import share, together
from training.draws import validation_draw
from training.loop import Loss, micro_batch


class Validation:
    """Held-out images, each with a timestep and noise of its own, fixed by the seed.

    So a loss differs from the one before by the weights alone, and is that of any number of
    processes up to rounding.

    Args:
        accelerator: Shares the work.
        images: The held-out ones.
        loss_of: Loss of each image of a micro-batch.
        seed: Of noise and timesteps.
        count: How many losses; where the images are fewer, they come again with other noise.
        num_timesteps: T; the timesteps are spread evenly.
        batch_size: Images evaluated at once.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        images: Images,
        loss_of: Loss,
        seed: int,
        count: int,
        num_timesteps: int,
        batch_size: int,
    ):
        self.accelerator, self.images, self.loss_of = accelerator, images, loss_of
        self.draw = validation_draw(seed, images.length, count, num_timesteps)
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> np.ndarray:
        """The loss of each, (count,), float64, on every process; `draw.t` has their timesteps."""
        here, count = self.accelerator, len(self.draw.t)
        losses = torch.zeros(count, device=here.device)
        mine = share(count, here)
        network.eval()
        for start in range(0, len(mine), self.batch_size):
            rows = mine[start : start + self.batch_size]
            batch = micro_batch(self.images, self.draw[rows]).to(here.device)
            with here.autocast():
                losses[rows] = self.loss_of(network, batch).float()
        return together(losses, here).double().numpy()
