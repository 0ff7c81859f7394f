"""Open the images of a run: find, check, cache or stream them, and hold out a validation set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ddpm_sa.conditions.config import ConditionConfig
from ddpm_sa.data.conditioning import ConditionDraw, Conditioner
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.containers.registry import split_member
from ddpm_sa.data.containers.source import open_container, opens, require_no_stack_settings
from ddpm_sa.data.dataset import Images
from ddpm_sa.data.labels import check_labels
from ddpm_sa.data.prepare import prepare
from ddpm_sa.data.sources.folders import scan
from ddpm_sa.data.sources.image_folder import open_image_folder
from ddpm_sa.data.sources.mnist5k import load_mnist5k
from ddpm_sa.data.sources.source import DEFAULT_SPLIT, SOURCES, Source
from ddpm_sa.data.sources.tables import is_table, names_table, open_table
from ddpm_sa.data.stream import Stream
from ddpm_sa.errors import UserError, require
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.randomness import stream


def open_images(config: DataConfig, seed: int = 0) -> Images:
    """Find and check the images of a run, and decode them if they fit into the cache.

    Args:
        config: The data settings.
        seed: Seed of the shuffling of a streamed table.

    Raises:
        ValueError: If anything is wrong with the images, naming the file or row.
    """
    config = _name_member(config)
    images = _open_stream(config, seed) if config.streaming else _open_source(config)
    if config.validation is None:
        return images
    if isinstance(config.validation, str):
        return replace(images, validation=_open_validation(config, config.validation, images))
    held_out, kept = split(images.length, config.validation)
    return replace(
        images.subset(kept),
        notes=images.notes,
        skipped=images.skipped,
        validation=images.subset(held_out),
    )


def _name_member(config: DataConfig) -> DataConfig:
    """Turn data.source=FILE:NAME into FILE and data.dataset=NAME."""
    place, member = split_member(config.source)
    if member is None:
        return config
    require(
        config.dataset is None,
        f"data.source={config.source} and data.dataset={config.dataset} both name an array; give "
        "one",
    )
    return replace(config, source=place, dataset=member)


def split(length: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into held-out and training ones, each sorted.

    The split is the same for every seed, so that runs can be compared.

    Raises:
        ValueError: If no index is left for training.
    """
    count = max(1, round(share * length))
    if count >= length:
        raise UserError(f"data.validation={share} leaves none of {length} images to train on")
    order = stream(0, "validation").permutation(length)
    return np.sort(order[:count]), np.sort(order[count:])


def _open_validation(config: DataConfig, place: str, training: Images) -> Images:
    """Open the held-out images of another folder, file or split.

    Raises:
        ValueError: If there is no such place, or its channels, depth or classes differ from those
            of the training images.
    """
    there = replace(
        config,
        validation=None,
        streaming=False,
        value_range=training.format.value_range,
        clip=config.clips,
        num_classes=None,
    )
    known = training.splits.lengths if training.splits else {}
    is_place = Path(split_member(place)[0]).expanduser().exists()
    is_split = place in known or (not is_place and names_table(config.source))
    if is_split and training.splits and place == training.splits.taken:
        raise UserError(
            f"data.validation={place} is the split that is taken; name another split, or give "
            "a share, such as 0.02"
        )
    if is_split:
        there = replace(there, split=place)
    elif is_place:
        if Path(place).expanduser().resolve() == Path(config.source).expanduser().resolve():
            raise UserError(
                f"data.validation={place} is data.source itself; name other images, or give a "
                "share, such as 0.02"
            )
        there = replace(there, source=place)
        if split_member(place)[1] is not None:
            there = _name_member(replace(there, dataset=None))
        if is_table(there):
            there = replace(there, labels=None)  # the CSV file is of the training folder's images
    else:
        splits = f"has only the splits {', '.join(known)}" if known else "has no splits"
        raise UserError(
            f"data.validation={place} is not a folder or file, and data.source={config.source} "
            f"{splits}; give a share, such as 0.02, to hold out some of its images"
        )
    images = _open_source(there, any_split=not is_split)
    if (images.format.channels, images.format.bit_depth) != (
        training.format.channels,
        training.format.bit_depth,
    ):
        raise UserError(
            f"data.validation={place} has {images.format.channels} channels of "
            f"{images.format.bit_depth} bits, data.source={config.source} has "
            f"{training.format.channels} of {training.format.bit_depth}"
        )
    labels = images.labels
    if labels is not None and images.classes is not None and training.classes is not None:
        if unknown := sorted(set(images.classes) - set(training.classes)):
            raise UserError(
                f"data.validation={place} has the class {unknown[0]!r}, which data.source="
                f"{config.source} does not have"
            )
        labels = np.array([training.classes.index(name) for name in images.classes])[labels]
    return replace(images, format=training.format, labels=labels)


def _open_stream(config: DataConfig, seed: int) -> Images:
    stream = Stream(config, seed)
    image_format = ImageFormat(
        channels=stream.channels,
        size=config.height_width,
        bit_depth=np.dtype(stream.dtype).itemsize * 8,
        value_range=stream.value_range,
        labels=None if stream.classes is None else tuple(stream.classes),
    )
    return Images(
        length=stream.length,
        format=image_format,
        read=stream.read,
        label_dropout=config.label_dropout > 0,
        stream=stream,
        splits=stream.splits,
    )


