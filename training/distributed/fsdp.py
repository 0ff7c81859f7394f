"""Sharding of a network over processes, each of which keeps a part of every tensor (FSDP 2).

A sharded tensor is a DTensor with the name and shape of the full one. accelerate shards only on
GPUs, so torch is used directly, which also works on a CPU, where it is tested.
"""

import os
from collections.abc import Mapping

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ddpm_sa.errors import UserError
from ddpm_sa.models.unet import UNet


def take_over_accelerate_fsdp() -> bool:
    """Return whether accelerate is configured for FSDP, and remove that from the environment.

    The program shards the network itself; otherwise accelerate would try to as well.

    Raises:
        ValueError: If another version of FSDP or offloading is configured.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    for name, wanted in {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}.items():
        value = os.environ.get(name, "1" if name == "FSDP_VERSION" else wanted)
        if value.lower() != wanted:
            raise UserError(
                f"accelerate's configuration sets {name.lower()}: {value}; set it to {wanted}, or "
                "remove FSDP from it and use --sharding fsdp"
            )
    del os.environ["ACCELERATE_USE_FSDP"]
    return True


def shard(network: UNet, accelerator: Accelerator) -> None:
    """Shard the network over the processes, block by block.

    The weights of a block are gathered before it is used; its gradient is averaged and sharded
    afterwards.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in (*network.down_blocks, network.mid_block, *network.up_blocks):
        if block is not None:
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a full tensor. Every process must call this for the same tensors in the same order."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_full(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather full tensors, sharded ones on the CPU. Every process must call this; only those with
    `keep` get the tensors."""
    kept = {}
    for name, tensor in tensors.items():
        value = full_tensor(tensor)
        if keep:
            kept[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return kept


def distribute_like(like: Tensor, value: Tensor) -> Tensor:
    """Shard a full tensor, known to every process, like `like`."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    # Without a source each process slices its own copy: nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy sharded weights into a full network; unsharded ones already share its memory."""
    if any(isinstance(weight, DTensor) for weight in weights.values()):
        network.load_state_dict({name: full_tensor(weight) for name, weight in weights.items()})
