"""The real images that models are compared with, in the format of the models' images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml

from ddpm_sa import Pipeline
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.dataset import Images
from ddpm_sa.data.load import open_images
from ddpm_sa.errors import UserError
from sampling.evaluation.image_sets import first_image_shape


def open_real_images(
    pipelines: Mapping[str, Pipeline],
    folders: Sequence[str] = (),
    *,
    data: str | None,
    fit: Literal["crop", "pad", "stretch"],
    split: str | None,
    validation: float | str | None,
    need_labels: bool,
    need_held_out: bool,
) -> Images:
    """Open the real images, converted to the format that all models share.

    Args:
        pipelines: The models, by name.
        folders: Folders of images; without a model, the first one gives the format.
        data: The data source; None reads it from the config.yaml of the first model's run.
        fit: How images of another size are fitted, as in training.
        split: Of a folder, or of a dataset on the Hugging Face Hub; None takes that of the run, or
            train.
        validation: The held-out images; None reads them from the same config.yaml.
        need_labels: Whether class-conditional models will be given the labels.
        need_held_out: Whether held-out images are required.

    Raises:
        ValueError: If the images cannot be read, or the models' formats differ from theirs.
    """
    formats = {name: pipeline.image_format for name, pipeline in pipelines.items()}
    networks = [pipeline.unet for pipeline in pipelines.values()]
    labelled = need_labels and any(
        network.config.num_class_embeds is not None for network in networks
    )
    if not labelled:
        formats = {name: dataclasses.replace(kind, labels=None) for name, kind in formats.items()}
    config = read_run_data_config(next(iter(pipelines))) if pipelines and data is None else None
    if config is None:
        if data is None:
            raise UserError(
                "data is not given, and the model is not part of a run folder; give --data"
            )
        config = DataConfig(source=data, fit=fit)
    if formats:
        first = next(iter(formats.values()))
        channels, size, value_range = first.channels, first.size, first.value_range
    else:
        channels, *sides = first_image_shape(folders[0])
        size, value_range = (sides[0], sides[1]), None
    images = open_images(
        dataclasses.replace(
            config,
            size=f"{size[0]}x{size[1]}",
            channels=channels,
            value_range=value_range,
            split=split or config.split,
            validation=validation or config.validation,
            class_conditional=labelled,
            labels=config.labels if labelled else None,
            label_dropout=0.0,
            streaming=False,
        )
    )
    if need_held_out and images.validation is None:
        raise UserError(
            "nearest and likelihood need held-out images; give --validation, such as 0.1"
        )
    for name, kind in formats.items():
        if kind != images.format:
            raise UserError(
                f"{name} generates {kind}, but the images of {config.source} are {images.format}; "
                "only images of the same format can be compared"
            )
    return images


def read_run_data_config(model: str) -> DataConfig | None:
    """The data settings in the config.yaml of the model's run, or None without a run folder.

    Args:
        model: A run folder, or a model or a checkpoint inside one.
    """
    for folder in (Path(model), *Path(model).parents[:2]):
        if (folder / "config.yaml").is_file() and (folder / "model").is_dir():
            settings = yaml.safe_load((folder / "config.yaml").read_text())["data"]
            if isinstance(settings.get("value_range"), list):
                settings["value_range"] = tuple(settings["value_range"])
            return DataConfig(**settings)
    return None
