"""training/train.py without its output files, for benchmarks that train."""

import tempfile
from collections.abc import Sequence
from functools import partial

from accelerate.state import AcceleratorState

from benchmarks.trainers.transcribed import Run, Weights, copied
from ddpm_sa import Pipeline
from ddpm_sa.cli import parse
from ddpm_sa.data.load import open_images
from training.config import TrainConfig
from training.distributed.accelerator import make_accelerator, make_layout, resolve_settings
from training.ema import Averages
from training.loop import learning_rate, make_batches, train_steps
from training.network import build_network
from training.objective import make_loss, prepare
from training.scheduler import make_scheduler

RECIPE = "training/configs/mnist.yaml"


def our_config(words: Sequence[str]) -> TrainConfig:
    """Parse command-line arguments into the settings of a run that writes nothing."""
    quiet = ["--output_dir", tempfile.gettempdir(), "--tracker", "none", "--time_limit", "1e6"]
    return resolve_settings(parse(TrainConfig, [*words, *quiet]))


def our_run(config: TrainConfig) -> Run:
    """Train with these settings; yields after each update a function that copies the averages."""
    layout, images = make_layout(config), open_images(config.data)
    network = build_network(config.model, images, config.seed)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of another run, in its precision
    accelerator = make_accelerator(config, layout)
    prepared, optimizer = prepare(accelerator, network, config)
    averages = Averages(network, config.ema)
    loss = make_loss(make_scheduler(config), config.objective, images.format)
    batches = make_batches(config, images, layout, 0)
    lr, clip = partial(learning_rate, config.optim.for_steps(config.steps)), config.optim.grad_clip
    for progress in train_steps(accelerator, prepared, optimizer, loss, batches, lr, clip):
        averages.update(progress.step - 1)
        yield lambda: copied(averages.main.state_dict())


def our_pipeline(config: TrainConfig, weights: Weights) -> Pipeline:
    """A function that samples with these weights."""
    network = build_network(config.model, open_images(config.data), config.seed)
    network.load_state_dict(weights)
    return Pipeline(network, make_scheduler(config))
