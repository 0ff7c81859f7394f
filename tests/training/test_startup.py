import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm_sa.data.dataset import Images
from ddpm_sa.image_format import ImageFormat
from training.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from training.draws import Layout
from training.memory.forecast import Memory
from training.network import build_network
from training.reporting.startup import (
    describe_learning_rate,
    startup_report,
    warn_idle_processors,
)

FORMAT = ImageFormat(channels=1, size=(32, 32), labels=("a", "b"))
IMAGES = Images(
    length=5000,
    format=FORMAT,
    read=np.zeros((5000, 32, 32, 1), np.uint8).__getitem__,
    notes=("7 of them are odd",),
)
CONFIG = TrainConfig(
    output_dir="unused",
    data=DataConfig(source="mnist5k", flip=True),
    model=ModelConfig(preset="mnist", attention_resolutions=[16]),
    optim=OptimConfig(lr=1e-3, warmup_steps=10, decay_steps=30),
    steps=2000,
    batch_size=8,
    mixed_precision="no",
)


GIB = 2**30
MEMORY = Memory(
    weights=GIB,
    averages=2 * GIB,
    optimizer=2 * GIB,
    gradients=GIB,
    activations=9 * GIB,
    images=0,
    available=20 * GIB,
)


def said(
    config: TrainConfig = CONFIG, images: Images = IMAGES, processes: int = 2, memory=MEMORY
) -> str:
    network = build_network(config.model, images, 0)
    return startup_report(config, Layout(config.batch_size, processes), images, network, memory, 4)


def test_report_names_what_will_be_trained_on_what_and_how() -> None:
    text = said()
    assert "5000 of 32x32, channels 1, 8 bits in 0 .. 255, 2 classes, from mnist5k" in text
    assert "attention at down 16x16, mid 8x8, up 16x16" in text
    assert "8 = 2 processes x 1 accumulated x 4 images" in text
    # 5000 images in batches of 8 are 625 steps.
    assert "4 to 2000, 625.0 per epoch, 3.2 epochs" in text
    assert "from 0 to 0.001 at step 10, then falling to 0 at step 30" in text


def test_report_says_how_often_it_looks() -> None:
    config = replace(CONFIG, log_every=7, sample_every=0, save_every=90)
    text = said(config)
    assert "a record every 7 steps, no samples, a checkpoint every 90 steps; no valid" in text
    held_out = replace(IMAGES, validation=IMAGES)
    assert "no samples, validation every 5000 steps, a ch" in said(config, held_out)


def test_report_warns_of_what_was_hardly_meant() -> None:
    text = said()
    assert "warning     7 of them are odd" in text
    assert "data.flip=true mirrors digits" in text
    assert "batch_size=8 is small" in text
    assert "the learning rate reaches 0 at step 30; later updates change nothing" in text
    assert "--optim.decay_steps steps" in text
    few = said(images=replace(IMAGES, length=20))
    assert "only 20 training images" in few
    large = replace(IMAGES, format=replace(FORMAT, size=(128, 128)))
    config = replace(CONFIG, model=ModelConfig(preset="mnist", attention_resolutions=[64]))
    assert "attention at down 64x64 compares each of 4,096 pixels" in said(config, large)


def test_report_says_which_levels_there_are_and_what_they_follow_from() -> None:
    named = said()
    assert "levels      32x32, 16x16, 8x8 with 16, 32, 64 channels\n" in named
    images = replace(IMAGES, format=replace(FORMAT, size=(45, 61)))
    text = said(replace(CONFIG, model=ModelConfig(preset="auto", width=4)), images)
    assert "attention at down 12x16, mid 6x8, up 12x16" in text
    assert "levels      48x64, 24x32, 12x16, 6x8 with 4, 8, 8, 8 channels; images are" in text
    assert "extended to 48x64, which can be halved; from the size of the images (mo" in text


def test_run_that_ends_within_its_warmup_is_warned_of() -> None:
    optim = OptimConfig(lr=1e-3, warmup_steps=5000, decay_steps="steps")
    text = said(replace(CONFIG, optim=optim))
    assert "from 0 to 0.001 at step 5000, then constant" in text
    assert "still rising when the run ends: optim.warmup_steps=5000, steps=2000" in text
    assert "give a smaller --optim.warmup_steps, such as 100" in text


def test_micro_batches_that_are_small_for_want_of_a_divisor_are_warned_of() -> None:
    config = replace(CONFIG, batch_size=26, micro_batch_size=12)
    network = build_network(config.model, IMAGES, 0)
    layout = Layout(26, micro_batch_size=12)
    text = startup_report(config, layout, IMAGES, network, MEMORY, 0)
    assert "26 = 1 processes x 13 accumulated x 2 images" in text
    assert "micro-batches of 2 are slow; 26 images" in text


def test_sound_run_is_warned_of_nothing(monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", torch.get_num_threads)
    falling = OptimConfig(lr=1e-3, warmup_steps=10, decay_steps=2000)
    config = replace(CONFIG, data=DataConfig(source="photos"), batch_size=32, optim=falling)
    assert "warning" not in said(config, replace(IMAGES, notes=()))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OptimConfig(lr=2e-4, warmup_steps=0), "0.0002, constant"),
        (OptimConfig(lr=2e-4, warmup_steps=5000), "from 0 to 0.0002 at step 5000, then constant"),
        (
            OptimConfig(lr=2e-4, warmup_steps=0, decay_steps=9),
            "0.0002, then falling to 0 at step 9",
        ),
    ],
)
def test_learning_rate_is_told_in_words(config: OptimConfig, words: str) -> None:
    assert describe_learning_rate(config) == words


def test_report_says_what_memory_is_needed_and_warns_if_little_is_left() -> None:
    text = said()
    assert "memory      about 15 GiB of 20 GiB: weights 1,024 MiB, averages 2,048 MiB" in text
    assert "activations 9,216 MiB; on each process" in text  # and no images
    assert "memory available" not in text
    scarce = said(memory=replace(MEMORY, available=16 * GIB))
    assert "warning     the run needs about 15 GiB of the 16 GiB of memory available" in scarce
    assert "--resume auto --micro_batch_size auto" in scarce


def test_unused_processors_are_named(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    said = warn_idle_processors()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    all_used = warn_idle_processors()
    torch.set_num_threads(before)
    assert (
        said
        == "only 4 of 8 processors are used; set OMP_NUM_THREADS=2 before the command to use all"
    )
    assert all_used is None
