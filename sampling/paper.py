"""The experiments of Ho et al. 2020 on a trained model: tables 1 and 4, figures 5 to 8.

    python sampling/paper.py --model runs/cifar10 --data uoft-cs/cifar10 --validation test \\
        --output_dir paper
    torchrun --nproc_per_node 8 sampling/paper.py ...    (or accelerate launch) shares the tables

Every table leaves a .json with the command that repeats it, every figure a .png. docs/paper.md says
what each costs, and what came of those that were run.
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa.atomic_files import write_atomically
from ddpm_sa.cli import command_line, parse, run_program
from ddpm_sa.distributed import by_process_0, join, leave
from ddpm_sa.metrics.features import open_features
from sampling.common.device import device_of
from sampling.common.model_loading import ModelSettings, environment_of, identity_of
from sampling.common.output_folder import (
    make_output_folder,
    require_matplotlib,
)
from sampling.common.sampler_settings import MethodSettings
from sampling.evaluation.paper_experiments import EXPERIMENTS, Run
from sampling.evaluation.real_data import open_real_images

Experiment = Literal["table1", "table4", "figure6", "figure7", "figure8"]
KNOWN: tuple[Experiment, ...] = get_args(Experiment)
NEED_IMAGES = {"table1", "table4", "figure8"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """Which experiments, of which model, on which images.

    Attributes:
        model: A model folder, a run, a checkpoint, or a repository on the hub;
            unconditional.
        output_dir: Where the tables and figures go.
        experiments: table1 (class score, Fréchet distance, bits a dimension), table4 (rate and
            distortion, with figure 5), figure6 (images as they come about), figure7 (images that
            share a latent), figure8 (images mixed at a noise level).
        data: The images of the training, for the Fréchet distance; those of the model's run, by its
            config.yaml, if not given.
        fit: How images of another size get the model's, as in training: crop, pad, stretch.
        split: Of a hub data set, or of a folder of .parquet files.
        validation: Images that were not trained on, for bits a dimension and figure 8: a split (as
            CIFAR-10's test), a folder, a file, or a share of the data; the run's, if not given.
        features: inception, as the paper has it; efficientnet, which needs no download; or
            package.module:name of yours.
        num_images: How many images are made for table 1; the paper's are 50,000.
        likelihood: Of how many held-out images the bits are the mean; CIFAR-10 has 10,000.
        steps: Of the sampler; all timesteps of the training, as the paper has it, if not given.
        batch_size: Images at once.
    """

    model: str
    output_dir: str
    experiments: list[Experiment] = dataclasses.field(default_factory=lambda: list(KNOWN))
    data: str | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    split: str = "train"
    validation: float | str | None = None
    features: str = "inception"
    num_images: int = 50_000
    likelihood: int = 10_000
    steps: int | None = None
    batch_size: int = 100

    def __post_init__(self) -> None:
        if not self.experiments:
            raise ValueError(f"experiments are {', '.join(KNOWN)}; name one")
        super().__post_init__()
        self.require_at_least(2, "num_images")
        self.require_at_least(1, "likelihood", "batch_size")


def main() -> None:
    settings = parse(Settings)
    here = join()
    require_matplotlib()
    device = device_of(here, settings.device)
    pipeline = settings.open(settings.model)
    if pipeline.unet.config["num_class_embeds"] is not None:
        raise ValueError("the paper's networks are unconditional; this one is told classes")
    steps = settings.steps or pipeline.scheduler.config.num_train_timesteps
    method = MethodSettings(steps=steps, scheduler="ddpm").method(pipeline)
    images = None
    if NEED_IMAGES & {*settings.experiments}:
        images = open_real_images(
            {settings.model: pipeline},
            data=settings.data,
            fit=settings.fit,
            split=settings.split,
            validation=settings.validation,
            need_labels=False,  # the model is unconditional
            need_held_out=True,
        )
    wants_features = "table1" in settings.experiments
    extractor = open_features(settings.features, device) if wants_features else None
    environment = environment_of(settings.model, device, here.num_processes)
    environment |= identity_of(pipeline)
    folder = by_process_0(
        partial(make_output_folder, Path(settings.output_dir)),
        f"{settings.output_dir} cannot be created",
    )
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    run = Run(
        name=settings.model,
        pipeline=pipeline,
        method=method,
        images=images,
        extractor=extractor,
        num_images=settings.num_images,
        num_likelihood=settings.likelihood,
        seed=settings.seed,
        batch_size=settings.batch_size,
        here=here,
        folder=folder,
    )
    for name in KNOWN:
        if name in settings.experiments:
            found = EXPERIMENTS[name](run)
            if here.is_main_process and found:
                record = {
                    "command": command_line(),
                    "settings": dataclasses.asdict(settings),
                    "environment": environment,
                    name: found,
                }
                with write_atomically(folder / f"{name}.json") as aside:
                    aside.write_text(json.dumps(record, indent=1) + "\n")
    here.wait_for_everyone()
    leave()


if __name__ == "__main__":
    run_program(main)
