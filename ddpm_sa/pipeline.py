"""Pipeline: a network, its schedule and what its images are; samples, saves and loads."""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, ImagePipelineOutput
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from ddpm_sa import model_folder
from ddpm_sa.condition import NO_CONDITION, Condition, checked_labels
from ddpm_sa.diffusion.prediction import Prediction, prediction
from ddpm_sa.guidance.base import Guidance
from ddpm_sa.guidance.by_name import Kind, check_together, make_guidance
from ddpm_sa.image_format import FILE_NAME, ImageFormat, from_tensor, padded_size, to_pil
from ddpm_sa.models.config import not_in_diffusers
from ddpm_sa.models.unet import UNet
from ddpm_sa.randomness import standard_normal
from ddpm_sa.samplers.denoise import Guide, Step, Walk, denoise
from ddpm_sa.samplers.feature_cache import DeepReuse, check_interval
from ddpm_sa.samplers.method import Method, dry_run
from ddpm_sa.samplers.schedulers import Options

INITIAL_NOISE = "sampling: x_T"
STEP_NOISE = "sampling: step"

StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
"""diffusers' callback_on_step_end; see `Pipeline.__call__`."""


class Batch(NamedTuple):
    """Sampled images: their indices, and their tensors in [-1, 1], (B, C, H, W), float32."""

    indices: list[int]
    images: Tensor


