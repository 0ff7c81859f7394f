"""Who is measured: sets of images as they come, each process with its share of the batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_sa import Pipeline
from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import ImageFormat, from_tensor, to_tensor
from ddpm_sa.samplers.method import Method
from sampling.common.image_files import read_images
from sampling.common.sample_folder import GRID

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy"}
Batches = Iterator[tuple[Sequence[int], Tensor]]


@dataclass(frozen=True)
class Entrant:
    """A set of images.

    Attributes:
        name: What the table calls it.
        count: How many images.
        batches: This process's, with their indices: (B, C, H, W) in [-1, 1], as files hold them.
    """

    name: str
    count: int
    batches: Callable[[], Batches]


def dealt(count: int, batch_size: int, here: PartialState) -> list[range]:
    """This process's batches of the images 0 ... count - 1.

    Whole ones, so that an image has the same neighbours, and the same bits, for any number of
    processes.
    """
    starts = range(0, count, batch_size)[here.process_index :: here.num_processes]
    return [range(start, min(start + batch_size, count)) for start in starts]


def samples_of(
    name: str,
    pipeline: Pipeline,
    method: Method,
    seed: int,
    count: int,
    batch_size: int,
    here: PartialState,
) -> Entrant:
    """Images that a model makes on the fly, with the values that their files would hold."""
    mine = [index for batch in dealt(count, batch_size, here) for index in batch]

    def batches() -> Batches:
        pipeline.set_progress_bar_config(
            desc=f"sampling {name}", unit="step", disable=not here.is_main_process
        )
        for indices, images in pipeline.batches(mine, method, seed, batch_size) if mine else ():
            values = from_tensor(images, pipeline.image_format)
            yield indices, to_tensor(values, pipeline.image_format.value_range)

    return Entrant(name, count, batches)


def files_of(
    folder: str, image_format: ImageFormat, batch_size: int, here: PartialState
) -> Entrant:
    """Images that lie in a folder, by name."""
    files = sample_files(folder)

    def batches() -> Batches:
        for batch in _watched(dealt(len(files), batch_size, here), folder, here):
            yield batch, read_images([str(files[i]) for i in batch], image_format)

    return Entrant(folder, len(files), batches)


def real_images(name: str, images: Images, batch_size: int, here: PartialState) -> Entrant:
    """Images of a data set."""

    def batches() -> Batches:
        for batch in _watched(dealt(images.length, batch_size, here), name, here):
            indices = np.arange(batch.start, batch.stop)
            yield batch, images.tensors(indices, np.zeros(len(indices), dtype=bool))

    return Entrant(name, images.length, batches)


def _watched(batches: list[range], name: str, here: PartialState) -> Iterable[range]:
    """With a bar, where there is a terminal and something to wait for."""
    off = None if here.is_main_process else True
    return tqdm(batches, f"measuring {name}", unit="batch", delay=2, leave=False, disable=off)


def sample_files(folder: str) -> list[Path]:
    """The images of a folder, without the grid that sampling/sample.py puts beside them.

    Raises:
        ValueError: If there are none.
    """
    found = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES)
    files = [path for path in found if path.name != GRID]
    if not files:
        raise ValueError(f"samples={folder} holds no image ({' '.join(sorted(SUFFIXES))})")
    return files


def first_image_shape(folder: str) -> tuple[int, int, int]:
    """(C, H, W) of the first image of a folder."""
    file = sample_files(folder)[0]
    array = np.load(file) if file.suffix == ".npy" else np.asarray(Image.open(file))
    height, width, channels = (*array.shape, 1)[:3]
    return channels, height, width
