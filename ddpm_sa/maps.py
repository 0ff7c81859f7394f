"""Attention one can see: the rows of softmax(scale · q kᵀ) that somebody asks for, while it runs.

A recorder takes the `attend` slot of a layer for a while. It passes everything on to what was there
before, so the network computes what it always does, bit for bit, and takes its rows beside that.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from ddpm_sa.attention import Attend, PixelAttention, SAGANAttention
from ddpm_sa.unet import UNet

Queries = Sequence[tuple[int, int]] | Literal["all"]
Maps = dict[str, list[Tensor]]
"""Name of a layer -> what `record_attention` kept of each of its evaluations."""

_COMPILED = "the network is compiled, and attention is recorded from an eager one"


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a U-Net.

    Attributes:
        module: The layer.
        reduction: Each of its pixels holds reduction x reduction pixels of the image.
    """

    module: PixelAttention | SAGANAttention
    reduction: int


def attention_layers(unet: UNet) -> dict[str, AttentionLayer]:
    """The attention layers by name, in the order in which an image passes them.

    Raises:
        ValueError: If `unet` is no ddpm_sa.UNet, or has no attention.
    """
    if not isinstance(unet, UNet):
        raise ValueError(_not_ours(unet))
    halvings = {f"down_blocks.{level}": level for level in range(len(unet.down_blocks))}
    lowest = len(halvings) - 1
    halvings["mid_block"] = lowest
    halvings |= {f"up_blocks.{level}": lowest - level for level in range(len(unet.up_blocks))}
    modules = dict(unet.named_modules())
    layers = {
        f"{block}.{name}": AttentionLayer(module, 2**level)
        for block, level in halvings.items()
        for name, module in modules.get(block, nn.Identity()).named_modules()
        if isinstance(module, PixelAttention | SAGANAttention)
    }
    if not layers:
        raise ValueError("this network has no attention layer")
    return layers


@contextlib.contextmanager
def record_attention(
    unet: UNet,
    layers: Sequence[str] | Literal["all"] = "all",
    queries: Queries = "all",
    heads: Literal["mean", "all"] = "mean",
) -> Iterator[Maps]:
    """Record where pixels look, around any call of the network: sampling, training, one evaluation.

        with record_attention(unet, queries=[(12, 16)]) as maps:
            pipeline(num_images=4, steps=50)
        maps["mid_block.attentions.0"][-1]  # the last step: (4, 1, 1, h, w)

    The network computes the same bits as without it. Only the rows asked for are computed, as
    softmax(scale · q kᵀ) in float32, whatever the network's precision; a recomputation under
    gradient checkpointing is not recorded again. Recorders may be nested.

    Args:
        unet: Run it eagerly inside; a compiled network is refused.
        layers: Names, as `attention_layers` has them, or "all".
        queries: Pixels (y, x) of the image, the same for every image of a batch. The image is the
            one that the network is given, whatever its config's sample_size. A layer of h x w takes
            the pixel of its own grid that holds it. "all": every pixel of the layer's grid, row by
            row, which at 64 x 64 is 64 MiB for each image, head and evaluation.
        heads: "mean" over the heads, or "all" of them.

    Yields:
        A dict from the name of a layer to a list with one tensor an evaluation: (B, heads or 1,
        queries, h, w), float32, on the CPU. Each map sums to 1. [b, n, j, y, x] is the share of
        what query j of image b takes from pixel (y, x) of the layer's grid.

    Raises:
        ValueError: On entering, if the network is no ddpm_sa.UNet, is compiled or has no attention,
            or an argument is none of the above; on evaluation, if a query lies outside the image.
    """
    chosen = _chosen(attention_layers(unet), layers)
    if any(module._compiled_call_impl is not None for module in unet.modules()):
        raise ValueError(f"{_COMPILED}; load it again, or record before calling compile()")
    if heads not in ("mean", "all"):
        raise ValueError(f"heads={heads!r} must be 'mean' or 'all'")
    pixels = _checked(queries)
    maps: Maps = {name: [] for name in chosen}
    before = {name: layer.module.attend for name, layer in chosen.items()}
    try:
        for name, layer in chosen.items():
            layer.module.attend = _Recorder(
                before[name], maps[name], pixels, layer.reduction, heads == "mean"
            )
        yield maps
    finally:
        for name, layer in chosen.items():
            layer.module.attend = before[name]


