"""How good are these models: distances to the data, likelihood, copies, losses, side by side.

    python sampling/evaluate.py --model runs/mnist/model --data mnist5k --output_dir measured
    python sampling/evaluate.py --model A --model B --samples FOLDER --data FOLDER ...
    torchrun --nproc_per_node 2 sampling/evaluate.py ...    (or accelerate launch) shares the work

Prints a table and writes evaluation.json, with how to repeat it, and evaluation.png; with
--likelihood, --nearest and --losses likelihood.png, nearest.png and losses.png too. Images are made
on the fly as sampling/sample.py makes them, or read from a folder. docs/evaluation.md says what
each number means.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from accelerate import PartialState

from ddpm_sa import Pipeline
from ddpm_sa.cli import join_repeated_flags, parse, run_program
from ddpm_sa.data.config import DataConfig
from ddpm_sa.data.dataset import Images
from ddpm_sa.data.load import open_images
from ddpm_sa.distributed import by_process_0, join, leave
from ddpm_sa.metrics.features import open_features
from ddpm_sa.samplers.denoise import Method
from sampling.attention import made_folder, need_matplotlib
from sampling.common.device import device_of
from sampling.common.model_loading import ModelSettings, environment_of, identity_of
from sampling.common.sampler_settings import MethodSettings
from sampling.evaluation.held_out_loss import Looks, likelihood, losses
from sampling.evaluation.image_sets import (
    Entrant,
    data_of_run,
    files_of,
    first_shape,
    real_images,
    samples_of,
)
from sampling.evaluation.memorization import HELD_OUT, Kept, look_up
from sampling.evaluation.scores import Measured, measured, of_real
from sampling.evaluation.summary import lines_of, not_held_out, record_of, table, warnings_of, write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(MethodSettings, ModelSettings):
    """Which images to measure, and against which.

    Attributes:
        output_dir: Where evaluation.json and evaluation.png go.
        model: A model folder, a run, a checkpoint, or a repository on the hub; once for each, as in
            `--model A --model B`.
        samples: A folder of images that are there; once for each.
        data: The real images: mnist5k, a folder, a .parquet or .npy file, or the name of a data
            set on the hub; those of the first model's run, by its config.yaml, if not given.
        fit: How real images of another size get the model's, as in training: crop, pad, stretch.
        split: Of a hub data set, or of a folder of .parquet files.
        validation: Images held out of the real ones, as in training: a share (the same ones), a
            split, a folder or a file. They are measured too, to know what is near.
        features: efficientnet, which needs no download; inception, as published numbers have it;
            or package.module:name of yours, images (B, C, H, W) in [-1, 1] to (B, D).
        num_images: How many images each model makes.
        nearest: Look up so many images of each set among the training images: are they copies?
            Needs held-out images, to know what is near.
        likelihood: Bits a dimension of so many held-out images, by every timestep; each takes as
            many evaluations of the network as there are timesteps.
        losses: The loss by timestep of so many training and held-out images, and the least that a
            Gaussian would leave.
        batch_size: Images at once.
    """

    output_dir: str
    model: list[str] = dataclasses.field(default_factory=list)
    samples: list[str] = dataclasses.field(default_factory=list)
    data: str | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    split: str = "train"
    validation: float | str | None = None
    features: str = "efficientnet"
    num_images: int = 2000
    nearest: int = 0
    likelihood: int = 0
    losses: int = 0
    batch_size: int = 50

    def __post_init__(self) -> None:
        if not self.model and not self.samples:
            raise ValueError("nothing to measure: give --model or --samples")
        super().__post_init__()
        self.require_at_least(2, "num_images")
        self.require_at_least(1, "batch_size")
        self.require_at_least(0, "nearest", "likelihood", "losses")


def main() -> None:
    settings = parse(Settings, join_repeated_flags(sys.argv[1:], "model", "samples"))
    here = join()
    need_matplotlib()
    device = device_of(here, settings.device)
    extractor = open_features(settings.features, device)
    pipelines = {name: settings.open(name) for name in settings.model}
    identities = {name: identity_of(pipeline) for name, pipeline in pipelines.items()}
    for pipeline in pipelines.values():  # before its method: a weaker model goes where this is
        pipeline.to(device)
    methods = {name: settings.method(pipeline) for name, pipeline in pipelines.items()}
    images = real_of(settings, pipelines)
    folder = by_process_0(
        partial(made_folder, Path(settings.output_dir)), f"{settings.output_dir} cannot be made"
    )

    real = of_real(images, extractor, settings.batch_size, here)
    results: list[Measured] = []
    kept: dict[str, Kept] = {}
    for entrant in entrants_of(settings, pipelines, methods, images, here):
        kept[entrant.name] = Kept(settings.nearest)
        results.append(measured(kept[entrant.name].of(entrant), real, extractor))
    closer = looks(settings, pipelines, images, kept, here)
    if here.is_main_process:
        warnings = warnings_of(real, results)
        if images.validation is not None:
            warnings += not_held_out(settings.model, settings.validation)
        environment = environment_of(", ".join(pipelines), device, here.num_processes)
        record = record_of(dataclasses.asdict(settings), extractor, real, results)
        record |= {"warnings": warnings, "environment": environment | {"models": identities}}
        print(table(results, extractor))
        for line in [*lines_of(closer), *(f"warning: {warning}" for warning in warnings)]:
            print(line)
        write(folder, record, results, extractor, closer, images)
    leave()


def entrants_of(
    settings: Settings,
    pipelines: dict[str, Pipeline],
    methods: dict[str, Method],
    images: Images,
    here: PartialState,
) -> list[Entrant]:
    """Everything that is measured: held-out images, what models make, and folders."""
    size, count, seed = settings.batch_size, settings.num_images, settings.seed
    held_out = images.validation
    return [
        *([] if held_out is None else [real_images(HELD_OUT, held_out, size, here)]),
        *(
            samples_of(name, pipeline, methods[name], seed, count, size, here)
            for name, pipeline in pipelines.items()
        ),
        *(files_of(name, images.format, size, here) for name in settings.samples),
    ]


def looks(
    settings: Settings,
    pipelines: dict[str, Pipeline],
    images: Images,
    kept: dict[str, Kept],
    here: PartialState,
) -> Looks:
    """What was asked for beyond the distances."""
    seed, size, held_out = settings.seed, settings.batch_size, images.validation
    found = Looks()
    if settings.nearest:
        found.nearest = {name: look_up(some, images) for name, some in kept.items()}
    for name, pipeline in pipelines.items():
        if settings.losses:
            sets = {"training": images} | ({} if held_out is None else {HELD_OUT: held_out})
            found.losses[name] = losses(pipeline, sets, settings.losses, seed, size, here)
        if settings.likelihood:
            assert held_out is not None
            count = settings.likelihood
            found.likelihood[name] = likelihood(name, pipeline, held_out, count, seed, size, here)
    return found


def real_of(settings: Settings, pipelines: dict[str, Pipeline]) -> Images:
    """The real images, of the kind that all models and folders have.

    Raises:
        ValueError: If they cannot be read, or the models' images are not of one kind.
    """
    kinds = {name: pipeline.image_format for name, pipeline in pipelines.items()}
    networks = [pipeline.unet for pipeline in pipelines.values()]
    labelled = any(network.config.num_class_embeds is not None for network in networks)
    labelled &= bool(settings.likelihood or settings.losses)
    if not labelled:
        kinds = {name: dataclasses.replace(kind, labels=None) for name, kind in kinds.items()}
    config = data_of_run(settings.model[0]) if settings.model and settings.data is None else None
    if config is None and settings.data is None:
        raise ValueError("data is not given, and the model lies in no run folder; give --data")
    if kinds:
        first = next(iter(kinds))
        channels, size, value_range = (
            kinds[first].channels,
            kinds[first].size,
            kinds[first].value_range,
        )
    else:
        channels, *sides = first_shape(settings.samples[0])
        size, value_range = (sides[0], sides[1]), None
    if config is None:
        assert settings.data is not None
        config = DataConfig(source=settings.data, fit=settings.fit, split=settings.split)
    images = open_images(
        dataclasses.replace(
            config,
            size=f"{size[0]}x{size[1]}",
            channels=channels,
            value_range=value_range,
            validation=settings.validation or config.validation,
            class_conditional=labelled,
            labels=config.labels if labelled else None,
            label_dropout=0.0,
            streaming=False,
        )
    )
    if images.validation is None and (settings.nearest or settings.likelihood):
        raise ValueError(
            "nearest and likelihood are about held-out images; give --validation, such as 0.1"
        )
    for name, kind in kinds.items():
        if kind != images.format:
            raise ValueError(
                f"{name} makes {kind}, the images of {config.source} are {images.format}; only "
                "images of one kind can be compared"
            )
    return images


if __name__ == "__main__":
    run_program(main)
