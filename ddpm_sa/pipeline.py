"""Pipeline: a network, its schedule and what its images are; samples, saves and loads."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from diffusers import ImagePipelineOutput
from einops import rearrange
from torch import Tensor

from ddpm_sa.condition import Condition, checked_labels
from ddpm_sa.conditions.given import Given, channels_of
from ddpm_sa.diffusion.prediction import Prediction, prediction
from ddpm_sa.errors import UserError, require
from ddpm_sa.guidance.base import Guidance, WithoutCondition
from ddpm_sa.guidance.by_name import Kind, check_together, check_weaker, make_guidance
from ddpm_sa.image_format import ImageFormat, from_tensor, padded_size, to_pil
from ddpm_sa.pipeline_files import PipelineFiles, check_channels
from ddpm_sa.randomness import standard_normal
from ddpm_sa.samplers.denoise import Guide, Step, Walk, denoise, evaluating, last_state
from ddpm_sa.samplers.feature_cache import DeepReuse, check_interval
from ddpm_sa.samplers.method import Method, dry_run
from ddpm_sa.samplers.schedulers import Options

INITIAL_NOISE = "sampling: x_T"
STEP_NOISE = "sampling: step"

Classes = int | str | Sequence[int | str] | None
"""Classes of images, by index or by name; see `Pipeline.condition`."""
StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
"""diffusers' callback_on_step_end; see `Pipeline.__call__`."""


class Batch(NamedTuple):
    """Sampled images: their indices, and their tensors in [-1, 1], (B, C, H, W), float32."""

    indices: list[int]
    images: Tensor


