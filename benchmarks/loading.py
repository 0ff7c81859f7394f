"""Images per second of the data loader, compared with the loader of diffusers' training script.

    python benchmarks/loading.py --data cifar10/train.parquet

All loaders yield batches of (B, 3, size, size), float32 in [-1, 1], shuffled and flipped at random.
Each round measures them one after the other; the table has medians over the rounds.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.dataset import Images, prefetch
from ddpm_sa.data.load import open_images
from training.config import DataConfig
from training.draws import Draws

Batches = Iterator[Tensor]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark."""

    data: str
    """A .parquet file of images, such as CIFAR-10's."""
    size: int = 32
    """Height and width."""
    batch_size: int = 128
    """Images per batch."""
    rounds: int = 5
    """Measurements of each loader."""
    seconds: float = 3.0
    """Duration of each measurement."""
    workers: int = 2
    """Threads or processes of loaders that have them."""


def ours(images: Images, settings: Settings) -> Batches:
    """Load as training/loop.py does, without noise and network."""
    draws = Draws(
        seed=0,
        batch_size=settings.batch_size,
        num_images=images.length,
        num_timesteps=1000,
        flip=True,
    )

    def make(step: int) -> Tensor:
        draw = draws(step)
        return images.tensors(draw.indices, draw.flips)

    return prefetch(make, count())


def diffusers_way(table: datasets.Dataset, settings: Settings, workers: int) -> Batches:
    """examples/unconditional_image_generation/train_unconditional.py, transcribed.

    Its torchvision transforms (Resize, CenterCrop, RandomHorizontalFlip, ToTensor, Normalize) are
    written out in Pillow and torch, as torchvision does them.
    """
    transformed = table.with_transform(partial(_augmented, size=settings.size))
    while True:
        yield from (
            batch["input"]
            for batch in DataLoader(
                transformed,  # type: ignore[arg-type]
                batch_size=settings.batch_size,
                shuffle=True,
                num_workers=workers,
            )
        )


def _augmented(examples: dict[str, list[Image.Image]], size: int) -> dict[str, list[Tensor]]:
    (column,) = examples
    return {"input": [_normalized(image.convert("RGB"), size) for image in examples[column]]}


def _normalized(image: Image.Image, size: int) -> Tensor:
    width, height = image.size
    if min(width, height) != size:  # Resize(size, BILINEAR): the shorter side
        scale = size / min(width, height)
        sides = max(size, int(width * scale)), max(size, int(height * scale))
        image = image.resize(sides, Image.Resampling.BILINEAR)
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))  # CenterCrop
    if torch.rand(1) < 0.5:  # RandomHorizontalFlip
        image = ImageOps.mirror(image)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # ToTensor
    return x.float().div(255).sub_(0.5).div_(0.5)  # Normalize([0.5], [0.5])


def copied(settings: Settings) -> Batches:
    """Copy batches in memory, the upper limit of the machine."""
    shape = (settings.batch_size, 3, settings.size, settings.size)
    # Larger than the caches of the CPU.
    source = torch.rand(2**28 // (4 * int(np.prod(shape))), *shape)
    for i in count():
        yield source[i % len(source)].clone()


def rate(batches: Batches, settings: Settings) -> float:
    """Measure images per second, after three warm-up batches."""
    for _ in islice(batches, 3):
        pass
    number, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < settings.seconds:
        number += len(next(batches))
    return number / passed


def main() -> None:
    settings = parse(Settings)
    torch.set_num_threads(1)  # what is measured is the loader, not torch's threads
    source = str(Path(settings.data).expanduser())
    config = partial(
        DataConfig, source=source, size=settings.size, channels=3, num_workers=settings.workers
    )
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        stored = open_images(config(cache_dir=cache))
        decoding = time.perf_counter() - began
        began = time.perf_counter()
        open_images(config(cache_dir=cache))
        opening = time.perf_counter() - began
        asked = open_images(config(cache_dir=cache, memory=0.0))
        table = datasets.load_dataset("parquet", data_files=source, split="train")
        column = next(
            name for name, kind in table.features.items() if isinstance(kind, datasets.Image)
        )
        table = table.select_columns(column)
        theirs = f"diffusers' script (transcribed), {settings.workers} worker processes"
        ways: dict[str, Callable[[], Batches]] = {
            "ours, from the store": lambda: ours(stored, settings),
            f"ours, decoded when asked for, {settings.workers} threads": lambda: ours(
                asked, settings
            ),
            "diffusers' script (transcribed), no workers": lambda: diffusers_way(
                table, settings, 0
            ),
            theirs: lambda: diffusers_way(table, settings, settings.workers),
            "a copy in memory: the machine's limit": lambda: copied(settings),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(settings.rounds):
            for name, way in ways.items():
                rates[name].append(rate(way(), settings))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best_of_theirs = max(value for name, value in medians.items() if name.startswith("diffusers"))
    print(
        f"{stored.length} images of {settings.size}x{settings.size}, batches of "
        f"{settings.batch_size}; decoded once in {decoding:.1f} s, opened again in {opening:.2f} s"
    )
    print("| way | images/s | lowest to highest | times diffusers' |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        print(
            f"| {name} | {medians[name]:,.0f} | {min(values):,.0f} to {max(values):,.0f} | "
            f"{medians[name] / best_of_theirs:.2g} |"
        )


if __name__ == "__main__":
    run_program(main)