def _open_source(config: DataConfig, any_split: bool = False) -> Images:
    if config.source == "mnist5k":
        return _open_mnist5k(config, any_split)
    source = open_source(config, any_split)
    prepared = prepare(source, config)
    labels = classes = None
    if source.labels is not None:
        labels = source.labels[prepared.kept]
        classes = check_labels(source.labels, source.classes, source.name, config.num_classes)
    image_format = ImageFormat(
        channels=prepared.channels,
        size=config.height_width,
        bit_depth=np.dtype(prepared.dtype).itemsize * 8,
        value_range=prepared.value_range,
        labels=None if classes is None else tuple(classes),
    )
    return Images(
        length=len(prepared.kept),
        format=image_format,
        read=prepared.read,
        labels=labels,
        label_dropout=config.label_dropout > 0,
        skipped=prepared.skipped,
        notes=source.notes + prepared.notes,
        report=source.report + prepared.report,
        splits=source.splits,
    )


def open_source(config: DataConfig, any_split: bool = False) -> Source:
    """Open the source that a configuration names.

    Args:
        config: The data settings.
        any_split: Whether to open a source without splits, or the only split of one, whatever
            data.split is.

    Raises:
        ValueError: If there is no such source, or it has no images or labels.
    """
    path = Path(config.source).expanduser()
    is_stack = opens(path)
    found = scan(path) if path.is_dir() and not is_stack else None
    has_table = not is_stack and is_table(config, found)
    if config.labels is not None and (is_stack or has_table):
        raise UserError(
            f"data.labels={config.labels} cannot be used with data.source={config.source}: a CSV "
            "file labels a folder of images, and a table has its labels in a column "
            "(data.label_column)"
        )
    if is_stack or (not path.is_dir() and path.suffix == ".parquet"):
        _require_no_split(config, any_split)
    if is_stack:
        return open_container(path, config)
    if has_table:
        require_no_stack_settings(config)
        return open_table(config, any_split)
    if found is None:
        what = (
            "a file that cannot be opened as images"
            if path.exists()
            else "neither a folder nor a file"
        )
        raise UserError(f"data.source={path} is {what}; {SOURCES}")
    return open_image_folder(path, found, config, any_split)


def _require_no_split(config: DataConfig, any_split: bool) -> None:
    require(
        any_split or config.split == DEFAULT_SPLIT,
        f"data.split={config.split} cannot be used: data.source={config.source} has no splits; "
        "leave data.split out",
    )


def _open_mnist5k(config: DataConfig, any_split: bool) -> Images:
    _require_no_split(config, any_split)
    if config.labels is not None:
        raise UserError(
            f"data.labels={config.labels} cannot be used with data.source=mnist5k, which has its "
            "own labels; leave data.labels out"
        )
    if config.value_range not in (None, (0, 255)):
        raise UserError(
            f"data.value_range={config.value_range} cannot be used with data.source=mnist5k, whose "
            "values 0 and 255 become -1 and 1; leave data.value_range out"
        )
    require_no_stack_settings(config)
    images, labels = load_mnist5k()
    border = config.height_width[0] - images.shape[1]
    square = len(set(config.height_width)) == 1
    if not square or border < 0 or border % 2 or config.channels not in (None, 1):
        raise UserError(
            "data.source=mnist5k has grey images of 28 x 28, padded with black to an even "
            f"data.size of 28 or more; not data.size={config.size}, data.channels={config.channels}"
        )
    sides = (border // 2, border // 2)
    classes = None
    if config.class_conditional:
        classes = check_labels(labels, None, "digit {}".format, config.num_classes)
    return Images(
        length=len(images),
        format=ImageFormat(
            channels=1, size=config.height_width, labels=None if classes is None else tuple(classes)
        ),
        # At a large size all of them would not fit into memory.
        read=lambda i: np.pad(images[i], ((0, 0), sides, sides, (0, 0))),
        labels=None if classes is None else labels,
        label_dropout=config.label_dropout > 0,
    )


def _trial(
    image_format: ImageFormat,
) -> tuple[torch.Tensor, np.ndarray, np.ndarray, ConditionDraw]:
    """The arguments of `Conditioner.given` for one image."""
    no = np.zeros(1, dtype=bool)
    draw = ConditionDraw(
        seed=0, purpose="trial", positions=np.zeros(1, int), withheld=no, shares=np.zeros(1)
    )
    return torch.zeros(1, *image_format.shape), np.zeros(1, int), no, draw


def with_condition(images: Images, config: ConditionConfig) -> Images:
    """The same images, with the condition that the settings ask for, the held-out ones too.

    Raises:
        UserError: If these images cannot have it.
    """
    if config.format is None:
        return images
    image_format = replace(images.format, condition=config.format)
    held_out = images.validation and with_condition(images.validation, config)
    conditioner = Conditioner(format=config.format)
    conditioner.given(*_trial(image_format))  # a folder of masks may be missing
    return replace(images, format=image_format, conditioner=conditioner, validation=held_out)
