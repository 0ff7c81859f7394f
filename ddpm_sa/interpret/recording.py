"""Recording attention maps: rows of softmax(scale · q kᵀ), while the network runs.

A recorder occupies the `attend` slot of a layer. It passes every call on to the callable that was
there before, so the output stays the same bit for bit, and computes the requested rows beside it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from einops import rearrange, reduce
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.models.attention import Attend
from ddpm_sa.models.attention_slots import COMPILED, Layers, eager_layers, slots_holding
from ddpm_sa.models.network import Network

Queries = Sequence[tuple[int, int]] | Literal["all"]
Maps = dict[str, list[Tensor]]
"""Name of a layer -> what `record_attention` kept of each of its evaluations."""
Kept = TypeVar("Kept")


class Rows(NamedTuple):
    """Rows of a layer's attention in one evaluation.

    Attributes:
        maps: (B, heads, queries, h, w), float32, on the network's device; each map sums to 1.
        places: Where in the layer's grid the queries are, (queries, 2), y and x.
        reduction: As of AttentionLayer.
    """

    maps: Tensor
    places: Tensor
    reduction: int


@contextlib.contextmanager
def record_attention(
    unet: Network,
    layers: Layers = "all",
    queries: Queries = "all",
    heads: Literal["mean", "all"] = "mean",
) -> Iterator[Maps]:
    """Record attention maps, around any use of the network: sampling, training, one evaluation.

        with record_attention(unet, queries=[(12, 16)]) as maps:
            pipeline(num_images=4, steps=50)
        maps["mid_block.attentions.0"][-1]  # the last step: (4, 1, 1, h, w)

    The network computes the same bits as without it. Only the rows asked for are computed, as
    softmax(scale · q kᵀ) in float32, whatever the network's precision; a recomputation under
    gradient checkpointing is not recorded again. Recorders may be nested. Inside of
    `ablate_attention` the recorded rows are those of the replacement.

    Args:
        unet: Run it eagerly inside; a compiled network is refused.
        layers: Names, as `attention_layers` has them, or "all".
        queries: Pixels (y, x) of the image, the same for every image of a batch. The image is the
            one that the network is given, whatever its config's sample_size. A layer of h x w takes
            the pixel of its own grid that holds it. "all": every pixel of the layer's grid, row by
            row, which at 64 x 64 is 64 MiB for each image, head and evaluation.
        heads: "mean" over the heads, or "all" of them.

    Yields:
        A dict from the name of a layer to a list with one tensor per evaluation: (B, heads or 1,
        queries, h, w), float32, on the CPU. Each map sums to 1. [b, n, j, y, x] is the weight that
        query j of image b gives to pixel (y, x) of the layer's grid.

    Raises:
        ValueError: On entering, if the network is no ddpm_sa.UNet, is compiled or has no attention,
            or an argument is none of the above; on evaluation, if a query lies outside the image.
    """
    if heads not in ("mean", "all"):
        raise UserError(f"heads={heads!r} must be 'mean' or 'all'")

    def keep(rows: Rows) -> Tensor:
        maps = rows.maps
        return (maps if heads == "all" else reduce(maps, "b n q h w -> b 1 q h w", "mean")).cpu()

    with record_rows(unet, keep, layers, queries) as maps:
        yield maps


@contextlib.contextmanager
def record_rows(
    unet: Network, keep: Callable[[Rows], Kept], layers: Layers = "all", queries: Queries = "all"
) -> Iterator[dict[str, list[Kept]]]:
    """`record_attention`, keeping what a function makes of the rows of each evaluation.

    Args:
        keep: Called without gradients and autocast.
    """
    chosen = eager_layers(unet, layers)
    pixels = _checked(queries)
    kept: dict[str, list[Kept]] = {name: [] for name in chosen}
    recorders = {
        name: Recorder(layer.module.attend, keep, kept[name], pixels, layer.reduction)
        for name, layer in chosen.items()
    }
    with slots_holding(chosen, recorders):
        yield kept


def softmax_rows(
    q: Tensor, k: Tensor, *, scale: float, grid: tuple[int, int], places: Tensor
) -> Tensor:
    """softmax(scale · q kᵀ) in float32.

    Args:
        q: The queries of the rows asked for, (B, heads, queries, d).
        k: All keys, (B, heads, H·W, d).
        places: Where in the sequence the queries are, (queries,).

    Returns:
        (B, heads, queries, H·W).
    """
    return (scale * q.float() @ k.float().mT).softmax(dim=-1)


@dataclasses.dataclass(frozen=True)
class Recorder(Generic[Kept]):
    """What sits in a slot: calls `attend`, which sat there, and appends to `kept`.

    An `attend` that weighs pixels otherwise than by softmax(scale · q kᵀ) says so by a method
    `rows`, called as `softmax_rows` is.
    """

    attend: Attend
    keep: Callable[[Rows], Kept]
    kept: list[Kept]
    pixels: list[tuple[int, int]] | None  # of the image; None for all of the grid
    reduction: int

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        if torch.compiler.is_compiling():
            raise UserError(COMPILED)
        # -1 outside of a backward pass; inside one, checkpointing computes again what was kept.
        if torch._C._current_graph_task_id() == -1:
            self._record(q, k, scale, grid)
        return self.attend(q, k, v, scale=scale, grid=grid)

    @property
    def rows(self) -> Callable[..., Tensor]:
        return getattr(self.attend, "rows", softmax_rows)

    @torch.no_grad()
    def _record(self, q: Tensor, k: Tensor, scale: float, grid: tuple[int, int]) -> None:
        (height, width), pixels = grid, self.pixels
        if pixels is None:
            chosen = list(range(height * width))
        else:
            chosen = [_place(pixel, self.reduction, grid) for pixel in pixels]
            q = q[:, :, chosen]
        places = torch.tensor(chosen, device=q.device)
        # Under autocast the product would be rounded to the network's precision.
        with torch.autocast(q.device.type, enabled=False):
            rows = self.rows(q, k, scale=scale, grid=grid, places=places)
            maps = rearrange(rows, "b heads q (h w) -> b heads q h w", h=height)
            by_axes = torch.stack([places // width, places % width], dim=1)
            self.kept.append(self.keep(Rows(maps, by_axes, self.reduction)))


def _place(pixel: tuple[int, int], reduction: int, grid: tuple[int, int]) -> int:
    """Where in a layer's sequence the pixel lies that holds this one of the image."""
    (y, x), (height, width) = pixel, grid
    if y >= height * reduction or x >= width * reduction:
        raise UserError(
            f"query ({y}, {x}) lies outside the image of {height * reduction} x "
            f"{width * reduction} pixels; y comes first, both count from 0"
        )
    return y // reduction * width + x // reduction


def _checked(queries: Queries) -> list[tuple[int, int]] | None:
    if isinstance(queries, str) and queries == "all":
        return None
    try:
        pixels = [(int(y), int(x)) for y, x in queries]
        fits = min(map(min, pixels)) >= 0 and pixels == [tuple(pixel) for pixel in queries]
    except (TypeError, ValueError):
        fits, pixels = False, []
    if not fits:
        raise UserError(
            f"queries={queries!r} must be 'all' or a list of pixels (y, x), whole numbers from 0 on"
        )
    return pixels
