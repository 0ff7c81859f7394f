"""The forecast of a run's memory against real training, and what follows from it."""

import ctypes
import resource
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

import ddpm_sa.memory.available
import training.train
from ddpm_sa.data.dataset import Images
from ddpm_sa.errors import OutOfMemoryError
from ddpm_sa.image_format import ImageFormat
from tests.support.runs import arguments, checkpoint, metrics, picture_folder, run_here
from tests.support.workers import CONTEXT, Workers
from training.config import (
    DataConfig,
    EMAConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from training.draws import Layout
from training.ema import Averages
from training.memory import Memory, choose_micro_batch, divisors, fit, forecast
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


def forecast_of(config: TrainConfig, layout: Layout | None = None, micro: int = 2) -> Memory:
    build = partial(build_network, config.model, IMAGES, 0)
    return forecast(config, layout or Layout(config.batch_size), build, GIB, True, micro)


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
    assert 0.75 < told / int((tmp_path / "bytes").read_text()) < 1.2


def affine(micro: int) -> Memory:
    """10 MiB for each image, and 100 besides."""
    parts = dict.fromkeys(("weights", "averages", "optimizer", "gradients"), 25 * MIB)
    return Memory(**parts, activations=micro * 10 * MIB, images=0, available=0)


def test_auto_takes_the_largest_divisor_that_fits_with_room_to_spare() -> None:
    assert choose_micro_batch(24, 2000 * MIB, affine) == 24
    assert choose_micro_batch(24, 275 * MIB, affine) == 12  # a fifth is left
    assert choose_micro_batch(24, 274 * MIB, affine) == 8
    assert choose_micro_batch(24, 50 * MIB, affine) == 1
    assert choose_micro_batch(7, 200 * MIB, affine) == 1


def test_auto_keeps_the_micro_batch_of_a_run_that_is_resumed_if_it_fits() -> None:
    assert choose_micro_batch(24, 2000 * MIB, affine, previous=6) == 6
    assert choose_micro_batch(24, 225 * MIB, affine, previous=12) == 8
    assert choose_micro_batch(24, 2000 * MIB, affine, previous=5) == 24  # of other processes


def test_divisors_are_all_and_ascending() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(49) == [1, 7, 49]
    assert divisors(1) == [1]


@pytest.fixture
def memory_is(monkeypatch):
    """Say how many bytes the machine has left."""

    def say(amount: float) -> None:
        monkeypatch.setattr("ddpm_sa.memory.available.available_memory", lambda device: int(amount))

    return say


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10**9}, r"batch_size=1000000000 needs .* use at most \d+$"),
        ({"data__size": 100_000}, "data.size=100000: one image with its noise takes 1"),
        ({"num_samples": 10**9}, r"num_samples=1000000000 needs .* use at most \d+$"),
        ({"num_validation": 10**12}, "num_validation=1000000000000 needs"),
        (
            {"data__source": "mnist5k", "data__size": 30_000, "data__flip": "false"},
            "data.size=30000: one image",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_absurd_counts_are_refused_before_anything_is_made(
    pictures, tmp_path, memory_is, changes, message
) -> None:
    memory_is(8 * GIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        run_here(arguments(pictures, tmp_path / "run", **changes))
    # In KiB: neither the images nor the network were made.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert not (tmp_path / "run").exists()


def test_micro_batch_that_is_too_large_is_refused_with_one_that_fits(
    pictures, tmp_path, memory_is
) -> None:
    memory_is(24 * MIB)
    argv = partial(arguments, pictures, tmp_path / "run", batch_size=1024, steps=1)
    with pytest.raises(ValueError, match="micro-batch of 1024 images needs about") as refusal:
        run_here(argv())
    assert not (tmp_path / "run").exists()
    words = str(refusal.value).split()
    fits = int(words[words.index("--micro_batch_size") + 1].rstrip(","))
    assert 1 < fits < 1024
    with pytest.raises(ValueError, match="micro-batch of 1024 images"):
        run_here(argv(micro_batch_size=1024))
    run_here(argv(micro_batch_size=fits))


def test_run_that_cannot_fit_names_what_else_saves_memory(pictures, tmp_path, memory_is) -> None:
    memory_is(MIB)
    with pytest.raises(ValueError, match=r"one image at a time needs about \d MiB") as refusal:
        run_here(arguments(pictures, tmp_path / "run", batch_size=512))
    for way in ("gradient_checkpointing true", "data.size", "channels", "--sharding fsdp"):
        assert way in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_huge_network_is_refused_without_being_built(pictures, tmp_path) -> None:
    huge = (
        "{block_out_channels: [65536, 65536], norm_num_groups: 2, "
        "down_block_types: [DownBlock2D, AttnDownBlock2D], "
        "up_block_types: [AttnUpBlock2D, UpBlock2D]}"
    )
    began = time.perf_counter()
    with pytest.raises(ValueError, match="even one image at a time needs about"):
        run_here(arguments(pictures, tmp_path / "run", model__unet=huge))
    assert time.perf_counter() - began < 60


def test_compiled_network_may_take_less_and_is_only_warned_of(memory_is) -> None:
    memory_is(4 * MIB)
    compiled = replace(CONFIG, compile=True)
    build = partial(build_network, CONFIG.model, IMAGES, 0)
    (warning,) = fit(compiled, Layout(8), build)[2].warnings
    assert "of the 4 MiB of memory available" in warning


def test_auto_trains_alike_is_saved_as_a_number_and_resumes(
    pictures, tmp_path, memory_is, capsys
) -> None:
    straight, auto = tmp_path / "straight", tmp_path / "auto"
    changes = {"batch_size": 64, "log_every": 1}
    run_here(arguments(pictures, straight, **changes))
    capsys.readouterr()
    memory_is(6 * MIB)
    run_here(arguments(pictures, auto, **changes, steps=3, micro_batch_size="auto"))
    micro = yaml.safe_load((auto / "config.yaml").read_text())["micro_batch_size"]
    assert micro in (2, 4, 8, 16, 32)
    assert (
        f"64 = 1 processes x {64 // micro} accumulated x {micro} images" in capsys.readouterr().out
    )

    # With more memory now, it goes on as before; so the bits are those of a run without a pause.
    memory_is(GIB)
    run_here(arguments(pictures, auto, **changes, micro_batch_size="auto", resume="auto"))
    whole = tmp_path / "whole"
    run_here(arguments(pictures, whole, **changes, micro_batch_size=micro))
    for name, value in checkpoint(whole, 6, "weights").items():
        assert value.equal(checkpoint(auto, 6, "weights")[name])
    for one, other in zip(metrics(straight), metrics(auto), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def less_on_one(rank: int) -> None:
    """Rank 1 has little memory, rank 0 much."""
    amount = (GIB, 6 * MIB)[rank]
    ddpm_sa.memory.available.available_memory = lambda device: amount


def test_processes_agree_on_what_fits_the_smallest(pictures, tmp_path) -> None:
    argv = arguments(pictures, tmp_path / "run", batch_size=128, steps=1, micro_batch_size="auto")
    with Workers(argv, 2, tmp_path / "output", before=less_on_one) as workers:
        assert workers.wait() == [0, 0], workers.printed()
    micro = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["micro_batch_size"]
    assert micro < 64
    argv = arguments(pictures, tmp_path / "other", batch_size=128, steps=1)
    with Workers(argv, 2, tmp_path / "output", before=less_on_one) as workers:
        assert workers.wait() == [2, 2]
    (line,) = [line for line in workers.printed().splitlines() if line.startswith("error:")]
    assert "micro-batch of 64 images needs about" in line


def test_lack_of_memory_while_decoding_is_not_taken_for_a_broken_image(
    tmp_path, monkeypatch
) -> None:
    def run_out(*args: object) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("ddpm_sa.data.prepare.resize", run_out)
    folder = picture_folder(tmp_path / "pictures")
    with pytest.raises(OutOfMemoryError, match="out of memory; continue"):
        run_here(arguments(folder, tmp_path / "run", data__on_error="skip"))


def limit_later(rank: int) -> None:
    """Let the system refuse more memory from the third step on."""
    # The C library then gives large tensors back at once, and must ask for each anew.
    m_mmap_threshold = -3
    ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**18)
    lr = training.train.learning_rate

    def limited(config: OptimConfig, step: int) -> float:
        if step == 2:
            now = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (now + 4 * MIB, resource.RLIM_INFINITY))
        return lr(config, step)

    training.train.learning_rate = limited


def test_real_lack_of_memory_is_one_line_and_the_last_checkpoint_is_whole(
    pictures, tmp_path
) -> None:
    argv = partial(arguments, pictures, tmp_path / "run", batch_size=512, save_every=1, steps=4)
    with Workers(argv(), 1, tmp_path / "output", before=limit_later) as workers:
        assert workers.wait() == [2], workers.printed()
    assert "Traceback" not in workers.printed()
    (line,) = [line for line in workers.printed().splitlines() if line.startswith("error:")]
    assert line.startswith("error: out of memory; continue from the last checkpoint with --resume")
    assert "--micro_batch_size auto" in line
    with Workers(argv(resume="auto"), 1, tmp_path / "output") as workers:
        assert workers.wait() == [0], workers.printed()
    assert "steps       2 to 4" in workers.printed()


def run_out(rank: int) -> None:
    """As a GPU does, on one process alone."""

    def full(config: OptimConfig, step: int) -> float:
        if rank == 1 and step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return 1e-3

    training.train.learning_rate = full


def test_process_that_is_out_of_memory_says_so_itself(pictures, tmp_path) -> None:
    argv = arguments(pictures, tmp_path / "run")
    with Workers(argv, 2, tmp_path / "output", before=run_out) as workers:
        workers.processes[1].join(120)
        assert workers.processes[1].exitcode == 2
    assert "error: out of memory; continue from the last checkpoint" in workers.printed()
