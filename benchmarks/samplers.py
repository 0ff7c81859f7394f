"""Speed and quality of ways to sample a trained digit model: diffusers' pipelines and ours.

    python benchmarks/samplers.py --model runs/demo/model

For each way: network evaluations and seconds for an image; the Fréchet distance between its images
and real digits, in the pooled features of the classifier of benchmarks/judge.py; and, where no
noise is drawn, the distance (root mean square over pixels of [-1, 1]) to what 1000 steps of DDIM
make of the same x_T. Of distances between few images, compare those of one table.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import DDPMPipeline, DPMSolverMultistepScheduler
from torch import Tensor

from benchmarks.judge import moments, train_judge
from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.metrics.distances import frechet_distance
from ddpm_sa.pipeline import INITIAL_NOISE
from ddpm_sa.samplers.method import Method

AS_THE_PAPER = {"clip_sample": True, "timestep_spacing": "leading"}  # its chain, in DDIM's steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare.

    Attributes:
        model: A model folder that makes grey 32 x 32 digits.
        num_images: How many each way makes.
        batch_size: Images at once.
        steps: Steps of the fast ways, each number in turn.
        slow: Make the images of 1000 steps too, ours and diffusers'.
        epochs: How long the classifier learns.
        threads: Of the processor; as torch chooses, if not given.
    """

    model: str
    num_images: int = 256
    batch_size: int = 64
    steps: tuple[int, ...] = (10, 20)
    slow: bool = True
    epochs: int = 15
    threads: int | None = None


def main() -> None:
    settings = parse(Settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    pipeline = Pipeline.from_pretrained(settings.model)
    if pipeline.image_format.shape != (1, 32, 32):
        raise ValueError(f"the classifier reads 1 x 32 x 32 digits, not {pipeline.image_format}")
    judge, real, _ = train_judge(settings.epochs, held_out=2500)
    target = moments(judge, real)
    reference = None
    print(f"{settings.num_images} images, {torch.get_num_threads()} threads")
    print(
        "| way | evaluations | seconds an image | Fréchet distance | distance to 1000 steps |\n"
        "|---|---|---|---|---|"
    )
    for name, evaluations, draws, make in ways(settings, pipeline):
        begun = time.perf_counter()
        images = make()
        seconds = (time.perf_counter() - begun) / len(images)
        distance = frechet_distance(moments(judge, images), target)
        if reference is None and evaluations == 1000 and not draws:
            reference = images
        far = ""
        if reference is not None and not draws:
            far = f"{(images - reference).square().mean().sqrt():.4f}"
        print(f"| {name} | {evaluations} | {seconds:.4f} | {distance:.2f} | {far} |", flush=True)


def ways(
    settings: Settings, pipeline: Pipeline
) -> Iterator[tuple[str, int, bool, Callable[[], Tensor]]]:
    """Each sampler: its name, evaluations per image, whether it draws noise, and the function."""
    pipeline.set_progress_bar_config(disable=True)
    even = {"use_exponential_sigmas": True}

    def ours(method: Method) -> Callable[[], Tensor]:
        def make() -> Tensor:
            indices = range(settings.num_images)
            batches = pipeline.batches(indices, method, batch_size=settings.batch_size)
            return torch.cat([batch.images for batch in batches])

        return make

    if settings.slow:
        yield "ours, ddim", 1000, False, ours(Method(steps=1000))
        yield "diffusers' DDPMPipeline, as it comes", 1000, True, theirs_as_it_comes(settings)
    for steps in settings.steps:
        fast = theirs_with(settings, pipeline, steps)
        yield "diffusers' network, DPMSolverMultistepScheduler", steps, False, fast
        for name, options in (("dpmsolver++", {}), ("dpmsolver++, even", even)):
            for interval in (1, 2, 3):
                method = Method(
                    steps=steps,
                    scheduler="dpmsolver++",
                    scheduler_options=options,
                    cache_interval=interval,
                )
                reuse = f", deep part every {interval}" if interval > 1 else ""
                yield f"ours, {name}{reuse}", steps, False, ours(method)
        yield "ours, ddim", steps, False, ours(Method(steps=steps))
        clipped = Method(steps=steps, scheduler_options=AS_THE_PAPER)
        yield "ours, ddim, clipped, leading timesteps", steps, False, ours(clipped)
        method = Method(steps=steps, scheduler="euler_ancestral")
        yield "ours, euler_ancestral", steps, True, ours(method)


def theirs_as_it_comes(settings: Settings) -> Callable[[], Tensor]:
    """diffusers' own pipeline with its defaults."""

    def make() -> Tensor:
        theirs = DDPMPipeline.from_pretrained(settings.model)
        theirs.set_progress_bar_config(disable=True)
        parts = []
        for first in range(0, settings.num_images, settings.batch_size):
            count = min(settings.batch_size, settings.num_images - first)
            generator = torch.Generator().manual_seed(first)
            made: Any = theirs(batch_size=count, generator=generator, output_type="np")
            parts.append(torch.from_numpy(made.images).permute(0, 3, 1, 2) * 2 - 1)
        return torch.cat(parts)

    return make


def theirs_with(settings: Settings, pipeline: Pipeline, steps: int) -> Callable[[], Tensor]:
    """diffusers' network under its multistep solver, in the loop of its pipelines."""
    network: Any = DDPMPipeline.from_pretrained(settings.model).unet.eval()

    @torch.no_grad()
    def make() -> Tensor:
        parts = []
        for first in range(0, settings.num_images, settings.batch_size):
            last = min(first + settings.batch_size, settings.num_images)
            config = {**pipeline.scheduler.config, "timestep_spacing": "linspace"}
            scheduler: Any = DPMSolverMultistepScheduler.from_config(config)
            scheduler.set_timesteps(steps)
            x = pipeline.noise(INITIAL_NOISE, seed=0, indices=range(first, last))
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t).sample, t, x).prev_sample
            parts.append(x.clamp(-1, 1))
        return torch.cat(parts)

    return make


if __name__ == "__main__":
    run_program(main)
