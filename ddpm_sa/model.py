"""A network, its schedule and what its images are: what one batch of images needs, and a folder."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from huggingface_hub import create_repo, upload_folder
from PIL import Image
from torch import Tensor, nn

from ddpm_sa.diffusion.prediction import Prediction, prediction
from ddpm_sa.guidance.base import Guidance
from ddpm_sa.guidance.by_name import Kind, make_guidance
from ddpm_sa.image_format import FILE_NAME, ImageFormat, padded_size
from ddpm_sa.model_folder import (
    GRID_NAME,
    NETWORK_CONFIGS,
    first_file,
    load_scheduler,
    local_folder,
    model_card,
    replaced,
)
from ddpm_sa.models.config import not_in_diffusers
from ddpm_sa.models.unet import UNet
from ddpm_sa.randomness import standard_normal
from ddpm_sa.samplers.denoise import Method, Walk, denoise
from ddpm_sa.samplers.feature_cache import DeepReuse

INITIAL_NOISE = "sampling: x_T"
STEP_NOISE = "sampling: step"


class Model(DiffusionPipeline):
    """A U-Net, ours or diffusers' UNet2DModel, with what it was trained on.

    Args:
        unet: The network.
        scheduler: A diffusers scheduler that describes the training: its betas, its prediction
            type, its clipping. `scheduler=` of a call says how to sample.
        image_format: What the images are; 8 bits, sized as the network says, if None.

    Raises:
        ValueError: If the network does not say its size or contradicts image_format, or the
            scheduler has no betas.
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

    def denoise(
        self, indices: Sequence[int], method: Method, seed: int, labels: Tensor | None = None
    ) -> Walk:
        """One batch, step by step (see `samplers.denoise.denoise`), with each image's own noise.

        Images whose size the network cannot halve are larger here, below and to the right.
        """
        noise = partial(self.noise, seed=seed, indices=indices)
        x_T = noise(INITIAL_NOISE)
        return self.walk(x_T, lambda step: noise(STEP_NOISE, step=step), method, labels)

    def walk(
        self,
        x: Tensor,
        noise_of_step: Callable[[int], Tensor],
        method: Method,
        labels: Tensor | None = None,
        start: int = 0,
    ) -> Walk:
        """`samplers.denoise.denoise` with this network; a start is a number of its timesteps."""
        reuses = method.cache_interval > 1
        return denoise(
            DeepReuse(self.unet, method.cache_interval) if reuses else self.unet,
            method.make_scheduler(self.scheduler),
            x,
            noise_of_step,
            None if labels is None else labels.to(self.device),
            self.unet.dtype,
            predicts=self.scheduler.config.prediction_type,
            guide=method.guide,
            start=start,
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
        weaker: "Model | None" = None,
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

    def class_labels(
        self, indices: Sequence[int], class_labels: int | Sequence[int] | None
    ) -> Tensor | None:
        """The class of each image, (N,), int64; None if the network is unconditional.

        Raises:
            ValueError: If the network has no classes, not that many, or not every image has one.
        """
        num_classes = self.unet.config.num_class_embeds
        if num_classes is None:
            if class_labels is not None or self.unet.config.class_embed_type is not None:
                raise ValueError("class_labels need a network with num_class_embeds; this has none")
            return None
        if class_labels is None:
            # Without the class that stands for "no label", if there is one.
            names = self.image_format.labels
            named = num_classes if names is None else len(names)
            class_labels = [index % named for index in indices]
        elif isinstance(class_labels, int):
            class_labels = [class_labels] * len(indices)
        if len(class_labels) != len(indices):
            raise ValueError(f"{len(class_labels)} class_labels for {len(indices)} images")
        for label in class_labels:
            if not 0 <= label < num_classes:
                raise ValueError(f"class label {label} is not among 0 ... {num_classes - 1}")
        return torch.tensor(class_labels)

    def save_pretrained(  # type: ignore[override]
        self, folder: str | os.PathLike, grid: Image.Image | None = None, about: str = ""
    ) -> None:
        """Write a model folder that diffusers' DDPMPipeline opens without this package.

        Where diffusers lacks layers of the network (`not_in_diffusers`), with this package alone.
        The folder appears whole or not at all, and takes the place of a model that was there.

        Args:
            folder: Where; parents are made.
            grid: A picture of samples for the model card.
            about: What else the card says, in Markdown, such as how the model was trained.

        Raises:
            ValueError: If the folder holds anything that is no part of a model.
        """
        with replaced(Path(folder)) as temporary:
            if not_in_diffusers(self.unet.config) is None:
                unet = self.unet.to_diffusers() if isinstance(self.unet, UNet) else self.unet
                DDPMPipeline(unet, self.scheduler).save_pretrained(temporary)
            else:
                super().save_pretrained(temporary)
            self.image_format.save(temporary)
            if grid is not None:
                grid.save(temporary / GRID_NAME)
            card = model_card(
                self.image_format,
                self.unet.config,
                self.scheduler.config,
                sum(parameter.numel() for parameter in self.unet.parameters()),
                grid and GRID_NAME,
            )
            whole = f"{card}\n{about}" if about else card
            (temporary / "README.md").write_text(whole, encoding="utf-8")

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, private: bool | None = None, token: str | None = None
    ) -> str:
        """Save the model folder in a repository of the hub, made if there is none; returns its URL.

        Raises:
            ValueError: If the hub cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            try:
                url = create_repo(repo_id, private=private, token=token, exist_ok=True)
                upload_folder(repo_id=url.repo_id, folder_path=folder, token=token)
            # Its HTTP library has errors of its own, others from version to version.
            except Exception as error:
                raise ValueError(f"{repo_id} could not be pushed to the hub: {error}") from error
        return str(url)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | os.PathLike) -> Self:  # type: ignore[override]
        """Open a model folder, or a repository of the hub: ours, or any DDPMPipeline's.

        Raises:
            ValueError: If it holds no model, or one that is not whole.
        """
        folder = local_folder(folder_or_repo)
        first_file(folder, NETWORK_CONFIGS)
        scheduler = load_scheduler(folder)
        has_format = (folder / FILE_NAME).is_file()
        image_format = ImageFormat.load(folder) if has_format else None
        return cls(UNet.from_pretrained(folder), scheduler, image_format)


def _format_of(unet: Any) -> ImageFormat:
    size = unet.config.sample_size
    if size is None:
        raise ValueError("the network's config has no sample_size; give an image_format")
    height, width = (size, size) if isinstance(size, int) else size
    return ImageFormat(channels=unet.config.in_channels, size=(height, width))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout inside, as it was outside."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
