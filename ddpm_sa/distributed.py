"""Several processes that do one thing: how they meet, and decide together."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

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


def by_process_0(
    action: Callable[[], Result], problem: str = "", way_out: str = "mend that, then start again"
) -> Result:
    """What process 0 alone does or finds, known to all; where it fails, all fail, and none waits.

    Args:
        action: What to do there.
        problem: What it means that the disk does not serve.
        way_out: What to do about it.

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
            outcome[1] = f"{problem}: {error}; {way_out}"
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
