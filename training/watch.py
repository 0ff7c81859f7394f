"""The averaged weights, looked at while they are trained: each process takes its share."""

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ddpm_sa.images import image_grid, visible
from ddpm_sa.pipeline import Pipeline
from ddpm_sa.sampler import Method
from training.config import TrainConfig
from training.log import RunLog


class Watch:
    """Sample grids of a run.

    Image i has its own noise, so that a grid shows the same images for any number of processes.

    Args:
        accelerator: Shares the work.
        config: What is looked at, and how often.
        pipeline: Holds the averaged weights.
        log: Keeps what is seen.
    """

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, pipeline: Pipeline, log: RunLog
    ):
        self.accelerator, self.config = accelerator, config
        self.pipeline, self.log = pipeline, log
        pipeline.set_progress_bar_config(disable=True)
        self.grid: tuple[int, Image.Image] | None = None

    def __call__(self, step: int) -> None:
        """Look, if it is time to."""
        if self.config.sample_every and step % self.config.sample_every == 0:
            self.grid = step, self.samples()
            self.log.samples(self.grid[1])

    def last(self) -> Image.Image:
        """The grid of the last step. That of a run stopped early is not one that it keeps."""
        step = self.log.step
        if self.grid is None or self.grid[0] != step:
            self.grid = step, self.samples()
            if step == self.config.steps:
                self.log.samples(self.grid[1])
        return self.grid[1]

    def samples(self) -> Image.Image:
        """Draw a grid from the averaged weights."""
        number, here = self.config.num_samples, self.accelerator
        classes = self.pipeline.image_format.labels
        labels = None if classes is None else [i % len(classes) for i in range(number)]
        images = torch.zeros(number, *self.pipeline.image_format.shape, device=here.device)
        mine = share(number, here)
        if mine:
            for batch in self.pipeline.batches(
                mine,
                Method(steps=self.config.sample_steps),
                seed=self.config.seed,
                batch_size=len(mine),
                class_labels=None if labels is None else [labels[i] for i in mine],
            ):
                images[batch.indices] = batch.images.to(here.device)
        return image_grid(visible(together(images, here)))


def share(number: int, accelerator: Accelerator) -> list[int]:
    """Which of `number` things this process takes; no two processes differ by more than one."""
    return list(range(accelerator.process_index, number, accelerator.num_processes))


def together(parts: Tensor, accelerator: Accelerator) -> Tensor:
    """What the processes have filled in, each a row that is 0 in all others: exactly their sum."""
    whole = accelerator.reduce(parts, "sum")
    assert isinstance(whole, Tensor)
    return whole.cpu()
