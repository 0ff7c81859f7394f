"""Evaluate models side by side: distances to the data, likelihood, memorisation, losses.

    python sampling/evaluate.py --model runs/mnist/model --data mnist5k --output_dir measured
    python sampling/evaluate.py --model A B --samples FOLDER --data FOLDER ...
    torchrun --nproc_per_node 2 sampling/evaluate.py ...    (or accelerate launch) shares the work

Prints a table and writes evaluation.json, which records how to repeat it, and evaluation.png;
--likelihood, --nearest and --losses also write likelihood.png, nearest.png and losses.png. Images
are sampled on the fly as by sampling/sample.py, or read from a folder. docs/evaluation.md explains
each number.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from accelerate import PartialState

from ddpm_sa import Pipeline
from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.config import HeldOut
from ddpm_sa.data.dataset import Images
from ddpm_sa.distributed import join, leave
from ddpm_sa.errors import UserError, advise_out_of_memory
from ddpm_sa.memory.allocator import keep_freed_memory
from ddpm_sa.metrics.features import open_features
from ddpm_sa.samplers.method import Method
from ddpm_sa.settings.ranges import Count, Index, Several
from sampling.common.device import process_device
from sampling.common.memory import SMALLER_BATCH, check_batch_fits, check_num_images
from sampling.common.model_loading import describe_environment, model_identity
from sampling.common.output_folder import hold_output_folder, require_matplotlib
from sampling.common.sampler_settings import SamplerSettings
from sampling.evaluation.held_out_loss import Diagnostics, evaluate_likelihood, measure_losses
from sampling.evaluation.image_sets import (
    ImageSet,
    read_dataset,
    read_folder,
    sample_model,
)
from sampling.evaluation.memorization import HELD_OUT, FirstImages, find_nearest
from sampling.evaluation.real_data import open_real_images
from sampling.evaluation.scores import Scores, score_images, summarise_reference
from sampling.evaluation.summary import (
    describe_diagnostics,
    find_warnings,
    format_table,
    make_record,
    warn_if_not_held_out,
    write_evaluation,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SamplerSettings):
    """Command-line settings of sampling/evaluate.py.

    Attributes:
        output_dir: Folder for evaluation.json and evaluation.png.
        model: Model folders, runs, checkpoints, or repositories on the Hugging Face Hub, as in
            `--model A B`.
        samples: Folders of images.
        data: The real images: mnist5k, a folder, a .parquet or .npy file, or a dataset on the Hub;
            by default the data of the first model's run, from its config.yaml.
        fit: How real images of another size get the model's, as in training: crop, pad, stretch.
        split: Split of a folder or of a dataset on the Hub, as in training; by default that of the
            first model's run, or train with --data.
        validation: Held-out images, as in training: a share of the data (the same images), another
            split, a folder or a file; by default those of the first model's run, unless --data is
            given. They are evaluated too, for comparison.
        features: efficientnet, which needs no download; inception, as in published numbers; pixels,
            brightness and contrast in a coarse grid, for images of any number of channels; or a
            function of yours as package.module:name, from (B, C, H, W) in [-1, 1] to (B, D).
        num_images: Number of images to sample from each model.
        nearest: Number of images of each set to compare with the training images, to find memorised
            ones. Needs held-out images for calibration.
        likelihood: Number of held-out images for the bits per dimension; each takes one evaluation
            of the network per timestep.
        losses: Number of training and of held-out images for the loss by timestep, next to the
            optimum for Gaussian data.
        batch_size: Images in a batch.
    """

    output_dir: str
    model: list[str] = dataclasses.field(default_factory=list)
    samples: list[str] = dataclasses.field(default_factory=list)
    data: str | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    split: str | None = None
    validation: HeldOut | str | None = None
    features: str = "efficientnet"
    num_images: Several = 2000
    nearest: Index = 0
    likelihood: Index = 0
    losses: Index = 0
    batch_size: Count = 50

    def __post_init__(self) -> None:
        if not self.model and not self.samples:
            raise UserError("nothing to evaluate: give --model or --samples")
        super().__post_init__()

    def unused(self) -> dict[str, str]:
        unused = {}
        if self.data is None:
            unused["fit"] = "without --data, the real images are fitted as in the first model's run"
        if not self.model:
            names = {field.name for field in dataclasses.fields(SamplerSettings)} - {"device"}
            names |= {"num_images", "likelihood", "losses"}
            unused |= dict.fromkeys(names, "no --model is given, and --samples are not sampled")
        return unused


@advise_out_of_memory(SMALLER_BATCH)
def main() -> None:
    settings = parse(Settings)
    keep_freed_memory()
    state = join()
    require_matplotlib()
    with hold_output_folder(settings.output_dir, shared=True):
        evaluate(settings, state)
    leave()


def evaluate(settings: Settings, state: PartialState) -> None:
    """Score the image sets and run the diagnostics, shared by the processes."""
    device = process_device(state, settings.device)
    check_num_images(settings.num_images)
    extractor = open_features(settings.features, device)
    pipelines = {name: settings.open(name) for name in settings.model}
    for pipeline in pipelines.values():
        pipeline.condition([0])  # raises for one that needs images, which there are none of
    identities = {name: model_identity(pipeline) for name, pipeline in pipelines.items()}
    for pipeline in (
        pipelines.values()
    ):  # before settings.make_method: the weaker model of guidance goes to the same device
        check_batch_fits(pipeline, settings.batch_size, settings.num_images, device)
        pipeline.to(device)
    methods = {name: settings.make_method(pipeline) for name, pipeline in pipelines.items()}
    images = open_real_images(
        pipelines,
        settings.samples,
        data=settings.data,
        fit=settings.fit,
        split=settings.split,
        validation=settings.validation,
        need_labels=bool(settings.likelihood or settings.losses),
        need_held_out=bool(settings.nearest or settings.likelihood),
    )
    real = summarise_reference(images, extractor, settings.batch_size, state)
    results: list[Scores] = []
    first_images: dict[str, FirstImages] = {}
    for image_set in open_image_sets(settings, pipelines, methods, images, state):
        first = first_images[image_set.name] = FirstImages(settings.nearest)
        results.append(score_images(first.collect_from(image_set), real, extractor))
    diagnostics = run_diagnostics(settings, pipelines, images, first_images, state)
    if state.is_main_process:
        warnings = [*images.notes, *find_warnings(real, results)]
        if images.validation is not None:
            warnings += warn_if_not_held_out(settings.model, settings.validation, images.validation)
        environment = describe_environment(", ".join(pipelines), device, state.num_processes)
        record = make_record(dataclasses.asdict(settings), extractor, real, results)
        record |= {"warnings": warnings, "environment": environment | {"models": identities}}
        if (split := images.describe_split()) is not None:
            record["data"] |= {"split": split}
            print(f"data: split {split}")
        print(format_table(results, extractor))
        for line in [
            *describe_diagnostics(diagnostics),
            *(f"warning: {warning}" for warning in warnings),
        ]:
            print(line)
        folder = Path(settings.output_dir)
        write_evaluation(folder, record, results, extractor, diagnostics, images)


def open_image_sets(
    settings: Settings,
    pipelines: dict[str, Pipeline],
    methods: dict[str, Method],
    images: Images,
    state: PartialState,
) -> list[ImageSet]:
    """The image sets to evaluate: held-out images, samples of each model, and folders."""
    size, count, seed = settings.batch_size, settings.num_images, settings.seed
    held_out = images.validation
    return [
        *([] if held_out is None else [read_dataset(HELD_OUT, held_out, size, state)]),
        *(
            sample_model(name, pipeline, methods[name], seed, count, size, state)
            for name, pipeline in pipelines.items()
        ),
        *(read_folder(name, images.format, size, state) for name in settings.samples),
    ]


def run_diagnostics(
    settings: Settings,
    pipelines: dict[str, Pipeline],
    images: Images,
    first_images: dict[str, FirstImages],
    state: PartialState,
) -> Diagnostics:
    """Run the requested diagnostics: nearest training images, losses, likelihood."""
    seed, size, held_out = settings.seed, settings.batch_size, images.validation
    diagnostics = Diagnostics()
    if settings.nearest:
        diagnostics.nearest = {
            name: find_nearest(first, images) for name, first in first_images.items()
        }
    for name, pipeline in pipelines.items():
        if settings.losses:
            sets = {"training": images} | ({} if held_out is None else {HELD_OUT: held_out})
            diagnostics.losses[name] = measure_losses(
                pipeline, sets, settings.losses, seed, size, state
            )
        if settings.likelihood:
            assert held_out is not None
            count = settings.likelihood
            diagnostics.likelihood[name] = evaluate_likelihood(
                name, pipeline, held_out, count, seed, size, state
            )
    return diagnostics


if __name__ == "__main__":
    run_program(main)
