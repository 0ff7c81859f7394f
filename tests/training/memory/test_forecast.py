"""The forecast of a run's memory against real training."""

import resource
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import ImageFormat
from tests.support.workers import CONTEXT
from training.config import (
    DataConfig,
    EMAConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from training.draws import Layout
from training.ema import Averages
from training.memory.forecast import Memory, forecast
from training.network import build_network
from training.objective import make_optimizer

MIB, GIB = 2**20, 2**30
IMAGES = Images(
    length=5000,
    format=ImageFormat(channels=1, size=(32, 32)),
    read=np.zeros((5000, 32, 32, 1), np.uint8).__getitem__,
)
CONFIG = TrainConfig(
    output_dir="unused",
    data=DataConfig(source="mnist5k"),
    model=ModelConfig(preset="mnist"),
    batch_size=8,
    mixed_precision="no",
)


CPU = torch.device("cpu")


def forecast_of(
    config: TrainConfig, layout: Layout | None = None, micro: int = 2, device: torch.device = CPU
) -> Memory:
    build = partial(build_network, config.model, IMAGES, 0)
    return forecast(config, layout or Layout(config.batch_size), build, GIB, device, micro)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_weights_gradients_moments_and_averages_are_counted_to_the_byte(optimizer) -> None:
    config = replace(CONFIG, optim=OptimConfig(optimizer=optimizer), ema=EMAConfig(more=[0.9, 0.5]))
    network = build_network(config.model, IMAGES, 0)
    averages = Averages(network, config.ema)
    updater = make_optimizer(network, config.optim)
    network(torch.zeros(2, 1, 32, 32), torch.zeros(2, dtype=torch.long)).sample.mean().backward()
    gradients = sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    updater.step()

    told = forecast_of(config)
    assert told.gradients == gradients
    assert told.weights == sum(parameter.nbytes for parameter in network.parameters())
    assert told.averages == sum(
        tensor.nbytes for ema in averages.by_name.values() for tensor in ema.averages.values()
    )
    assert told.optimizer == sum(
        value.nbytes for state in updater.state.values() for value in state.values()
    )


def test_muon_keeps_about_half_of_what_adam_keeps() -> None:
    adam, muon = (
        forecast_of(replace(CONFIG, optim=OptimConfig(optimizer=optimizer))).optimizer
        for optimizer in ("adam", "muon")
    )
    assert 0.5 < muon / adam < 0.55  # two moments for biases, norms and the ends


def test_every_setting_that_saves_memory_is_told_to() -> None:
    whole = forecast_of(CONFIG, micro=64).activations
    recomputed = replace(CONFIG, model=replace(CONFIG.model, gradient_checkpointing=True))
    assert forecast_of(recomputed, micro=64).activations < 0.6 * whole
    halved = replace(CONFIG, mixed_precision="bf16")
    assert forecast_of(halved, micro=64).activations < 0.7 * whole
    assert forecast_of(CONFIG, micro=32).activations < 0.6 * whole


def test_gpu_normalises_float16_in_float32_and_keeps_images_elsewhere() -> None:
    """CUDA's autocast does, the CPU's does not (test_gpu.py has the real one)."""
    halved = replace(CONFIG, mixed_precision="fp16")
    gpu = torch.device("cuda")
    cpus, gpus, whole = (
        forecast_of(config, micro=64, device=device)
        for config, device in [(halved, CPU), (halved, gpu), (CONFIG, CPU)]
    )
    assert 1.2 * cpus.activations < gpus.activations < 1.2 * whole.activations
    assert (cpus.images > 0, gpus.images) == (True, 0)


def test_gpu_normalises_bfloat16_as_it_is() -> None:
    halved = replace(CONFIG, mixed_precision="bf16")
    cpus, gpus = (forecast_of(halved, device=device) for device in (CPU, torch.device("cuda")))
    assert gpus.activations == cpus.activations


def test_sharded_network_is_a_part_and_a_full_average() -> None:
    whole = forecast_of(CONFIG)
    part = forecast_of(replace(CONFIG, sharding="fsdp"), Layout(8, processes=4))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(part, name) == getattr(whole, name) // 4
    assert part.averages == whole.averages // 4 + whole.averages


def test_processes_that_average_gradients_keep_them_twice() -> None:
    """DistributedDataParallel copies them into buckets."""
    assert (
        forecast_of(CONFIG, Layout(8, processes=2)).gradients == 2 * forecast_of(CONFIG).gradients
    )


def measure(answer: Path, config: TrainConfig, batch: int) -> None:
    """What a training step adds at most to the memory of a process of its own."""
    torch.set_num_threads(1)
    network = build_network(config.model, IMAGES, 0)
    optimizer = make_optimizer(network, config.optim)

    def step(size: int) -> None:
        x, t = torch.zeros(size, 1, 32, 32), torch.zeros(size, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            output = network(x, t).sample
        output.float().square().mean().backward()
        optimizer.step()

    step(2)  # memory that was freed before is used again without being seen
    before = psutil.Process().memory_info().rss
    step(batch)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    answer.write_text(str(most - before))


@pytest.mark.parametrize("case", ["plain", "bf16", "checkpointing"])
def test_activations_are_about_those_of_a_real_training_step(tmp_path, case) -> None:
    config = CONFIG
    if case == "bf16":
        config = replace(CONFIG, mixed_precision="bf16")
    elif case == "checkpointing":
        config = replace(CONFIG, model=ModelConfig(preset="mnist", gradient_checkpointing=True))
    process = CONTEXT.Process(target=measure, args=(tmp_path / "bytes", config, 128))
    process.start()
    told = forecast_of(config, micro=128).activations
    process.join()
    # The C library keeps some of what was freed, which varies with the sizes asked for.
    assert 0.6 < told / int((tmp_path / "bytes").read_text()) < 1.2
