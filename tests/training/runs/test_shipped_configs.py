"""No shipped configuration makes a common flag fail, and what follows another setting does."""

from pathlib import Path

import numpy as np
import pytest

from ddpm_sa.cli import parse
from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import ImageFormat
from tests.support.runs import ROOT
from training.config import TrainConfig
from training.draws import Layout
from training.loop import learning_rate
from training.network import build_network
from training.scheduler import make_scheduler

CONFIGS = sorted((ROOT / "training" / "configs").glob("*.yaml"))
COMMON = [
    "--steps 1",
    "--steps 500",
    "--steps 2000000",
    "--save_every 1",
    "--save_every 500",
    "--save_every 100000",
    "--sample_every 0",
    "--sample_every 7",
    "--log_every 1000",
    "--validate_every 3 --data.validation 0.1",
    "--batch_size 1",
    "--batch_size 2",
    "--batch_size 100",
    "--batch_size 256",
    "--micro_batch_size 1",
    "--micro_batch_size 48",
    "--micro_batch_size null",
    "--optim.warmup_steps 0",
    "--optim.warmup_steps 100000",
    "--optim.optimizer adam",
    "--optim.lr 1e-4",
    "--optim.decay_steps null",
    "--ema.decay 0.99",
    "--keep_checkpoints 1",
    "--keep_every 200",
    "--num_samples 1",
    "--seed 3",
    "--data.size 28",
    "--data.size 45x61",
    "--data.size 100",
    "--data.flip false",
    "--objective.prediction_type sample",
    "--objective.learned_variance true",
    "--schedule.kind quadratic",
    "--schedule.num_timesteps 100",
    "--time_limit 1",
]


def settings(path: Path, *flags: str) -> TrainConfig:
    return parse(TrainConfig, ["--config", str(path), "--data.source", "images", *flags])


@pytest.mark.parametrize("flag", COMMON)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_common_flag_fails(path, flag):
    config = settings(path, *flag.split())
    layout = Layout(config.batch_size, micro_batch_size=config.micro_batch_size)
    assert layout.accumulation * layout.micro == config.batch_size
    optim = config.optim.for_steps(config.steps)
    rates = [learning_rate(optim, step) for step in (0, 1, config.steps // 2, config.steps - 1)]
    assert all(0 <= rate <= optim.lr for rate in rates)
    assert make_scheduler(config).config["num_train_timesteps"] == config.schedule.num_timesteps


@pytest.mark.parametrize("size", ["8", "28", "45x61", "100"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_size_has_a_network_with_every_config(path, size):
    # Narrow networks of as many levels.
    levels = {"cifar10": 4, "lsun256": 6}.get(path.stem)
    narrow = ["--model.width=4"] if path.stem == "folder" else []
    if levels is not None:
        narrow = [f"--model.unet={{norm_num_groups: 4, block_out_channels: {[8] * levels}}}"]
    config = settings(path, "--data.size", size, *narrow)
    height, _, width = size.partition("x")
    shape = (int(height), int(width or height))
    pixels = np.zeros((1, *shape, 3))
    image_format = ImageFormat(channels=3, size=shape)
    images = Images(length=1, format=image_format, read=pixels.__getitem__)
    network = build_network(config.model, images, 0)
    assert network.config["in_channels"] == 3


@pytest.mark.parametrize(("name", "steps"), [("mnist", 1300), ("folder", 100_000)])
def test_learning_rate_falls_to_0_at_the_end_of_the_run(name, steps):
    path = ROOT / "training" / "configs" / f"{name}.yaml"
    # What these configurations computed when their decay was a number.
    assert settings(path).steps == steps
    assert settings(path).optim.for_steps(steps).decay_steps == steps
    shorter = settings(path, "--steps=5000", "--optim.warmup_steps=10")
    optim = shorter.optim.for_steps(shorter.steps)
    assert learning_rate(optim, 5000) == 0
    assert learning_rate(optim, 2505) == pytest.approx(optim.lr / 2)


def test_run_that_ends_within_its_warmup_has_no_decay():
    config = settings(ROOT / "training" / "configs" / "folder.yaml", "--steps=500")
    optim = config.optim.for_steps(config.steps)
    assert learning_rate(optim, 499) == pytest.approx(optim.lr * 499 / 1000)
    assert learning_rate(optim, 500) == pytest.approx(optim.lr / 2)
