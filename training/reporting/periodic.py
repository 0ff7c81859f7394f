"""The averaged weights, looked at while they are trained: each process takes its share."""

import torch
from accelerate import Accelerator
from PIL import Image

from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import image_grid, visible
from ddpm_sa.pipeline import Pipeline
from ddpm_sa.samplers.method import Method
from training.config import TrainConfig
from training.distributed.fsdp import renew
from training.distributed.sharing import share, together
from training.draws import Layout
from training.ema import EMA
from training.loop import Loss
from training.reporting.log import RunLog
from training.reporting.validation import Validation


class Watch:
    """Sample grids, and losses on held-out images where there are any, of the averaged weights.

    Image i has its own noise, so that a grid shows the same images for any number of processes.

    Args:
        accelerator: Shares the work.
        config, layout: What is looked at, how often, how many at once.
        images: Those of the run, with those held out.
        pipeline, average: The averaged weights, in a network and by themselves.
        loss_of: Loss of each image of a micro-batch.
        log: Keeps what is seen.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        layout: Layout,
        images: Images,
        pipeline: Pipeline,
        average: EMA,
        loss_of: Loss,
        log: RunLog,
    ):
        self.accelerator, self.config, self.at_once = accelerator, config, layout.micro
        self.pipeline, self.average, self.log = pipeline, average, log
        pipeline.set_progress_bar_config(disable=True)
        self.validation = None
        if images.validation is not None and config.validate_every:
            timesteps, count = config.schedule.num_timesteps, config.num_validation
            self.validation = Validation(
                accelerator, images.validation, loss_of, config.seed, count, timesteps, self.at_once
            )
        self.grid: tuple[int, Image.Image] | None = None

    def __call__(self, step: int) -> None:
        """Look, if it is time to. The losses of the last step belong to its checkpoint."""
        config = self.config
        if self.validation is not None and (
            step % config.validate_every == 0 or step == config.steps
        ):
            renew(self.pipeline.unet, self.average.state_dict())
            losses = self.validation(self.pipeline.unet)
            self.log.validation(self.validation.draw.t, losses)
        if config.sample_every and step % config.sample_every == 0:
            self.grid = step, self.samples()
            self.log.samples(self.grid[1])

    def last(self) -> Image.Image:
        """The grid of the last step. That of a run stopped early is not one that it keeps."""
        step = self.log.step
        self.log.figure()
        if self.grid is None or self.grid[0] != step:
            self.grid = step, self.samples()
            if step == self.config.steps:
                self.log.samples(self.grid[1])
        return self.grid[1]

    def samples(self) -> Image.Image:
        """Draw a grid from the averaged weights."""
        renew(self.pipeline.unet, self.average.state_dict())
        number, here = self.config.num_samples, self.accelerator
        images = torch.zeros(number, *self.pipeline.image_format.shape, device=here.device)
        mine = share(number, here).tolist()
        if mine:
            for batch in self.pipeline.batches(
                mine,
                Method(steps=self.config.sample_steps),
                seed=self.config.seed,
                batch_size=self.at_once,
            ):
                images[batch.indices] = batch.images.to(here.device)
        return image_grid(visible(together(images, here)))
