"""Sample images from a model folder into a folder of files.

    python sampling/sample.py --model runs/mnist/model --num_images 64 --output_dir out
    torchrun --nproc_per_node 2 sampling/sample.py ...    (or accelerate launch) shares the work

Image i of a seed is the same whatever else is asked for and however many processes make it. So a
run that was killed goes on where it was, and more images can be added later. `samples.json` says
how to make each again.
"""

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.distributed import by_process_0, join, leave
from ddpm_sa.samplers.method import Method
from sampling.common.device import device_of
from sampling.common.model_loading import ModelSettings, environment_of, identity_of
from sampling.common.sample_folder import GRID, begin, save_array, save_grid, save_images
from sampling.common.sampler_settings import MethodSettings
from sampling.figures.animation import save_animation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(MethodSettings, ModelSettings):
    """Which images to make, and how.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the hub.
        output_dir: Where the images go: 000000.png ..., grid.png and samples.json; .npy in place
            of .png for what a PNG cannot hold: floats, 16-bit colour, 2 or more than 4 channels.
        num_images: Make the images 0 ... num_images - 1; 16 if neither this nor indices is given.
        indices: Make the images START ... STOP - 1 instead, as START:STOP.
        batch_size: Images at once; changes speed and memory, not images.
        class_labels: For a class-conditional network: one class, or a list with one for each image;
            image i has class i modulo the number of classes, if not given.
        npz: Write images.npz too: arr_0, all images asked for, (N, H, W, C).
        animation: Show how the first images (16 at most) come out of noise, as denoising.gif or
            denoising.webp; makes those again.
        compile: torch.compile the network first: minutes at the start, and again for a last batch
            of another size, for many images on a GPU. Not with guidance by attention, nor with
            cache_interval.
    """

    model: str
    output_dir: str
    num_images: int | None = None
    indices: str | None = None
    batch_size: int = 32
    class_labels: int | list[int] | None = None
    npz: bool = False
    animation: Literal["none", "gif", "webp"] = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "batch_size")
        self.chosen()

    def chosen(self) -> range:
        """The indices of the images asked for."""
        if self.indices is None:
            count = 16 if self.num_images is None else self.num_images
            if count < 1:
                raise ValueError(f"num_images={count} must be at least 1")
            return range(count)
        if self.num_images is not None:
            raise ValueError("num_images and indices are two ways to say the same; give one")
        start, colon, stop = self.indices.partition(":")
        if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
            raise ValueError(f"indices={self.indices!r} must be START:STOP, as in 100:200")
        return range(int(start), int(stop))


def main() -> None:
    settings = parse(Settings)
    here = join()
    pipeline = settings.open(settings.model, settings.compile)
    indices, image_format = settings.chosen(), pipeline.image_format
    labels: dict[int, int | None] = dict.fromkeys(indices)
    classes = pipeline.condition(indices, settings.class_labels).class_labels
    if classes is not None:
        labels.update(zip(indices, classes.tolist(), strict=True))
    what_matters = identity_of(pipeline) | settings.record()
    what_matters |= {"seed": settings.seed, "dtype": settings.dtype}
    device = device_of(here, settings.device)
    pipeline.to(device)
    method = settings.method(pipeline)

    folder = Path(settings.output_dir)
    environment = environment_of(settings.model, device, here.num_processes)
    start = partial(begin, folder, what_matters, environment, labels, image_format)
    missing = by_process_0(start, f"{folder} cannot be written")
    mine = missing[here.process_index :: here.num_processes]
    make_images(pipeline, settings, method, {index: labels[index] for index in mine})
    here.wait_for_everyone()
    if here.is_main_process:
        save_grid(folder, indices, image_format)
        if settings.npz:
            save_array(folder, indices, image_format)
        if settings.animation != "none":
            path = folder / f"denoising.{settings.animation}"
            save_animation(path, pipeline, method, settings.seed, indices[:16], labels)
        print(
            f"{len(missing)} images made, {len(indices) - len(missing)} were there: {folder / GRID}"
        )
    leave()


def make_images(
    pipeline: Pipeline, settings: Settings, method: Method, labels: Mapping[int, int | None]
) -> None:
    """Write these images as they come."""
    if not labels:
        return
    main = torch.distributed.get_rank() == 0 if torch.distributed.is_initialized() else True
    pipeline.set_progress_bar_config(desc="sampling", unit="step", disable=not main)
    folder, classes = Path(settings.output_dir), [c for c in labels.values() if c is not None]
    indices = list(labels)
    condition = pipeline.condition(indices, classes or None)
    for batch in pipeline.batches(
        indices, method, settings.seed, settings.batch_size, condition=condition
    ):
        try:
            save_images(folder, batch, pipeline.image_format)
        except OSError as error:
            raise ValueError(
                f"images cannot be written to {folder}: {error}; start again to go on"
            ) from error


if __name__ == "__main__":
    run_program(main)