class Pipeline(DiffusionPipeline):
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
            raise ValueError(
                f"{type(scheduler).__name__} has no beta_schedule: it does not describe a DDPM"
            )
        self.register_modules(unet=unet, scheduler=scheduler)
        self.image_format = image_format or _format_of(unet)
        if self.image_format.channels != unet.config.in_channels:
            raise ValueError(
                f"image_format has {self.image_format.channels} channels, the network "
                f"{unet.config.in_channels}"
            )
        _check_outputs(unet, scheduler, self.image_format.channels)

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
                image; image i has class i modulo the number of classes, if None.
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
        batches = self.batches(
            chosen,
            method,
            seed,
            batch_size,
            condition=self.condition(chosen, class_labels),
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
            raise ValueError(f"indices={indices} must be at least one number, each 0 or greater")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        check_interval(self.unet, method.cache_interval)
        check_together(method.guide, method.cache_interval)
        condition = condition or self.condition(indices)
        total = dry_run(method, self.scheduler).steps * math.ceil(len(indices) / batch_size)
        with evaluating(self.unet), self.progress_bar(total=total) as bar:  # type: ignore[call-arg]
            for start in range(0, len(indices), batch_size):
                batch = slice(start, start + batch_size)
                walk = self.denoise(indices[batch], method, seed, condition=condition[batch])
                x = _last(walk, bar.update, partial(_call_back, self, callback_on_step_end))
                if not x.isfinite().all():
                    raise ValueError(
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
        levels = len(self.unet.config.block_out_channels)
        return padded_size(self.image_format.size, 2 ** (levels - 1))

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
    ) -> Guidance:
        """A `guide` for this pipeline's calls; see `ddpm_sa.guidance.by_name.make_guidance`.

        Args:
            null_class: The last class, if None and the network has one more than names.
            weaker: Of "auto": the pipeline of a weaker network of the same images.
        """
        names, classes = self.image_format.labels, self.unet.config.num_class_embeds
        if null_class is None and kind == "cfg" and names and classes == len(names) + 1:
            null_class = len(names)
        predicts = self.scheduler.config.prediction_type
        if weaker is not None and weaker.scheduler.config.prediction_type != predicts:
            raise ValueError(
                f"the weaker model predicts {weaker.scheduler.config.prediction_type!r}, the model "
                f"{predicts!r}"
            )
        return make_guidance(
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

    def condition(
        self, indices: Sequence[int], class_labels: int | Sequence[int] | None = None
    ) -> Condition:
        """The conditioning of each image, on the CPU; empty for an unconditional network.

        Args:
            indices: Which images; image i has class i modulo the number of classes if
                class_labels is None.
            class_labels: One class for all, or one for each image.

        Raises:
            ValueError: If the network has no classes, not that many, or not every image has one.
        """
        config, names = self.unet.config, self.image_format.labels
        if config.num_class_embeds is None:
            if class_labels is not None or config.class_embed_type is not None:
                raise ValueError("class_labels need a network with num_class_embeds; this has none")
            return NO_CONDITION
        if class_labels is None:
            # Without the class that stands for "no label", if there is one.
            num_named = config.num_class_embeds if names is None else len(names)
            class_labels = [index % num_named for index in indices]
        labels = checked_labels(class_labels, len(indices), config.num_class_embeds)
        return Condition(class_labels=labels)

    def save_pretrained(  # type: ignore[override]
        self, folder: str | os.PathLike, grid: Image.Image | None = None, about: str = ""
    ) -> None:
        """Write a model folder that diffusers' DDPMPipeline opens without this package.

        Where diffusers lacks layers of the network (`not_in_diffusers`), with this package alone.
        The folder appears complete or not at all, and replaces a model that was there.

        Args:
            folder: The target; missing parents are created.
            grid: A picture of samples for the model card.
            about: What else the card says, in Markdown, such as how the model was trained.

        Raises:
            ValueError: If the folder holds anything that is no part of a model.
        """
        with model_folder.replace_folder(Path(folder)) as temporary:
            if not_in_diffusers(self.unet.config) is None:
                unet = self.unet.to_diffusers() if isinstance(self.unet, UNet) else self.unet
                DDPMPipeline(unet, self.scheduler).save_pretrained(temporary)
            else:
                super().save_pretrained(temporary)
            self.image_format.save(temporary)
            num_parameters = sum(parameter.numel() for parameter in self.unet.parameters())
            model_folder.write_card(
                temporary,
                self.image_format,
                self.unet.config,
                self.scheduler.config,
                num_parameters,
                grid,
                about,
            )

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, private: bool | None = None, token: str | None = None
    ) -> str:
        """Save the model folder in a repository of the hub, created if missing; returns its URL.

        Raises:
            ValueError: If the hub cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            return model_folder.upload(folder, repo_id, private, token)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | os.PathLike) -> Self:  # type: ignore[override]
        """Open a model folder, or a repository of the hub: ours, or any DDPMPipeline's.

        Raises:
            ValueError: If it holds no model, or an incomplete one.
        """
        folder = model_folder.local_folder(folder_or_repo)
        model_folder.first_file(folder, model_folder.NETWORK_CONFIGS)
        scheduler = model_folder.load_scheduler(folder)
        has_format = (folder / FILE_NAME).is_file()
        image_format = ImageFormat.load(folder) if has_format else None
        return cls(UNet.from_pretrained(folder), scheduler, image_format)


def _format_of(unet: Any) -> ImageFormat:
    size = unet.config.sample_size
    if size is None:
        raise ValueError("the network's config has no sample_size; give an image_format")
    height, width = (size, size) if isinstance(size, int) else size
    return ImageFormat(channels=unet.config.in_channels, size=(height, width))


def _check_outputs(unet: Any, scheduler: Any, channels: int) -> None:
    """Refuse other numbers of channels, which would be silently dropped or broadcast."""
    variance = scheduler.config.get("variance_type") or ""
    expected = 2 * channels if variance.startswith("learned") else channels
    out_channels = unet.config.get("out_channels", expected)
    if out_channels != expected:
        why = f"variance_type={variance!r}" if variance else "the scheduler"
        raise ValueError(
            f"out_channels={out_channels} of the network must be {expected}, for images of "
            f"{channels} channels and {why}"
        )


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode inside, in the mode it had outside."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


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


def _call_back(pipeline: Pipeline, callback: StepEnd | None, step: Step) -> Tensor | None:
    """Call a callback after a step; returns the state that replaces the step's, or None."""
    if callback is None:
        return None
    tensors = {"latents": step.x_next, "x_0": step.x_0}
    return (callback(pipeline, step.number, step.t, tensors) or {}).get("latents")
