"""Image sets to evaluate: samples of a model, a folder, or a dataset, shared among processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from ddpm_sa import Pipeline
from ddpm_sa.data.dataset import Images
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat, from_tensor, to_tensor
from ddpm_sa.progress import ProgressBar, show_progress
from ddpm_sa.samplers.method import Method
from sampling.common.image_files import read_images
from sampling.common.sample_folder import GRID

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy"}
Batches = Iterator[tuple[Sequence[int], Tensor]]


@dataclass(frozen=True)
class ImageSet:
    """A set of images to evaluate, read or sampled lazily.

    Attributes:
        name: Its name in the table.
        count: Number of images.
        batches: Yields this process's indices and images, (B, C, H, W) in [-1, 1], rounded to the
            values that image files hold.
    """

    name: str
    count: int
    batches: Callable[[], Batches]


def process_batches(count: int, batch_size: int, state: PartialState) -> list[range]:
    """This process's batches of the images 0 ... count - 1.

    Batches are never split, so an image shares its batch with the same images, and has the same
    bits, for any number of processes.
    """
    starts = range(0, count, batch_size)[state.process_index :: state.num_processes]
    return [range(start, min(start + batch_size, count)) for start in starts]


def sample_model(
    name: str,
    pipeline: Pipeline,
    method: Method,
    seed: int,
    count: int,
    batch_size: int,
    state: PartialState,
) -> ImageSet:
    """Sample images from a model on the fly, rounded to the values that files would hold."""
    mine = [index for batch in process_batches(count, batch_size, state) for index in batch]

    def batches() -> Batches:
        show_progress(pipeline, f"sampling {name}", shown=state.is_main_process)
        for indices, images in pipeline.batches(mine, method, seed, batch_size) if mine else ():
            values = from_tensor(images, pipeline.image_format)
            yield indices, to_tensor(values, pipeline.image_format.value_range)

    return ImageSet(name, count, batches)


def read_folder(
    folder: str, image_format: ImageFormat, batch_size: int, state: PartialState
) -> ImageSet:
    """Read the image files of a folder, in the order of their names."""
    files = list_image_files(folder)

    def batches() -> Batches:
        for batch in _with_progress(process_batches(len(files), batch_size, state), folder, state):
            yield batch, read_images([str(files[i]) for i in batch], image_format)

    return ImageSet(folder, len(files), batches)


def read_dataset(name: str, images: Images, batch_size: int, state: PartialState) -> ImageSet:
    """Read the images of a dataset."""

    def batches() -> Batches:
        for batch in _with_progress(process_batches(images.length, batch_size, state), name, state):
            indices = np.arange(batch.start, batch.stop)
            yield batch, images.tensors(indices, np.zeros(len(indices), dtype=bool))

    return ImageSet(name, images.length, batches)


def _with_progress(batches: list[range], name: str, state: PartialState) -> Iterable[range]:
    """Show the progress, on the main process, if it takes seconds."""
    main = state.is_main_process
    with ProgressBar(
        f"measuring {name}", "batch", total=len(batches), shown=main, delay=2
    ) as shown:
        for batch in batches:
            yield batch
            shown.update()


def list_image_files(folder: str) -> list[Path]:
    """List the image files of a folder, without the grid that sampling/sample.py writes.

    Raises:
        ValueError: If there are no images.
    """
    paths = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES)
    files = [path for path in paths if path.name != GRID]
    if not files:
        raise UserError(f"samples={folder} holds no image ({' '.join(sorted(SUFFIXES))})")
    return files


def first_image_shape(folder: str) -> tuple[int, int, int]:
    """The shape (C, H, W) of the first image of a folder."""
    file = list_image_files(folder)[0]
    array = np.load(file) if file.suffix == ".npy" else np.asarray(Image.open(file))
    height, width, channels = (*array.shape, 1)[:3]
    return channels, height, width
