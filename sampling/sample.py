"""Sample images from a model into a folder of files.

    python sampling/sample.py --model runs/mnist/model --num_images 64 --output_dir out
    torchrun --nproc_per_node 2 sampling/sample.py ...    (or accelerate launch) shares the work

Image i of a seed does not depend on the other images or on the number of processes. So a killed run
continues where it stopped, and more images can be added later. `samples.json` records how to
reproduce each image.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import PartialState

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.distributed import by_process_0, join, leave
from ddpm_sa.errors import UserError, advise_out_of_memory
from ddpm_sa.progress import show_progress
from ddpm_sa.settings.ranges import Count, Index, Rate
from sampling.common.conditions import ReadConditions, posterior_indices, read_conditions
from sampling.common.device import process_device
from sampling.common.memory import SMALLER_BATCH, check_batch_fits, check_num_images
from sampling.common.model_loading import describe_environment, model_identity
from sampling.common.output_folder import hold_output_folder
from sampling.common.sample_folder import GRID, prepare_folder, save_array, save_grid, save_images
from sampling.common.sample_stack import require_writer, save_stack
from sampling.common.sampler_settings import SamplerSettings
from sampling.common.stages import Stage, check_cascade, sample_batches
from sampling.figures.animation import save_denoising_animation
from sampling.figures.posterior import POSTERIOR, draw_posterior


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SamplerSettings):
    """Command-line settings of sampling/sample.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a DDPMPipeline's
            repository on the Hugging Face Hub, as owner/name or owner/name@revision.
        output_dir: Folder for the images 000000.png ..., grid.png and samples.json; .npy instead
            of .png for what a PNG cannot hold: floats, 16-bit colour, 2 or more than 4 channels.
        num_images: Sample the images 0 ... num_images - 1. If neither this nor indices is given: as
            many as there are class_labels, if there are several, else 16. For a network that is
            conditioned on images: so many samples of each, 8 by default.
        indices: Sample the images START ... STOP - 1 instead, given as START:STOP.
        batch_size: Images in a batch; changes speed and memory, not the images.
        class_labels: For a class-conditional network: one class, or one for each image, as in
            `--class_labels cat dog`: names, or numbers from 0 where no class has that name. By
            default image i has class i modulo the number of classes.
        condition: For a network that is conditioned on images: files, folders or .npy stacks of
            those; with several conditions, KIND=PATH of each. Sample 3 of condition 12 is
            000012-003.png, and posterior.png shows conditions, samples, mean and spread.
        truth: Images of the network's own format (of another size they are cropped and resized):
            shown beside the samples, and without `condition` what the conditions are made of.
        condition_noise: The level of noise to add to the condition, if the network was trained with
            condition.noise.
        then: Another model, whose condition the samples are, as in a cascade: its samples are
            written instead.
        then_noise: condition_noise of `then`.
        npz: Also write images.npz: all images as arr_0, (N, H, W, C).
        format: Also write all images as one stack, in the values that went into training: tiff
            (images.tif, with its axes), nifti (images.nii, a volume of voxels of 1 mm with the
            images along the third axis) or npy (images.npy, (N, H, W, C)). none: no stack.
        animation: Animate the denoising of the first images (16 at most) as denoising.gif or
            denoising.webp; samples them again.
        compile: torch.compile the network: pays off for many images on a GPU, but takes minutes at
            the start, and again for a last batch of another size. Not with guidance by attention,
            nor with cache_interval.
    """

    model: str
    output_dir: str
    num_images: Count | None = None
    indices: str | None = None
    batch_size: Count = 32
    class_labels: str | Index | list[str | Index] | None = None
    condition: list[str] = dataclasses.field(default_factory=list)
    truth: list[str] = dataclasses.field(default_factory=list)
    condition_noise: Rate = 0.0
    then: str | None = None
    then_noise: Rate = 0.0
    npz: bool = False
    format: Literal["none", "tiff", "nifti", "npy"] = "none"
    animation: Literal["none", "gif", "webp"] = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.selected_indices()

    def unused(self) -> dict[str, str]:
        return {} if self.then else {"then_noise": "no further model is given by --then"}

    def selected_indices(self, conditioned: bool = False) -> range:
        """The indices of the requested images, or samples of each condition."""
        if self.indices is None:
            usual = range(8 if conditioned else 16)
            listed = self.class_labels if isinstance(self.class_labels, list) else usual
            return range(len(listed) if self.num_images is None else self.num_images)
        if self.num_images is not None:
            raise UserError("num_images and indices exclude each other; give one")
        bounds = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.indices)
        start, stop = map(int, bounds.groups()) if bounds else (0, 0)
        if start >= stop:
            raise UserError(f"indices={self.indices!r} must be START:STOP, as in 100:200")
        return range(start, stop)


@advise_out_of_memory(SMALLER_BATCH)
def main() -> None:
    settings = parse(Settings)
    state = join()
    with hold_output_folder(settings.output_dir, shared=True):
        sample(settings, state)
    leave()


def sample(settings: Settings, state: PartialState) -> None:
    """Make the images that the folder lacks, shared by the processes, and the grid."""
    require_writer(settings.format)
    pipeline = settings.open(settings.model, settings.compile)
    image_format = pipeline.image_format
    conditions = read_conditions(settings.condition, settings.truth, image_format, settings.seed)
    indices: Sequence[int] = settings.selected_indices(conditions is not None)
    given = image_format
    if conditions is not None:
        indices = posterior_indices(len(conditions), indices)
    device = process_device(state, settings.device)
    check_num_images(len(indices))
    share = math.ceil(len(indices) / state.num_processes)
    check_batch_fits(pipeline, settings.batch_size, share, device)
    labels: dict[int, int | None] = dict.fromkeys(indices)
    classes = pipeline.class_labels(indices, settings.class_labels)
    if classes is not None:
        labels.update(zip(indices, classes.tolist(), strict=True))
    stages = open_stages(settings, pipeline, device)
    identity = stages[0].identity(conditions) | settings.record()
    identity |= {"seed": settings.seed, "dtype": settings.dtype}
    if settings.then is not None:
        identity |= {"then": model_identity(stages[1].pipeline) | {"noise": settings.then_noise}}
        image_format = stages[1].pipeline.image_format

    folder = Path(settings.output_dir)
    environment = describe_environment(settings.model, device, state.num_processes)
    start = partial(prepare_folder, folder, identity, environment, labels, image_format)
    missing = by_process_0(start, f"{folder} cannot be written")
    mine = missing[state.process_index :: state.num_processes]
    make_images(stages, settings, {index: labels[index] for index in mine}, conditions)
    state.wait_for_everyone()
    if state.is_main_process:
        save_grid(folder, indices, image_format)
        if settings.npz:
            save_array(folder, indices, image_format)
        if settings.format != "none":
            save_stack(folder, indices, image_format, settings.format)
        if settings.animation != "none":
            path = folder / f"denoising.{settings.animation}"
            method = stages[0].method
            save_denoising_animation(path, pipeline, method, settings.seed, indices[:16], labels)
        if conditions is not None:
            draw_posterior(folder / POSTERIOR, folder, indices, image_format, conditions, given)
        print(f"{len(missing)} images made, {len(indices) - len(missing)} existed: {folder / GRID}")


def open_stages(settings: Settings, pipeline: Pipeline, device: torch.device) -> list[Stage]:
    """The model, and the one that `then` names, on their device."""
    pipelines, noises = [pipeline], [settings.condition_noise, settings.then_noise]
    if settings.then is not None:
        pipelines.append(settings.open(settings.then, settings.compile))
        check_cascade(*pipelines)
    return [
        Stage(pipeline=each.to(device), method=settings.make_method(each), noise=noise)
        for each, noise in zip(pipelines, noises, strict=False)
    ]


def make_images(
    stages: Sequence[Stage],
    settings: Settings,
    labels: Mapping[int, int | None],
    conditions: ReadConditions | None,
) -> None:
    """Sample the images with these labels, writing each batch as it is done."""
    if not labels:
        return
    main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    show_progress(stages[0].pipeline, "sampling", shown=main)
    for later in stages[1:]:
        later.pipeline.set_progress_bar_config(disable=True)
    folder, image_format = Path(settings.output_dir), stages[-1].pipeline.image_format
    for batch in sample_batches(stages, labels, conditions, settings.seed, settings.batch_size):
        try:
            save_images(folder, batch, image_format)
        except OSError as error:
            raise UserError(
                f"images cannot be written to {folder}: {error}; repeat the command to continue"
            ) from error


if __name__ == "__main__":
    run_program(main)
