"""The common base of the edits: noise levels, checked images, and denoising from a level."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_sa.condition import Condition
from ddpm_sa.errors import UserError
from ddpm_sa.pipeline import STEP_NOISE, Pipeline
from ddpm_sa.samplers.denoise import evaluating, last_state, scales
from ddpm_sa.samplers.method import Method, dry_run


class Start(NamedTuple):
    """Where a scheduler begins: the number of its timestep, that timestep, and its scales."""

    number: int
    t: Tensor
    a: Tensor
    s: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edits:
    """How images are edited.

    Attributes:
        pipeline: The model.
        method: How to denoise. "pndm" cannot begin within; see each edit for more.
        seed: Of all noise.
    """

    pipeline: Pipeline
    method: Method
    seed: int = 0

    @property
    def timesteps(self) -> int:
        """Of the training."""
        return self.pipeline.scheduler.config.num_train_timesteps

    @property
    def num_evaluations(self) -> int:
        """Of the network by the method, from noise to images."""
        return dry_run(self.method, self.pipeline.scheduler).steps

    def progress(self, total: int) -> Any:
        """The pipeline's progress bar, which `set_progress_bar_config` sets up."""
        return self.pipeline.progress_bar(total=total)  # type: ignore[call-arg]

    def noise(self, purpose: str, indices: Sequence[int], step: int = 0) -> Tensor:
        return self.pipeline.noise(purpose, seed=self.seed, indices=indices, step=step)

    def evaluated(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """F of a batch, without guidance."""
        unet = self.pipeline.unet
        times = t.to(x_t.device).expand(len(x_t))
        output = condition.evaluate(unet, x_t.to(unet.dtype), times).sample.float()
        return output[:, : x_t.shape[1]]

    def start(self, level: float) -> Start:
        """The noisiest timestep of the method at or below a level."""
        if not 0 <= level < self.timesteps:
            raise UserError(f"level={level:g} must be a timestep, 0 ... {self.timesteps - 1}")
        if self.method.scheduler == "pndm":
            raise UserError("scheduler='pndm' cannot begin within; use another, such as ddim")
        scheduler = self.method.make_scheduler(self.pipeline.scheduler)
        # Those that evaluate twice a step begin at the first of the two.
        firsts = range(0, len(scheduler.timesteps), scheduler.order)
        number = next((n for n in firsts if scheduler.timesteps[n] <= level), None)
        if number is None:
            raise UserError(
                f"level={level:g} lies below the timesteps of {self.method}, whose lowest is "
                f"{scheduler.timesteps[firsts[-1]]:g}; use that or a higher one, or more steps"
            )
        t = scheduler.timesteps[number]
        return Start(number, t, *scales(scheduler, number, t))

    def checked(self, images: Tensor) -> Tensor:
        """Images of the size that the network sees."""
        shape = self.pipeline.image_format.shape
        if images.ndim != 4 or images.shape[1:] != shape:
            raise UserError(
                f"images of shape {tuple(images.shape)} do not fit the model, whose images have "
                f"{shape[0]} channels and {shape[1]} x {shape[2]} pixels"
            )
        height, width = self.pipeline.padded_size
        # As training continues images to the size that a network can halve.
        more = (0, width - shape[2], 0, height - shape[1])
        x_0 = F.pad(images.float(), more, mode="reflect") if any(more) else images.float()
        return x_0.to(self.pipeline.device)

    def checked_mask(self, unknown: Tensor) -> Tensor:
        """A mask of the size that the network sees; what lies beyond the image is unknown."""
        height, width = self.pipeline.image_format.size
        if unknown.shape != (height, width):
            raise UserError(
                f"a mask of {tuple(unknown.shape)} is of another size than the images, "
                f"{height} x {width}"
            )
        if unknown.all() or not unknown.any():
            raise UserError("the mask must leave some pixels, and take some")
        free = torch.ones(self.pipeline.padded_size, dtype=torch.bool)
        free[:height, :width] = unknown.bool()
        return free.to(self.pipeline.device)

    def condition_of(self, count: int, condition: Condition | None) -> Condition:
        """What was given, or what the pipeline tells the first images; on the network's device."""
        condition = condition or self.pipeline.condition(range(count))
        return condition.to(self.pipeline.device)

    def denoised_from(
        self,
        x_t: Tensor,
        start: Start,
        condition: Condition | None,
        noise_of: Sequence[int] | None = None,
    ) -> Tensor:
        """The images that x_t at a start leads to."""
        who = range(len(x_t)) if noise_of is None else noise_of
        noise = partial(self.noise, STEP_NOISE, who)
        return self.denoised(x_t, noise, condition, start.number)

    def denoised(
        self,
        x: Tensor,
        noise: Callable[[int], Tensor],
        condition: Condition | None,
        start: int = 0,
    ) -> Tensor:
        """The images that x_t, or noise, leads to."""
        condition = self.condition_of(len(x), condition)
        walk = self.pipeline.walk(x, noise, self.method, condition, start)
        with evaluating(self.pipeline.unet), self.progress(self.num_evaluations - start) as bar:
            x = last_state(walk, bar.update, lambda _: None)
        return self.cropped(x)

    def cropped(self, x: Tensor) -> Tensor:
        """Images of their own size, on the CPU."""
        height, width = self.pipeline.image_format.size
        if not x.isfinite().all():
            raise UserError(f"{self.method} gave values that are not finite; use more steps")
        return x[..., :height, :width].clamp(-1, 1).cpu()
