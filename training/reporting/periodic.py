"""Periodic evaluation of the averaged weights during training, shared by the processes."""

import torch
from accelerate import Accelerator
from PIL import Image

from ddpm_sa.data.dataset import Images
from ddpm_sa.pipeline import Pipeline
from ddpm_sa.samplers.method import Method
from training.config import TrainConfig
from training.distributed.fsdp import load_weights
from training.distributed.sharing import process_indices, sum_over_processes
from training.draws import Layout
from training.ema import EMA
from training.loop import Loss
from training.reporting.log import RunLog
from training.reporting.sample_grid import SampleGrid
from training.reporting.validation import Validation


class PeriodicEvaluation:
    """Samples from the averaged weights, and validates them if there are held-out images.

    Image i has its own noise, so a grid shows the same images for any number of processes.

    Args:
        accelerator: The accelerator of the run.
        config, layout: Intervals, numbers of images, and batch size.
        images: The dataset, with held-out images if any.
        pipeline, average: A pipeline for the averaged weights, and the weights themselves.
        loss_fn: Computes the loss of each image of a micro-batch.
        log: Records the results.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        layout: Layout,
        images: Images,
        pipeline: Pipeline,
        average: EMA,
        loss_fn: Loss,
        log: RunLog,
    ):
        self.accelerator, self.config, self.at_once = accelerator, config, layout.micro
        self.pipeline, self.average, self.log = pipeline, average, log
        pipeline.set_progress_bar_config(disable=True)
        self.validation = None
        if images.validation is not None and config.validate_every:
            timesteps, count = config.schedule.num_timesteps, config.num_validation
            self.validation = Validation(
                accelerator, images.validation, loss_fn, config.seed, count, timesteps, self.at_once
            )
        self.sample_grid = SampleGrid(images, config.seed)
        self.grid: tuple[int, Image.Image] | None = None

    def __call__(self, step: int) -> None:
        """Evaluate if it is due after this step; the last step is always validated."""
        config = self.config
        if self.validation is not None and (
            step % config.validate_every == 0 or step == config.steps
        ):
            load_weights(self.pipeline.unet, self.average.state_dict())
            losses = self.validation(self.pipeline.unet)
            self.log.record_validation(self.validation.draw.t, losses)
        if config.sample_every and step % config.sample_every == 0:
            self.grid = step, self.draw_samples()
            self.log.save_samples(self.grid[1])

    def final_samples(self) -> Image.Image:
        """The sample grid of the last step; saved to samples/ unless the run was stopped early."""
        step = self.log.step
        self.log.save_figure()
        if self.grid is None or self.grid[0] != step:
            self.grid = step, self.draw_samples()
            if step == self.config.steps:
                self.log.save_samples(self.grid[1])
        return self.grid[1]

    def draw_samples(self) -> Image.Image:
        """Sample a grid of images from the averaged weights."""
        load_weights(self.pipeline.unet, self.average.state_dict())
        number, accelerator = self.config.num_samples, self.accelerator
        images = torch.zeros(number, *self.pipeline.image_format.shape, device=accelerator.device)
        mine = process_indices(number, accelerator).tolist()
        if mine:
            for batch in self.pipeline.batches(
                mine,
                Method(steps=self.config.sample_steps),
                seed=self.config.seed,
                batch_size=self.at_once,
                condition=self.sample_grid.condition(mine),
            ):
                images[batch.indices] = batch.images.to(accelerator.device)
        return self.sample_grid.draw(sum_over_processes(images, accelerator))
