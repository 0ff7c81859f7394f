"""What `UNet.from_pretrained` and `Pipeline.from_pretrained` take: the options of diffusers."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ddpm_sa.errors import require
from ddpm_sa.files.hub import HubOptions
from ddpm_sa.files.json_files import shown


class LoadOptions(HubOptions, total=False):
    """`HubOptions`, and the other options of diffusers' `ModelMixin.from_pretrained`.

    Attributes:
        torch_dtype, dtype: Cast the weights to this type; two names of one option.
        low_cpu_mem_usage: True, the default, gives the network no memory of its own before the
            weights are read; False allocates it first. The result is the same.
        device_map: Where the network goes: a device, or a dict of devices, "cpu" and "disk" by
            names of modules. As for UNet2DModel there is no "auto".
        max_memory, offload_folder, offload_state_dict: Companions of device_map; the modules on
            "disk" need the folder.
        ignore_mismatched_sizes: Whether weights of another shape are initialised anew instead of
            refused. With arguments of the network beside it, such as in_channels=4, a network can
            start from the weights of a slightly different one.
        disable_mmap: Whether to read the file as a whole instead of mapping it into memory.
        quantization_config, parallel_config, use_flashpack, flashpack_kwargs: Passed on to
            diffusers; they need libraries of their own.
        proxies: None. The Hub's client reads HTTP_PROXY and HTTPS_PROXY.
    """

    torch_dtype: torch.dtype | None
    dtype: torch.dtype | None
    low_cpu_mem_usage: bool
    device_map: str | int | torch.device | dict[str, str | int | torch.device] | None
    max_memory: dict[int | str, int | str] | None
    offload_folder: str | None
    offload_state_dict: bool | None
    ignore_mismatched_sizes: bool
    disable_mmap: bool
    quantization_config: Any
    parallel_config: Any
    use_flashpack: bool
    flashpack_kwargs: dict[str, Any]
    proxies: None


def check_options(options: Mapping[str, Any], arguments: Collection[str]) -> None:
    """Refuse what diffusers would ignore, or replace by another value.

    Args:
        options: As a user gave them.
        arguments: Of the network, which may be among the options and replace those of its file.

    Raises:
        UserError: For an unknown option, or a value that cannot be used.
    """
    known = LoadOptions.__annotations__
    unknown = [name for name in options if name not in known and name not in arguments]
    require(
        not unknown,
        f"{', '.join(unknown)}: neither an option of from_pretrained nor an argument of the "
        f"network; the options are {', '.join(known)}",
    )
    require(
        options.get("proxies") is None,
        "proxies must be None: the client of the Hugging Face Hub reads HTTP_PROXY and HTTPS_PROXY",
    )
    dtype = _dtype(options)
    require(
        dtype is None or isinstance(dtype, torch.dtype),
        f"torch_dtype={shown(dtype)} must be a torch.dtype, such as torch.bfloat16",
    )
    safe = options.get("use_safetensors")
    require(
        safe is None or isinstance(safe, bool),
        f"use_safetensors={shown(safe)} must be True, False or None",
    )


def for_diffusers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `ModelMixin.from_pretrained` needs to read a local folder."""
    passed = {name: value for name, value in options.items() if name not in _NOT_PASSED}
    return passed | {"torch_dtype": _dtype(options), "local_files_only": True}


def _dtype(options: Mapping[str, Any]) -> Any:
    return options.get("dtype") or options.get("torch_dtype")


_NOT_PASSED = {
    *("revision", "token", "local_files_only", "cache_dir", "force_download", "proxies"),
    "dtype",  # goes by its other name, which all versions of diffusers know
}
