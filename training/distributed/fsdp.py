"""A network spread over processes, each of which keeps a part of every tensor (FSDP 2).

Such a tensor has the whole one's name and shape, and is a DTensor. accelerate spreads networks on
GPUs alone, so torch is asked directly: the same on a CPU, where it is tested.
"""

import os
from collections.abc import Mapping

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ddpm_sa.models.unet import UNet


def asked_of_accelerate() -> bool:
    """Whether `accelerate launch`, or its configuration, asks for FSDP; from here on it does not.

    The program spreads the network itself; told so, accelerate would try to as well.

    Raises:
        ValueError: If what it asks for is another version of FSDP, or offloading.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    for name, wanted in {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}.items():
        found = os.environ.get(name, "1" if name == "FSDP_VERSION" else wanted)
        if found.lower() != wanted:
            raise ValueError(
                f"accelerate's configuration sets {name.lower()}: {found}; set it to {wanted}, or "
                "leave FSDP out of it and say --sharding fsdp"
            )
    del os.environ["ACCELERATE_USE_FSDP"]
    return True


def shard(network: UNet, accelerator: Accelerator) -> None:
    """Leave this process its part of the network, block by block.

    A block is whole while it is used: its weights are gathered before, its gradient is averaged
    and parted after.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in (*network.down_blocks, network.mid_block, *network.up_blocks):
        if block is not None:
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Every process must ask for the same ones, in the same order."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, on the CPU where they are spread; every process must ask, those that `keep`
    get them."""
    kept = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if keep:
            kept[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return kept


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, known to every process, as `like` is laid out: here, this process's part."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    # Without a source each process cuts its part out of its own: nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def renew(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights that are spread into a whole network; others it shares the memory of."""
    if any(isinstance(weight, DTensor) for weight in weights.values()):
        network.load_state_dict({name: whole(weight) for name, weight in weights.items()})
