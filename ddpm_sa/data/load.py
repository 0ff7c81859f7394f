"""Open the images of a run: find, check, cache or stream them, and hold out a validation set."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.dataset import Images
from ddpm_sa.data.labels import check_labels
from ddpm_sa.data.prepare import prepare
from ddpm_sa.data.sources import has_splits, is_table, load_mnist5k, open_source
from ddpm_sa.data.stream import Stream
from ddpm_sa.errors import UserError
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
    if config.streaming:
        images = _open_stream(config, seed)
    else:
        images = _open_mnist5k(config) if config.source == "mnist5k" else _open_source(config)
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
        config, validation=None, streaming=False, value_range=training.format.value_range
    )
    if Path(place).exists():
        there = replace(there, source=place)
    elif has_splits(config):
        there = replace(there, split=place)
    else:
        raise UserError(
            f"data.validation={place} is not a folder or file, and data.source={config.source} has "
            "no splits; give a share, such as 0.02, to hold out some of its images"
        )
    if is_table(there):
        there = replace(there, labels=None)  # the CSV file is of the training folder's images
    images = _open_source(replace(there, num_classes=None))
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
    )


def _open_source(config: DataConfig) -> Images:
    source = open_source(config)
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
        notes=prepared.notes,
    )


def _open_mnist5k(config: DataConfig) -> Images:
    if config.labels is not None:
        raise UserError(
            f"data.labels={config.labels} cannot be used with data.source=mnist5k, which has its "
            "own labels; leave data.labels out"
        )
    if config.value_range is not None:
        raise UserError(
            f"data.value_range={config.value_range} cannot be used with data.source=mnist5k, whose "
            "values 0 and 255 become -1 and 1; leave data.value_range out"
        )
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
