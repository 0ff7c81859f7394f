"""The accelerator of a run: its processes and precision on this machine."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin

from ddpm_sa import distributed
from ddpm_sa.distributed import Result, join, without_accelerator
from ddpm_sa.errors import UserError
from training.config import TrainConfig
from training.distributed.fsdp import take_over_accelerate_fsdp
from training.draws import Layout

PACKAGE_OF_TRACKER = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def by_process_0(action: Callable[[], Result], problem: str = "") -> Result:
    """`ddpm_sa.distributed.by_process_0`, with advice on how to resume the run in its errors."""
    return distributed.by_process_0(action, problem, "fix that, then continue with --resume auto")


def resolve_settings(config: TrainConfig) -> TrainConfig:
    """Resolve settings that depend on this machine, such as `auto`.

    Raises:
        ValueError: If the machine lacks something that the settings require.
    """
    device = join().device
    assert device is not None
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise UserError("mixed_precision=fp16 needs a GPU; use bf16 or no on a CPU")
    package = PACKAGE_OF_TRACKER.get(config.tracker)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"tracker={config.tracker} needs the package {package}: pip install {package}, or "
            "use tracker none (metrics.jsonl is always written)"
        )
    if take_over_accelerate_fsdp():
        config = replace(config, sharding="fsdp")
    if config.mixed_precision == "auto":
        return replace(config, mixed_precision="bf16" if has_fast_bf16(device) else "no")
    return config


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device supports bf16 in hardware, without conversion."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # There is no public API for these two; torch.compile uses them too.
    cpu = torch.cpu
    return device.type == "cpu" and (
        cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    )


def make_layout(config: TrainConfig) -> Layout:
    """Make the layout of the global batch over the processes.

    With micro_batch_size=auto, that of whole shares; `training.memory.fit` divides them.

    Raises:
        ValueError: If processes and micro-batches do not divide the batch.
    """
    state = join()
    micro = None if config.micro_batch_size == "auto" else config.micro_batch_size
    return Layout(config.batch_size, state.num_processes, state.process_index, micro)


def make_accelerator(config: TrainConfig, layout: Layout) -> Accelerator:
    """Make the accelerator for a configuration from `resolve_settings`."""
    # DDP rebuilds its buckets after its first backward pass, unless it looks for unused parameters.
    # A resumed run would then sum its first gradient in another order than an uninterrupted run,
    # and with 3 or more processes differ in the last bits.
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


def describe_environment(accelerator: Accelerator, config: TrainConfig) -> dict[str, Any]:
    """What the bits of a run depend on, besides its settings."""
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
