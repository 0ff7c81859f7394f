"""How a run meets the machine: its processes, and its precision."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin

from ddpm_sa import distributed
from ddpm_sa.distributed import Result, join, without_accelerator
from training.config import TrainConfig
from training.distributed.fsdp import asked_of_accelerate
from training.draws import Layout

PACKAGE_OF_TRACKER = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def by_process_0(action: Callable[[], Result], problem: str = "") -> Result:
    """`ddpm_sa.distributed.by_process_0` in a run, which can be gone on with."""
    return distributed.by_process_0(action, problem, "mend that, then go on with --resume auto")


def settle(config: TrainConfig) -> TrainConfig:
    """Replace `auto` by what it means on this machine.

    Raises:
        ValueError: If the machine lacks something that was asked for.
    """
    device = join().device
    assert device is not None
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("mixed_precision=fp16 needs a GPU; use bf16 or no on a CPU")
    package = PACKAGE_OF_TRACKER.get(config.tracker)
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"tracker={config.tracker} needs the package {package}: pip install {package}, or "
            "choose tracker none (metrics.jsonl is written in any case)"
        )
    if asked_of_accelerate():
        config = replace(config, sharding="fsdp")
    if config.mixed_precision == "auto":
        return replace(config, mixed_precision="bf16" if fast_at_bf16(device) else "no")
    return config


def fast_at_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware, rather than by conversion."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # There is no public question for these two; torch.compile asks them too.
    cpu = torch.cpu
    return device.type == "cpu" and (
        cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    )


def make_layout(config: TrainConfig) -> Layout:
    """This process's part in the run.

    Raises:
        ValueError: If processes and micro-batches do not divide the batch.
    """
    here = join()
    return Layout(
        config.batch_size, here.num_processes, here.process_index, config.micro_batch_size
    )


def make_accelerator(config: TrainConfig, layout: Layout) -> Accelerator:
    """The accelerator of a settled configuration."""
    # DDP sorts its buckets anew after its first backward pass, unless it looks for unused
    # parameters; a resumed run would then sum its first gradient in another order than a run that
    # never stopped, and from 3 processes on differ in its last bits.
    fixed_buckets = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        cpu=without_accelerator(),
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=layout.accumulation, sync_with_dataloader=False
        ),
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=config.output_dir,
        kwargs_handlers=[fixed_buckets],
    )


def environment(accelerator: Accelerator, config: TrainConfig) -> dict[str, Any]:
    """What the bits of a run depend on besides its settings."""
    device = accelerator.device
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "accumulation": accelerator.gradient_accumulation_steps,
        "compile": config.compile,
        "sharding": config.sharding,
    }
