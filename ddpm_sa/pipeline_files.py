"""Saving a Pipeline as a model folder, uploading it, and loading it again."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from PIL import Image
from torch import Tensor

from ddpm_sa import model_folder
from ddpm_sa.errors import UserError
from ddpm_sa.files.json_files import read_object
from ddpm_sa.image_format import FILE_NAME, ImageFormat
from ddpm_sa.models.architectures import architecture_named, architecture_of
from ddpm_sa.models.load_options import LoadOptions, check_options
from ddpm_sa.models.unet import UNet


class PipelineFiles(DiffusionPipeline):
    """The part of `Pipeline` that has to do with files."""

    unet: Any
    scheduler: Any
    image_format: ImageFormat

    def save_pretrained(  # type: ignore[override]
        self, folder: str | os.PathLike, grid: Image.Image | None = None, about: str = ""
    ) -> None:
        """Write a model folder that diffusers' DDPMPipeline opens without this package.

        Where diffusers lacks the network or layers of it (`Network.not_in_diffusers`), with this
        package alone.
        The folder appears complete or not at all, and replaces a model that was there.

        Args:
            folder: The target; missing parents are created.
            grid: A picture of samples for the model card.
            about: What else the card says, in Markdown, such as how the model was trained.

        Raises:
            ValueError: If the folder holds anything that is no part of a model.
        """
        with model_folder.replace_folder(Path(folder)) as temporary:
            if architecture_of(self.unet).not_in_diffusers(self.unet.config) is None:
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
                architecture_of(self.unet),
            )

    def save_configs(self, folder: str | os.PathLike) -> None:
        """Write what describes the pipeline, but no weights, for `from_weights`.

        Writes config.json (the network), scheduler_config.json and images.json.
        """
        folder = Path(folder)
        self.unet.save_config(folder)
        self.scheduler.save_config(folder)
        self.image_format.save(folder)

    @classmethod
    def from_weights(cls, folder: str | os.PathLike, weights: Mapping[str, Tensor]) -> Self:
        """Make a pipeline from a folder that `save_configs` wrote, and the network's weights.

        Raises:
            ValueError: If the folder does not describe a pipeline, or not that of these weights.
        """
        folder = Path(folder)
        config = UNet.load_config(folder)
        assert isinstance(config, dict)
        architecture = architecture_named(config.get("_class_name"))
        with torch.device("meta"):
            unet = architecture(**{key: value for key, value in config.items() if key[0] != "_"})
        try:
            unet.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise UserError(f"the weights are not of the network in {folder}: {error}") from error
        # The constructor is Pipeline's.
        return cls(unet.eval(), model_folder.load_scheduler(folder), ImageFormat.load(folder))  # pyright: ignore[reportCallIssue]

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
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Open a model folder, or a repository of the Hub: ours, or any DDPMPipeline's.

        The files may come from anybody: only JSON and tensors are read, and no code is run.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the Hub.
            options: Of the network, as in `UNet.from_pretrained`.

        Raises:
            ValueError: If it holds no model, or an incomplete one, or a value in one of its JSON
                files or an option cannot be used. What is missing or cannot be read is an OSError
                too.
        """
        folder = model_folder.local_folder(pretrained_model_name_or_path, options)
        config = read_object(model_folder.first_file(folder, model_folder.NETWORK_CONFIGS))
        architecture = architecture_named(config.get("_class_name"))
        check_options(options, architecture.argument_names())
        scheduler = model_folder.load_scheduler(folder)
        has_format = (folder / FILE_NAME).is_file()
        image_format = ImageFormat.load(folder) if has_format else None
        unet = architecture.from_pretrained(folder, **options)
        try:
            # The constructor is Pipeline's.
            return cls(unet, scheduler, image_format)  # pyright: ignore[reportCallIssue]
        except UserError as error:
            raise UserError(f"{pretrained_model_name_or_path}: {error}") from error


def check_channels(unet: Any, scheduler: Any, image_format: ImageFormat) -> None:
    """Refuse networks whose outputs would be silently dropped or broadcast.

    Raises:
        ValueError: If in_channels is not that of the images and their condition, or out_channels is
            neither that of the images nor, with a learned variance, twice that.
    """
    channels, inputs = image_format.channels, image_format.in_channels
    if inputs != unet.config.in_channels:
        condition = f" and {inputs - channels} of a condition" if inputs != channels else ""
        raise UserError(
            f"image_format has {channels} channels{condition}, the network "
            f"{unet.config.in_channels}"
        )
    variance = scheduler.config.get("variance_type") or ""
    expected = 2 * channels if variance.startswith("learned") else channels
    out_channels = unet.config.get("out_channels", expected)
    if out_channels != expected:
        why = f"variance_type={variance!r}" if variance else "the scheduler"
        raise UserError(
            f"out_channels={out_channels} of the network must be {expected}, for images of "
            f"{channels} channels and {why}"
        )
