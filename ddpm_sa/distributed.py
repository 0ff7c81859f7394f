"""Join a group of processes, and run an action in process 0 for all of them."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from ddpm_sa.errors import UserError

Result = TypeVar("Result")


def join() -> PartialState:
    """Join the other processes that torchrun, accelerate or a cluster started, if any.

    Raises:
        ValueError: If accelerate does not recognise how they were started.
    """
    state = PartialState(cpu=without_accelerator(), **_store_of_this_attempt())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != state.num_processes:
        raise UserError(
            f"{started} processes were started but each sees {state.num_processes}; start them "
            "with torchrun --nproc_per_node or accelerate launch"
        )
    return state


def _store_of_this_attempt() -> dict[str, Any]:
    """Return PartialState's arguments for a store of its own after torchrun has restarted.

    torchrun keeps one store for all its attempts (observed with torch 2.13). It still has the
    addresses of the previous attempt; a process that reads them before they are overwritten waits
    for processes that no longer exist. The number of the attempt is the same only within a node:
    for several nodes, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
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
    """Leave the process group."""
    PartialState().destroy_process_group()


def by_process_0(
    action: Callable[[], Result], problem: str = "", way_out: str = "fix that, then start again"
) -> Result:
    """Run an action in process 0 and return its result in every process.

    If the action fails, every process raises the error, so that none waits for another.

    Args:
        action: What process 0 runs.
        problem: Start of the message if a file cannot be read or written.
        way_out: End of that message: what the user can do about it.

    Raises:
        ValueError: In every process, if the action raises a ValueError, an OSError or a
            SafetensorError.
    """
    outcome: list[Any] = [None, None]
    cause = None
    if PartialState().is_main_process:
        try:
            outcome[0] = action()
        except (OSError, SafetensorError) as error:
            cause = error
            outcome[1] = f"{problem}: {error}; {way_out}"
        except UserError as error:
            cause = error
            outcome[1] = str(error)
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise UserError(failure) from cause
    return result


def without_accelerator() -> bool:
    """Whether to run on the CPU, which accelerate must be told to join CPU processes."""
    requested = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return requested or not torch.accelerator.is_available()
