"""What users call: images of a model, in any batches, each the same whatever stands beside it."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from diffusers import ImagePipelineOutput
from einops import rearrange
from torch import Tensor

from ddpm_sa.guidance.by_name import check_together
from ddpm_sa.image_format import from_tensor, to_pil
from ddpm_sa.model import Model, evaluating
from ddpm_sa.samplers.denoise import Guide, Method, Step, Walk, rehearse
from ddpm_sa.samplers.feature_cache import check_interval
from ddpm_sa.samplers.schedulers import Options

StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
"""diffusers' callback_on_step_end; see `Pipeline.__call__`."""


class Batch(NamedTuple):
    """Images as they come: their indices, and their tensors in [-1, 1], (B, C, H, W), float32."""

    indices: list[int]
    images: Tensor


class Pipeline(Model):
    """Sample from a U-Net, ours or diffusers' UNet2DModel; its arguments are `Model`'s."""

    def __call__(
        self,
        num_images: int = 16,
        steps: int = 50,
        seed: int = 0,
        batch_size: int = 8,
        scheduler: str = "ddim",
        class_labels: int | Sequence[int] | None = None,
        output_type: Literal["pil", "np", "pt", "values"] = "pil",
        indices: Sequence[int] | None = None,
        scheduler_options: Options | None = None,
        guide: Guide | None = None,
        cache_interval: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: StepEnd | None = None,
    ) -> ImagePipelineOutput:
        """Sample images. Image i of a seed is the same whatever the batch or the other images.

        Args:
            num_images: Make the images 0 ... num_images - 1.
            steps: Steps of the scheduler, at most the training's timesteps.
            seed: Which images; 0 or greater.
            batch_size: Images at once, for speed alone.
            scheduler: One of `ddpm_sa.samplers.schedulers.SCHEDULERS`.
            class_labels: For a class-conditional network: one class for all, or one for each
                image; image i has class i modulo the number of classes, if None.
            output_type: "pil"; or "np", (N, H, W, C), or "pt", (N, C, H, W), in [0, 1], float32;
                or "values", (N, H, W, C), of the type and range that the training images had.
            indices: Make these images in place of num_images.
            scheduler_options: Settings of that scheduler, such as {"eta": 0.5} for "ddim".
            guide: A `ddpm_sa.guidance.base.Guidance`, as `self.guidance(...)` makes one.
            cache_interval: Compute deep features at every so many steps; see
                `ddpm_sa.samplers.feature_cache`.
            num_inference_steps: diffusers' name of steps.
            generator: diffusers' way to say seed; refused.
            callback_on_step_end: (pipeline, step, t, {"latents", "x_0"}) -> a dict, as in
                diffusers: "latents" is the state after the step, (B, C, H, W), and takes the
                place of the state if it is given back; "x_0" is the image predicted so far.

        Returns:
            An output whose `.images` are what output_type says, in the order of the indices.

        Raises:
            ValueError: If an argument is out of range, or cannot be for this network.
        """
        if generator is not None:
            raise ValueError(
                "an image here depends on its seed and index, not on a generator; give "
                "seed=generator.initial_seed(), or other indices for other images"
            )
        if output_type not in ("pil", "np", "pt", "values"):
            raise ValueError(
                f"output_type={output_type!r} is unknown; known are pil, np, pt, values"
            )
        if output_type == "pil" and not self.image_format.is_picture:
            raise ValueError(f"no picture holds {self.image_format}; use output_type='values'")
        method = Method(
            steps=steps if num_inference_steps is None else num_inference_steps,
            scheduler=scheduler,
            scheduler_options=scheduler_options or {},
            guide=guide,
            cache_interval=cache_interval,
        )
        chosen = range(num_images) if indices is None else indices
        batches = self.batches(chosen, method, seed, batch_size, class_labels, callback_on_step_end)
        x = torch.cat([batch.images for batch in batches])
        if output_type in ("pil", "values"):
            values: Any = from_tensor(x, self.image_format)
            return ImagePipelineOutput(images=to_pil(values) if output_type == "pil" else values)
        made: Any = x / 2 + 0.5
        if output_type == "np":
            made = rearrange(made, "n c h w -> n h w c").contiguous().numpy()
        return ImagePipelineOutput(images=made)

    def batches(
        self,
        indices: Sequence[int],
        method: Method,
        seed: int = 0,
        batch_size: int = 8,
        class_labels: int | Sequence[int] | None = None,
        callback_on_step_end: StepEnd | None = None,
    ) -> Iterator[Batch]:
        """`__call__`, batch by batch, in memory for one. Arguments are checked at the first."""
        if len(indices) < 1 or min(indices) < 0:
            raise ValueError(f"images {indices} cannot be made: at least one, from 0 on")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        check_interval(self.unet, method.cache_interval)
        check_together(method.guide, method.cache_interval)
        labels = self.class_labels(indices, class_labels)
        total = rehearse(method, self.scheduler).steps * math.ceil(len(indices) / batch_size)
        with evaluating(self.unet), self.progress_bar(total=total) as bar:  # type: ignore[call-arg]
            for start in range(0, len(indices), batch_size):
                batch = slice(start, start + batch_size)
                part = None if labels is None else labels[batch]
                walk = self.denoise(indices[batch], method, seed, part)
                x = _last(walk, bar.update, partial(_told, self, callback_on_step_end))
                if not x.isfinite().all():
                    raise ValueError(
                        f"{method} gave values that are not finite; use more steps or another "
                        "scheduler"
                    )
                height, width = self.image_format.size
                x = x[..., :height, :width].clamp(-1, 1)
                yield Batch(list(indices[batch]), x.cpu())


def _last(walk: Walk, tick: Callable[[], object], tell: Callable[[Step], Tensor | None]) -> Tensor:
    """The state after the last step of a walk."""
    step, reply = next(walk), None
    while True:
        tick()
        reply = tell(step)
        try:
            step = walk.send(reply)
        except StopIteration:
            return step.x_next if reply is None else reply


def _told(pipeline: Pipeline, callback: StepEnd | None, step: Step) -> Tensor | None:
    """What a callback wants in place of the state after a step."""
    if callback is None:
        return None
    told = {"latents": step.x_next, "x_0": step.x_0}
    return (callback(pipeline, step.number, step.t, told) or {}).get("latents")
