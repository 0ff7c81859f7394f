"""A folder of samples: image files, a grid, and samples.json, which says how to reproduce them."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_sa.errors import UserError
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.image_format import (
    ImageFormat,
    Pixels,
    from_pil,
    from_tensor,
    image_grid,
    to_pil,
    to_tensor,
    visible,
)
from ddpm_sa.pipeline import Batch
from sampling.common.conditions import SAMPLES

RECORD = "samples.json"
GRID = "grid.png"
ARRAY = "images.npz"
GRID_LIMIT = 256  # a larger grid is unreadable


def image_path(folder: Path, index: int, image_format: ImageFormat) -> Path:
    """The file of image `index`; if it exists it is complete, since it was renamed into place.

    With a condition its name is that of the condition and of the sample, 000012-003.
    """
    if image_format.condition is None:
        return folder / f"{index:06d}{image_format.suffix}"
    sample, condition = divmod(index, SAMPLES)
    return folder / f"{condition:06d}-{sample:03d}{image_format.suffix}"


def prepare_folder(
    folder: Path,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    class_labels: Mapping[int, int | None],
    image_format: ImageFormat,
) -> list[int]:
    """Add the requested images to samples.json and return those that do not exist yet.

    Args:
        folder: Created if it does not exist.
        settings: Everything that an image depends on; all images of a folder share it.
        environment: Hardware and software; recorded, but not compared.
        class_labels: The index of each requested image, with its class.
        image_format: Format of the images, which decides the file type.

    Returns:
        The indices whose files do not exist.

    Raises:
        ValueError: If the folder holds images made with other settings.
    """
    images = {
        image_path(folder, index, image_format).name: {"index": index, "class_label": label}
        for index, label in class_labels.items()
    }
    images = _read_recorded_images(folder, settings, images) | images
    folder.mkdir(parents=True, exist_ok=True)
    record = {"settings": settings, "environment": environment, "images": images}
    with write_atomically(folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    return [index for index in class_labels if not image_path(folder, index, image_format).exists()]


def save_images(folder: Path, batch: Batch, image_format: ImageFormat) -> None:
    """Write each image atomically, in the value range of the training images."""
    values = from_tensor(batch.images, image_format)
    for i, image in zip(batch.indices, values, strict=True):
        save_values(image_path(folder, i, image_format), image, image_format)


def save_values(path: Path, image: Pixels, image_format: ImageFormat) -> None:
    """Write the values of one image, (H, W, C), atomically: as a PNG if one can hold them."""
    if image_format.is_picture:
        save_picture(to_pil(image[None])[0], path)
    else:
        save_npy(path, image)


def save_npy(path: Path, values: np.ndarray) -> None:
    """Write a .npy file atomically."""
    with write_atomically(path) as partial, partial.open("wb") as file:
        np.save(file, values)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with write_atomically(path) as partial:
        picture.save(partial, format="png")


def load_image(folder: Path, index: int, image_format: ImageFormat) -> Any:
    """Read the values of an existing image, (H, W, C)."""
    file = image_path(folder, index, image_format)
    return from_pil([Image.open(file)])[0] if image_format.is_picture else np.load(file)


def save_grid(folder: Path, indices: Sequence[int], image_format: ImageFormat) -> None:
    """Write grid.png with these images of the folder, at most the first 256."""
    images = [load_image(folder, index, image_format) for index in indices[:GRID_LIMIT]]
    x = to_tensor(np.stack(images), image_format.value_range)
    save_picture(image_grid(visible(x)), folder / GRID)


def save_array(folder: Path, indices: Sequence[int], image_format: ImageFormat) -> None:
    """Write images.npz with these images as arr_0, keeping one in memory at a time."""
    channels, height, width = image_format.shape
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(image_format.dtype)),
        "fortran_order": False,
        "shape": (len(indices), height, width, channels),
    }
    with (
        write_atomically(folder / ARRAY) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for index in indices:
            file.write(np.ascontiguousarray(load_image(folder, index, image_format)).tobytes())


def _read_recorded_images(
    folder: Path, settings: Mapping[str, Any], images: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the images of an earlier run, and check that the new ones are compatible."""
    try:
        record = json.loads((folder / RECORD).read_text())
        earlier_settings, earlier_images = record["settings"], record["images"]
    except FileNotFoundError:
        if next((p for p in folder.glob("*") if p.suffix in (".png", ".npy")), None) is None:
            return {}
        raise UserError(f"{folder} holds images but no {RECORD}; give another output_dir") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD} cannot be read ({error})") from error
    # Compared after a round trip through JSON, which turns tuples into lists.
    for name, value in json.loads(json.dumps(settings)).items():
        earlier = earlier_settings.get(name)
        if earlier != value:
            raise UserError(
                f"{folder} holds images made with {name}={_shorten(earlier)}, but {name}="
                f"{_shorten(value)} is requested; give another output_dir"
            )
    for name in images.keys() & earlier_images.keys():
        if images[name] != earlier_images[name]:
            raise UserError(
                f"{folder / name} has class {earlier_images[name]['class_label']}, but class "
                f"{images[name]['class_label']} is requested; give another output_dir"
            )
    return earlier_images


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
