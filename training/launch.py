"""How a run meets the machine: its processes, and its precision."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from safetensors import SafetensorError

from training.config import TrainConfig
from training.draws import Layout

PACKAGE_OF_TRACKER = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}

Result = TypeVar("Result")


def join() -> PartialState:
    """Meet the other processes that torchrun, accelerate or a cluster started, if any.

    Raises:
        ValueError: If they were started in a way that accelerate does not recognise.
    """
    here = PartialState(cpu=without_accelerator(), **_store_of_this_attempt())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != here.num_processes:
        raise ValueError(
            f"{started} processes were started but each sees {here.num_processes}; start them by "
            "torchrun --nproc_per_node or accelerate launch"
        )
    return here


def _store_of_this_attempt() -> dict[str, Any]:
    """Where processes that torchrun has started again find each other: what PartialState passes on.

    torchrun keeps one store for all its attempts (seen with torch 2.13), in which the addresses of
    the one that ended still lie; who reads them before they are replaced waits for what is gone.
    The number of the attempt is the same within a node alone: for several nodes there is
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    one_node = os.environ.get("GROUP_WORLD_SIZE") == "1"
    if attempt == "0" or not (shared and one_node) or torch.distributed.is_initialized():
        return {}
    store, rank, world_size = next(torch.distributed.rendezvous("env://"))
    own = torch.distributed.PrefixStore(f"attempt {attempt}", store)
    return {"store": own, "rank": rank, "world_size": world_size}


def leave() -> None:
    """Part from the other processes."""
    PartialState().destroy_process_group()


def by_process_0(action: Callable[[], Result], problem: str = "") -> Result:
    """What process 0 alone does or finds, known to all; where it fails, all fail, and none waits.

    Args:
        action: What to do there.
        problem: What it means that the disk does not serve.

    Raises:
        ValueError: In every process, if what was done raised one or the disk did not serve.
    """
    outcome: list[Any] = [None, None]
    cause = None
    if PartialState().is_main_process:
        try:
            outcome[0] = action()
        except (OSError, SafetensorError) as error:
            cause = error
            outcome[1] = f"{problem}: {error}; mend that, then go on with --resume auto"
        except ValueError as error:
            cause, outcome[1] = error, str(error)
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise ValueError(failure) from cause
    return result


def without_accelerator() -> bool:
    """Whether the run is the CPU's; accelerate joins CPU processes only if it is told so."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()


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
    }