class Pipeline(PipelineFiles):
    """A U-Net, ours or diffusers' UNet2DModel, to sample from, to save and to load.

    Args:
        unet: The network.
        scheduler: A diffusers scheduler that describes the training: its betas, its prediction
            type, its clipping. `scheduler=` of a call says how to sample.
        image_format: What the images are; 8 bits, sized as the network says, if None.

    Raises:
        ValueError: If the network does not say its size, its channels are not those of the
            images, or the scheduler has no betas.
    """

    unet: Any
    scheduler: Any

    def __init__(self, unet: Any, scheduler: Any, image_format: ImageFormat | None = None) -> None:
        super().__init__()
        if "beta_schedule" not in scheduler.config:
            raise UserError(
                f"{type(scheduler).__name__} has no beta_schedule: it does not describe a DDPM"
            )
        self.register_modules(unet=unet, scheduler=scheduler)
        self.image_format = image_format or ImageFormat.from_unet(unet)
        check_channels(unet, scheduler, self.image_format)
        labels, classes = self.image_format.labels, unet.config.num_class_embeds
        if labels is not None and classes is not None and len(labels) > classes:
            raise UserError(
                f"image_format has {len(labels)} labels, and the network num_class_embeds={classes}"
            )

    def __call__(
        self,
        num_images: int = 16,
        steps: int = 50,
        seed: int = 0,
        batch_size: int = 8,
        scheduler: str = "ddim",
        class_labels: Classes = None,
        condition: Given = None,
        condition_noise: float = 0.0,
        output_type: Literal["pil", "np", "pt", "values"] = "pil",
        indices: Sequence[int] | None = None,
        scheduler_options: Options | None = None,
        guide: Guide | None = None,
        cache_interval: int = 1,
        num_inference_steps: int | None = None,
        callback_on_step_end: StepEnd | None = None,
    ) -> ImagePipelineOutput:
        """Sample images. Image i of a seed is the same whatever the batch or the other images.

        Args:
            num_images: Sample the images 0 ... num_images - 1.
            steps: Steps of the scheduler, at most the training's timesteps.
            seed: Which images; 0 or greater.
            batch_size: Images at once, for speed alone.
            scheduler: One of `ddpm_sa.samplers.schedulers.SCHEDULERS`.
            class_labels: For a class-conditional network: one class for all, or one for each
                image, by index or by name; image i has class i modulo the number of classes, if
                None.
            condition: For a network that is conditioned on images: those images, one for all or
                one for each sample; see `conditions.given.Given`.
            condition_noise: The level of noise to add to the condition, from 0 to the highest that
                the network was trained with.
            output_type: "pil"; or "np", (N, H, W, C), or "pt", (N, C, H, W), in [0, 1], float32;
                or "values", (N, H, W, C), of the type and range that the training images had.
            indices: Sample these images instead of the first num_images.
            scheduler_options: Settings of that scheduler, such as {"eta": 0.5} for "ddim".
            guide: A `ddpm_sa.guidance.base.Guidance`, as `self.guidance(...)` makes one.
            cache_interval: Compute deep features only at every so many steps; see
                `ddpm_sa.samplers.feature_cache`.
            num_inference_steps: diffusers' name of steps.
            callback_on_step_end: (pipeline, step, t, {"latents", "x_0"}) -> a dict, as in
                diffusers: "latents" is the state after the step, (B, C, H, W), and takes the
                place of the state if it is given back; "x_0" is the image predicted so far.

        Returns:
            An output whose `.images` are what output_type says, in the order of the indices.

        Raises:
            ValueError: If an argument is out of range, or cannot be for this network.
        """
        if output_type not in ("pil", "np", "pt", "values"):
            raise UserError(
                f"output_type={output_type!r} is unknown; known are pil, np, pt, values"
            )
        if output_type == "pil" and not self.image_format.is_picture:
            raise UserError(f"no picture holds {self.image_format}; use output_type='values'")
        method = Method(
            steps=steps if num_inference_steps is None else num_inference_steps,
            scheduler=scheduler,
            scheduler_options=scheduler_options or {},
            guide=guide,
            cache_interval=cache_interval,
        )
        chosen = range(num_images) if indices is None else indices
        batches = self.batches(
            chosen,
            method,
            seed,
            batch_size,
            condition=self.condition(
                chosen, class_labels, condition, noise=condition_noise, seed=seed
            ),
            callback_on_step_end=callback_on_step_end,
        )
        x = torch.cat([batch.images for batch in batches])
        if output_type in ("pil", "values"):
            values: Any = from_tensor(x, self.image_format)
            return ImagePipelineOutput(images=to_pil(values) if output_type == "pil" else values)
        unit: Any = x / 2 + 0.5
        if output_type == "np":
            unit = rearrange(unit, "n c h w -> n h w c").contiguous().numpy()
        return ImagePipelineOutput(images=unit)

    def batches(
        self,
        indices: Sequence[int],
        method: Method,
        seed: int = 0,
        batch_size: int = 8,
        *,
        condition: Condition | None = None,
        callback_on_step_end: StepEnd | None = None,
    ) -> Iterator[Batch]:
        """Sample in batches, one in memory at a time; see `__call__`.

        Args:
            condition: Of all the images, in the order of the indices; `self.condition(indices)` if
                None.

        Raises:
            ValueError: At the first batch, as `__call__` does.
        """
        if len(indices) < 1 or min(indices) < 0:
            raise UserError(f"indices={indices} must be at least one number, each 0 or greater")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        check_interval(self.unet, method.cache_interval)
        check_together(method.guide, method.cache_interval)
        condition = condition or self.condition(indices)
        total = dry_run(method, self.scheduler).steps * math.ceil(len(indices) / batch_size)
        with evaluating(self.unet), self.progress_bar(total=total) as bar:  # type: ignore[call-arg]
            for start in range(0, len(indices), batch_size):
                batch = slice(start, start + batch_size)
                walk = self.denoise(indices[batch], method, seed, condition=condition[batch])
                x = last_state(walk, bar.update, partial(_call_back, self, callback_on_step_end))
                if not x.isfinite().all():
                    raise UserError(
                        f"{method} gave values that are not finite; use more steps or another "
                        "scheduler"
                    )
                height, width = self.image_format.size
                x = x[..., :height, :width].clamp(-1, 1)
                yield Batch(list(indices[batch]), x.cpu())

    def denoise(
        self,
        indices: Sequence[int],
        method: Method,
        seed: int,
        *,
        condition: Condition | None = None,
    ) -> Walk:
        """One batch, step by step (see `samplers.denoise.denoise`), with each image's own noise.

        Images whose size the network cannot halve are larger here, below and to the right.

        Args:
            condition: `self.condition(indices)` if None.
        """
        noise = partial(self.noise, seed=seed, indices=indices)
        condition = condition or self.condition(indices)
        x_T = noise(INITIAL_NOISE)
        return self.walk(x_T, lambda step: noise(STEP_NOISE, step=step), method, condition)

    def walk(
        self,
        x: Tensor,
        noise_of_step: Callable[[int], Tensor],
        method: Method,
        condition: Condition,
        start: int = 0,
    ) -> Walk:
        """`samplers.denoise.denoise` with this network, from the timestep number `start`."""
        return self._denoise_with(method, condition)(x, noise_of_step, start=start)

    def stepper(self, method: Method, condition: Condition) -> Callable[..., Step]:
        """A function (x, noise_of_step, start) -> one step from that timestep.

        Its scheduler, and the deep features that the method may reuse, last from call to call. So
        it suits schedulers without a history, ddpm and ddim.
        """
        denoise_batch = self._denoise_with(method, condition)
        return lambda x, noise_of_step, start: next(denoise_batch(x, noise_of_step, start=start))

    def _denoise_with(self, method: Method, condition: Condition) -> Callable[..., Walk]:
        reuses = method.cache_interval > 1
        return partial(
            denoise,
            DeepReuse(self.unet, method.cache_interval) if reuses else self.unet,
            method.make_scheduler(self.scheduler),
            dtype=self.unet.dtype,
            condition=condition.to(self.device),
            predicts=self.scheduler.config.prediction_type,
            guide=method.guide,
        )

    def noise(self, purpose: str, *, seed: int, indices: Sequence[int], step: int = 0) -> Tensor:
        """Each image's own noise, of the size that the network sees."""
        shape = (self.image_format.channels, *self.padded_size)
        return standard_normal(shape, seed, purpose, indices, step).to(self.device)

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        return prediction(self.scheduler.config.prediction_type)

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of what the network sees."""
        return padded_size(self.image_format.size, self.size_multiple)

    @property
    def size_multiple(self) -> int:
        """What the network sees has heights and widths that are multiples of this."""
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    def guidance(
        self,
        kind: Kind,
        scale: float = 1.0,
        *,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        layers: Sequence[str] | None = None,
        sigma: float | None = None,
        null_class: int | None = None,
        weaker: "Pipeline | None" = None,
        condition_scale: float = 0.0,
    ) -> Guidance:
        """A `guide` for this pipeline's calls; see `ddpm_sa.guidance.by_name.make_guidance`.

        Args:
            null_class: The last class, if None and the network has one more than names.
            weaker: Of "auto": the pipeline of a weaker network of the same images.
            condition_scale: w of further guidance by the images of the condition.
        """
        condition = self.image_format.condition
        if kind == "condition" or condition_scale:
            require(
                condition is not None and condition.withholds,
                "guidance by the condition needs a network that was trained with "
                "condition.dropout, and this one was not",
            )
        names, classes = self.image_format.labels, self.unet.config.num_class_embeds
        if null_class is None and kind == "cfg" and names and classes == len(names) + 1:
            null_class = len(names)
        predicts = self.scheduler.config.prediction_type
        if weaker is not None:
            check_weaker(self, weaker)
        guide = make_guidance(
            kind,
            scale,
            self.unet,
            predicts,
            interval=interval,
            rescale=rescale,
            null_class=null_class,
            layers=layers,
            sigma=sigma,
            weaker=weaker and weaker.unet.eval().to(self.device),
        )
        more = ((WithoutCondition(), condition_scale),) if condition_scale else ()
        return dataclasses.replace(guide, more=more)

    def condition(
        self,
        indices: Sequence[int],
        class_labels: Classes = None,
        images: Given = None,
        *,
        noise: float = 0.0,
        seed: int = 0,
    ) -> Condition:
        """The conditioning of each image, on the CPU; empty for an unconditional network.

        Args:
            indices: Which images; image i has class i modulo the number of classes if
                class_labels is None.
            class_labels: One class for all, or one for each image: an index, or a name of
                `image_format.labels`. A class whose name is a number goes by its name if it is
                given as a string.
            images, noise, seed: The images that the network is conditioned on, and the level and
                seed of the noise to add to them; see `conditions.given.channels_of`.

        Raises:
            UserError: If the network has no classes, not that many, or not every image has one; or
                if it is conditioned on other images than these.
        """
        channels = channels_of(
            images, self.image_format, self.padded_size, indices, noise=noise, seed=seed
        )
        return Condition(class_labels=self.class_labels(indices, class_labels), image=channels)

    def class_labels(self, indices: Sequence[int], class_labels: Classes = None) -> Tensor | None:
        """The class of each image, (B,), as `condition` has it; None for an unconditional network.

        Raises:
            UserError: As `condition`.
        """
        config, names = self.unet.config, self.image_format.labels
        if config.num_class_embeds is None:
            if (embeds := config.get("class_embed_type")) is not None:
                raise UserError(
                    f"class_embed_type={embeds}: a network that embeds another "
                    "number than a class is not sampled here; call it yourself"
                )
            if class_labels is not None:
                raise UserError("this network is unconditional: it has no classes to choose from")
            return None
        if class_labels is None:
            # Without the class that stands for "no label", if there is one.
            num_named = config.num_class_embeds if names is None else len(names)
            class_labels = [index % num_named for index in indices]
        return checked_labels(class_labels, len(indices), config.num_class_embeds, names)


def _call_back(pipeline: Pipeline, callback: StepEnd | None, step: Step) -> Tensor | None:
    """Call a callback after a step; returns the state that replaces the step's, or None."""
    if callback is None:
        return None
    tensors = {"latents": step.x_next, "x_0": step.x_0}
    return (callback(pipeline, step.number, step.t, tensors) or {}).get("latents")
