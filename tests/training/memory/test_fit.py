"""What follows from the forecast of a run's memory."""

import ctypes
import resource
import time
from dataclasses import replace
from functools import partial

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
from tests.support.workers import Workers
from training.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from training.draws import Layout
from training.memory.fit import choose_micro_batch, divisors, fit
from training.memory.forecast import Memory
from training.network import build_network

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


def affine(micro: int) -> Memory:
    """10 MiB for each image, and 100 besides."""
    parts = dict.fromkeys(("weights", "averages", "optimizer", "gradients"), 25 * MIB)
    return Memory(**parts, activations=micro * 10 * MIB, images=0, available=0)


def test_auto_takes_the_largest_divisor_that_fits_with_room_to_spare() -> None:
    assert choose_micro_batch(24, 2000 * MIB, affine) == 24
    assert choose_micro_batch(24, 315 * MIB, affine) == 12  # 30 % are left
    assert choose_micro_batch(24, 314 * MIB, affine) == 8
    assert choose_micro_batch(24, 50 * MIB, affine) == 1
    assert choose_micro_batch(7, 200 * MIB, affine) == 1


def test_auto_keeps_the_micro_batch_of_a_run_that_is_resumed_if_it_fits() -> None:
    assert choose_micro_batch(24, 2000 * MIB, affine, previous=6) == 6
    assert choose_micro_batch(24, 260 * MIB, affine, previous=12) == 12  # with 15 % left
    assert choose_micro_batch(24, 258 * MIB, affine, previous=12) == 8


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
        ({"data__size": 16_000}, "data.size=16000: one image with its noise takes 3,906 MiB"),
        ({"num_samples": 10**9}, r"num_samples=1000000000 needs .* use at most \d+$"),
        (
            {"num_validation": 10**12, "data__validation": 0.25},
            "num_validation=1000000000000 needs",
        ),
        (
            {"data__source": "mnist5k", "data__size": 15_000, "data__flip": "false"},
            "data.size=15000: one image",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_absurd_counts_are_refused_before_anything_is_made(
    pictures, tmp_path, memory_is, changes, message
) -> None:
    memory_is(3 * GIB)
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

    monkeypatch.setattr("ddpm_sa.data.scan.resize", run_out)
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
