"""Runs of the training program that take a second, and what they leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from training.train import main

ROOT = Path(__file__).resolve().parents[2]
TINY_UNET = (
    "{block_out_channels: [8, 16], norm_num_groups: 2, layers_per_block: 1, "
    "down_block_types: [DownBlock2D, AttnDownBlock2D], "
    "up_block_types: [AttnUpBlock2D, UpBlock2D]}"
)
# The same network for UNet(**...).
NETWORK = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# A run with dropout, and three of twelve images held out: what the fixture `straight` is.
WATCHED = {
    "model__dropout": 0.1,
    "data__validation": 0.25,
    "validate_every": 2,
    "num_validation": 5,
}
STEMS = ("weights", "ema", "ema-0.5", "optimizer")


def picture_folder(folder: Path, classes: tuple[str, ...] = ("",), each: int = 12) -> Path:
    """Noise, 8 x 8, RGB: `each` of them for every class, in a subfolder of its name."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(number)
        for i in range(each):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


def arguments(data: Path | str, output_dir: Path, **changes: object) -> list[str]:
    """The command line of a tiny run; changes name flags, with __ for a dot."""
    settings: dict[str, object] = {
        "output_dir": output_dir,
        "steps": 6,
        "batch_size": 8,
        "log_every": 2,
        "sample_every": 0,
        "num_samples": 2,
        "sample_steps": 2,
        "mixed_precision": "no",
        "tracker": "none",
        "data__source": data,
        "data__size": 8,
        "model__unet": TINY_UNET,
        "model__dropout": 0.0,
        "optim__lr": 1e-3,
        "optim__warmup_steps": 2,
        "ema__decay": 0.9,
        "ema__more": "[0.5]",
    }
    settings |= changes
    return [
        word
        for name, value in settings.items()
        if value is not None
        for word in (f"--{name.replace('__', '.')}", str(value))
    ]


def run_here(argv: list[str]) -> None:
    """Run the program in this process, which has run it before: accelerate keeps its state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    main(argv)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_there(argv: list[str], *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process, or under a launcher, as a user does."""
    return subprocess.run(
        [sys.executable, *launcher, "training/train.py", *argv],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def torchrun(processes: int) -> tuple[str, ...]:
    """A launcher of so many processes, at a port that it finds free."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")


def metrics(run: Path) -> list[dict[str, float]]:
    """The records of a run, without their timings."""
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    timings = ("seconds", "images_per_second")
    return [{name: row[name] for name in row if name not in timings} for row in rows]


def checkpoint(run: Path, step: int, stem: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint: stem is weights, ema, ema-0.5 or optimizer."""
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{stem}.safetensors")


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """The same bits after `step` updates, and the same records."""
    for stem in STEMS:
        assert same_bits(checkpoint(one, step, stem), checkpoint(other, step, stem)), stem
    assert metrics(one) == metrics(other)


def assert_same_gradient(one: Path, other: Path) -> None:
    """The same gradient of the first update, to rounding: Adam's first mean is (1 - 0.9) of it."""
    first, second = (checkpoint(run, 1, "optimizer") for run in (one, other))
    names = [name for name in first if name.endswith(":exp_avg")]
    flat = [torch.cat([each[name].flatten() for name in names]) for each in (first, second)]
    assert (flat[0] - flat[1]).norm() <= 1e-6 * flat[0].norm()
    for name in names:
        # A constant added to every key leaves the softmax as it is: rounding alone is left.
        if "to_k.bias" not in name:
            value = first[name]
            assert (value - second[name]).abs().max() <= 5e-5 * value.abs().max(), name
