"""Repeat experiments of Ho et al. 2020 on a trained model: tables 1 and 4, figures 5 to 8.

    python sampling/paper.py --model runs/cifar10 --data uoft-cs/cifar10 --validation test \\
        --output_dir paper
    torchrun --nproc_per_node 8 sampling/paper.py ...    (or accelerate launch) shares the work

Each table is written as .json with the command that repeats it, each figure as .png. docs/paper.md
lists the cost of each and the results so far.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate import PartialState

from ddpm_sa.cli import command_line, parse, run_program
from ddpm_sa.data.config import HeldOut
from ddpm_sa.distributed import join, leave
from ddpm_sa.errors import UserError, advise_out_of_memory
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.metrics.features import open_features
from ddpm_sa.progress import show_progress
from ddpm_sa.settings.ranges import Count, Several
from sampling.common.device import process_device
from sampling.common.memory import SMALLER_BATCH, check_batch_fits
from sampling.common.model_loading import ModelSettings, describe_environment, model_identity
from sampling.common.output_folder import (
    hold_output_folder,
    require_matplotlib,
)
from sampling.common.sampler_settings import SamplerSettings
from sampling.evaluation.paper_experiments import EXPERIMENTS, ExperimentContext
from sampling.evaluation.real_data import open_real_images

Experiment = Literal["table1", "table4", "figure6", "figure7", "figure8"]
KNOWN: tuple[Experiment, ...] = get_args(Experiment)
NEED_IMAGES = {"table1", "table4", "figure8"}
USED_BY = {
    **dict.fromkeys(("data", "fit", "split", "validation"), NEED_IMAGES),
    **{name: {"table1"} for name in ("features", "num_images")},
    **{name: {"table1", "table4"} for name in ("likelihood", "batch_size")},
    "steps": {"table1", "figure6", "figure7", "figure8"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """Command-line settings of sampling/paper.py.

    Attributes:
        model: A model folder, a run, a checkpoint, or a repository on the Hugging
            Face Hub; it must be unconditional.
        output_dir: Folder for the tables and figures.
        experiments: table1 (class score, Fréchet distance, bits per dimension), table4 (rate and
            distortion, with figure 5), figure6 (predicted images during sampling), figure7 (images
            that share a latent), figure8 (interpolations at a noise level).
        data: Training images, for the Fréchet distance; by default those of the model's run, from
            its config.yaml.
        fit: How images of another size are fitted, as in training: crop, pad, stretch.
        split: Split of a folder, or of a dataset on the Hub; by default the run's, or train.
        validation: Held-out images, for the bits per dimension and figure 8: a split (such as
            CIFAR-10's test), a folder, a file, or a share of the data; by default the run's.
        features: inception, as in the paper; efficientnet, which needs no download; or a function
            of yours as package.module:name.
        num_images: Number of images to sample for table 1; 50,000 in the paper.
        likelihood: Number of held-out images for the bits per dimension; CIFAR-10 has 10,000.
        steps: Sampling steps; by default all training timesteps, as in the paper.
        batch_size: Images in a batch.
    """

    model: str
    output_dir: str
    experiments: list[Experiment] = dataclasses.field(default_factory=lambda: list(KNOWN))
    data: str | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    split: str | None = None
    validation: HeldOut | str | None = None
    features: str = "inception"
    num_images: Several = 50_000
    likelihood: Count = 10_000
    steps: Count | None = None
    batch_size: Count = 100

    def __post_init__(self) -> None:
        if not self.experiments:
            raise UserError(f"experiments=[] must name at least one of {', '.join(KNOWN)}")
        super().__post_init__()

    def unused(self) -> dict[str, str]:
        unused = {
            name: f"only {', '.join(sorted(experiments))} of the experiments use it"
            for name, experiments in USED_BY.items()
            if not experiments & {*self.experiments}
        }
        if self.data is None:
            unused["fit"] = "without --data, the images are fitted as in the model's run"
        return unused


@advise_out_of_memory(SMALLER_BATCH)
def main() -> None:
    settings = parse(Settings)
    state = join()
    require_matplotlib()
    with hold_output_folder(settings.output_dir, shared=True):
        run_experiments(settings, state)
    leave()


def run_experiments(settings: Settings, state: PartialState) -> None:
    """Run the experiments, shared by the processes."""
    device = process_device(state, settings.device)
    pipeline = settings.open(settings.model)
    check_batch_fits(pipeline, settings.batch_size, settings.num_images, device)
    if pipeline.unet.config["num_class_embeds"] is not None:
        raise UserError("the paper's networks are unconditional; this one is class-conditional")
    steps = settings.steps or pipeline.scheduler.config.num_train_timesteps
    method = SamplerSettings(steps=steps, scheduler="ddpm").make_method(pipeline)
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
    environment = describe_environment(settings.model, device, state.num_processes)
    environment |= model_identity(pipeline)
    folder = Path(settings.output_dir)
    pipeline.to(device)
    show_progress(pipeline, "sampling", shown=state.is_main_process)
    context = ExperimentContext(
        name=settings.model,
        pipeline=pipeline,
        method=method,
        images=images,
        extractor=extractor,
        num_images=settings.num_images,
        num_likelihood=settings.likelihood,
        seed=settings.seed,
        batch_size=settings.batch_size,
        state=state,
        folder=folder,
    )
    for name in KNOWN:
        if name in settings.experiments:
            result = EXPERIMENTS[name](context)
            if state.is_main_process and result:
                record = {
                    "command": command_line(),
                    "settings": dataclasses.asdict(settings),
                    "environment": environment,
                    name: result,
                }
                with write_atomically(folder / f"{name}.json") as aside:
                    aside.write_text(json.dumps(record, indent=1) + "\n")
    state.wait_for_everyone()


if __name__ == "__main__":
    run_program(main)
