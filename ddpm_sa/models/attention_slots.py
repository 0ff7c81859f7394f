"""The attention layers of a U-Net by name, and a way to replace what their slots hold."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from ddpm_sa.errors import UserError
from ddpm_sa.models.attention import Attend, SelfAttention
from ddpm_sa.models.network import Network

Layers = Sequence[str] | Literal["all"]

COMPILED = "the network is compiled, and attention can be reached only in an eager network"


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a U-Net.

    Attributes:
        module: The layer.
        reduction: Each pixel of the layer covers reduction x reduction pixels of the image.
    """

    module: SelfAttention
    reduction: int


def attention_layers(unet: Network) -> dict[str, AttentionLayer]:
    """The attention layers by name, in the order in which an image passes them.

    Raises:
        ValueError: If `unet` is no network of this package, or has no attention.
    """
    if not isinstance(unet, Network):
        raise UserError(_not_ours(unet))
    halvings = {f"down_blocks.{level}": level for level in range(len(unet.down_blocks))}
    lowest = len(halvings) - 1
    halvings["mid_block"] = lowest
    halvings |= {f"up_blocks.{level}": lowest - level for level in range(len(unet.up_blocks))}
    modules = dict(unet.named_modules())
    layers = {
        f"{block}.{name}": AttentionLayer(module, 2**level)
        for block, level in halvings.items()
        for name, module in modules.get(block, nn.Identity()).named_modules()
        if isinstance(module, SelfAttention)
    }
    if not layers:
        raise UserError("this network has no attention layer")
    return layers


def eager_layers(unet: Network, layers: Layers = "all") -> dict[str, AttentionLayer]:
    """The attention layers of these names.

    Raises:
        ValueError: If the network is compiled, or as `attention_layers` says, or for an unknown
            name.
    """
    chosen = _chosen(attention_layers(unet), layers)
    if any(module._compiled_call_impl is not None for module in unet.modules()):
        raise UserError(f"{COMPILED}; load it again, or call compile() afterwards")
    return chosen


@contextlib.contextmanager
def slots_holding(
    layers: Mapping[str, AttentionLayer], attends: Mapping[str, Attend]
) -> Iterator[None]:
    """Inside the context, the slots of these layers hold other callables."""
    before = {name: layer.module.attend for name, layer in layers.items()}
    try:
        for name, attend in attends.items():
            layers[name].module.attend = attend
        yield
    finally:
        for name, layer in layers.items():
            layer.module.attend = before[name]


def _chosen(
    known: dict[str, AttentionLayer], layers: Sequence[str] | str
) -> dict[str, AttentionLayer]:
    if layers == "all":
        return known
    names = [layers] if isinstance(layers, str) else layers
    unknown = [name for name in names if name not in known]
    if unknown or isinstance(layers, str) or not names:
        raise UserError(
            f"layers={layers!r} must be 'all' or a list of names; known are {', '.join(known)}"
        )
    return {name: known[name] for name in names}


def _not_ours(network: Any) -> str:
    kind = type(network).__name__
    if hasattr(network, "_orig_mod"):
        return f"{COMPILED}; pass the module that was given to torch.compile, and call that one"
    if kind == "UNet2DModel":
        return (
            "diffusers' UNet2DModel gives no access to its attention; open its folder with "
            "ddpm_sa.UNet.from_pretrained(folder), the weights are the same"
        )
    inner = next((name for name in ("unet", "module") if hasattr(network, name)), None)
    return f"attention can be reached in a ddpm_sa.UNet, not in a {kind}" + (
        f"; give its .{inner}" if inner else ""
    )
