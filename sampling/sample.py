"""Sample images from a model folder into a folder of files.

    python sampling/sample.py --model runs/mnist/model --num_images 64 --output_dir out

Image i of a seed is the same whatever else is asked for, so an interrupted run goes on where it was
and more images can be added later. `samples.json` says how to make each again.
"""

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.sampler import Method, rehearse
from ddpm_sa.solvers import Option
from sampling.device import device_named
from sampling.folder import GRID, begin, save_grid, save_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which images to make, and how.

    Attributes:
        model: A model folder, such as runs/mnist/model, or a DDPMPipeline's repository on the hub.
        output_dir: Where the images go: 000000.png ..., grid.png and samples.json; .npy in place
            of .png for what a PNG cannot hold: floats, 16-bit colour, 2 or more than 4 channels.
        num_images: Make the images 0 ... num_images - 1; 16 if neither this nor indices is given.
        indices: Make the images START ... STOP - 1 instead, as START:STOP.
        steps: Steps of the scheduler, at most the timesteps of the training.
        scheduler: ddpm, ddim, dpmsolver++, dpmsolver++sde, unipc, euler, euler_ancestral, heun or
            another of docs/sampling.md.
        scheduler_options: Settings of that scheduler, one flag each, as in
            `--scheduler_options.eta 0.5`; an unknown one is answered with those it has.
        seed: Which images; 0 or greater.
        batch_size: Images at once; changes speed and memory, not images.
        class_labels: For a class-conditional network: one class, or a list with one for each image;
            image i has class i modulo the number of classes, if not given.
        device: cpu, cuda, cuda:1, mps, ...; the accelerator if there is one, if not given.
        dtype: In which the network computes. bfloat16 is faster where the processor has it, and
            makes images that differ in small details.
    """

    model: str
    output_dir: str
    num_images: int | None = None
    indices: str | None = None
    steps: int = 50
    scheduler: str = "ddim"
    scheduler_options: dict[str, Option] = dataclasses.field(default_factory=dict)
    seed: int = 0
    batch_size: int = 32
    class_labels: int | list[int] | None = None
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or greater")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
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
    pipeline = Pipeline.from_pretrained(settings.model)
    indices = settings.chosen()
    labels: dict[int, int | None] = dict.fromkeys(indices)
    classes = pipeline.class_labels(indices, settings.class_labels)
    if classes is not None:
        labels.update(zip(indices, classes.tolist(), strict=True))
    method = Method(
        steps=settings.steps,
        scheduler=settings.scheduler,
        scheduler_options=settings.scheduler_options,
    )
    rehearse(method, pipeline.scheduler)  # refuses in time
    what_matters = _what_matters(settings, pipeline)
    device = device_named(settings.device)
    pipeline.to(device)
    if settings.dtype == "bfloat16":
        pipeline.unet.bfloat16()  # diffusers' .to(dtype) prints a warning about no modules
    environment = {
        "model": settings.model,
        "device": str(device),
        "batch_size": settings.batch_size,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }

    folder = Path(settings.output_dir)
    missing = begin(folder, what_matters, environment, labels, pipeline.image_format)
    if missing:
        pipeline.set_progress_bar_config(desc="sampling", unit="step")
        for batch in pipeline.batches(
            missing,
            method,
            settings.seed,
            settings.batch_size,
            [label for index in missing if (label := labels[index]) is not None] or None,
        ):
            save_images(folder, batch, pipeline.image_format)
    save_grid(folder, indices, pipeline.image_format)
    print(f"{len(missing)} images made, {len(indices) - len(missing)} were there: {folder / GRID}")


def _what_matters(settings: Settings, pipeline: Pipeline) -> dict[str, Any]:
    """All that an image depends on besides its index and class."""
    weights = hashlib.sha256()
    for name, tensor in pipeline.unet.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.contiguous().view(torch.uint8).numpy().data)
    config = pipeline.scheduler.config
    return {
        "weights_sha256": weights.hexdigest(),
        "trained_with": {name: config[name] for name in config if not name.startswith("_")},
        "scheduler": settings.scheduler,
        "scheduler_options": settings.scheduler_options,
        "steps": settings.steps,
        "seed": settings.seed,
        "dtype": settings.dtype,
    }


if __name__ == "__main__":
    run_program(main)