@dataclasses.dataclass(frozen=True)
class _Recorder:
    """What sits in a slot: calls `attend`, which sat there, and appends to `kept`."""

    attend: Attend
    kept: list[Tensor]
    pixels: list[tuple[int, int]] | None  # of the image; None for all of the grid
    reduction: int
    mean: bool

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        if torch.compiler.is_compiling():
            raise ValueError(_COMPILED)
        # -1 outside of a backward pass; inside one, checkpointing computes again what was kept.
        if torch._C._current_graph_task_id() == -1:
            self.kept.append(self._rows(q, k, scale, grid))
        return self.attend(q, k, v, scale=scale, grid=grid)

    @torch.no_grad()
    def _rows(self, q: Tensor, k: Tensor, scale: float, grid: tuple[int, int]) -> Tensor:
        if self.pixels is not None:
            q = q[:, :, [_place(pixel, self.reduction, grid) for pixel in self.pixels]]
        # Under autocast the product would be rounded to the network's precision.
        with torch.autocast(q.device.type, enabled=False):
            rows = (scale * q.float() @ k.float().mT).softmax(dim=-1)
        if self.mean:
            rows = reduce(rows, "b heads q n -> b 1 q n", "mean")
        return rearrange(rows, "b heads q (h w) -> b heads q h w", h=grid[0]).cpu()


def _place(pixel: tuple[int, int], reduction: int, grid: tuple[int, int]) -> int:
    """Where in a layer's sequence the pixel lies that holds this one of the image."""
    (y, x), (height, width) = pixel, grid
    if y >= height * reduction or x >= width * reduction:
        raise ValueError(
            f"query ({y}, {x}) lies outside the image of {height * reduction} x "
            f"{width * reduction} pixels; y comes first, both count from 0"
        )
    return y // reduction * width + x // reduction


def _chosen(
    known: dict[str, AttentionLayer], layers: Sequence[str] | str
) -> dict[str, AttentionLayer]:
    if layers == "all":
        return known
    names = [layers] if isinstance(layers, str) else layers
    unknown = [name for name in names if name not in known]
    if unknown or isinstance(layers, str) or not names:
        raise ValueError(
            f"layers={layers!r} must be 'all' or a list of names; known are {', '.join(known)}"
        )
    return {name: known[name] for name in names}


def _checked(queries: Queries) -> list[tuple[int, int]] | None:
    if isinstance(queries, str) and queries == "all":
        return None
    try:
        pixels = [(int(y), int(x)) for y, x in queries]
        fits = min(map(min, pixels)) >= 0 and pixels == [tuple(pixel) for pixel in queries]
    except (TypeError, ValueError):
        fits, pixels = False, []
    if not fits:
        raise ValueError(
            f"queries={queries!r} must be 'all' or a list of pixels (y, x), whole numbers from 0 on"
        )
    return pixels


def _not_ours(network: Any) -> str:
    kind = type(network).__name__
    if hasattr(network, "_orig_mod"):
        return f"{_COMPILED}; give the one that torch.compile got, and call that one"
    if kind == "UNet2DModel":
        return (
            "diffusers' UNet2DModel has no place to record at; open its folder with "
            "ddpm_sa.UNet.from_pretrained(folder), the weights are the same"
        )
    inner = next((name for name in ("unet", "module") if hasattr(network, name)), None)
    return f"attention is recorded from a ddpm_sa.UNet, not from a {kind}" + (
        f"; give its .{inner}" if inner else ""
    )
