"""Measures of attention maps: entropy, distance, locality, and overlap of the heads.

Each measure is a function of maps (..., h, w) that sum to 1.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from einops import rearrange, reduce
from torch import Tensor

from ddpm_sa.interpret.recording import Queries, Rows, record_rows
from ddpm_sa.models.attention_slots import Layers
from ddpm_sa.models.network import Network


def entropy(maps: Tensor) -> Tensor:
    """-Σ p log p, in nats: 0 where all attention is on one pixel, log(h w) where it is even.

    Attention that is even over n pixels has entropy log n.

    Args:
        maps: (..., h, w).

    Returns:
        (...).
    """
    return torch.special.entr(maps).sum((-2, -1))


def distance(maps: Tensor, places: Tensor) -> Tensor:
    """Mean distance from a query to what it attends to, Σ p ‖pixel - query‖, in pixels of the grid.

    Args:
        maps: (..., queries, h, w).
        places: Where the queries are, (queries, 2), y and x.

    Returns:
        (..., queries).
    """
    dy, dx = _offsets(maps, places)
    return (maps * (dy**2 + dx**2).sqrt()).sum((-2, -1))


def local_share(maps: Tensor, places: Tensor, radius: int = 1) -> Tensor:
    """Share of attention on the (2 radius + 1)² pixels of the grid around the query.

    Args and returns as of `distance`.
    """
    dy, dx = _offsets(maps, places)
    return (maps * ((dy.abs() <= radius) & (dx.abs() <= radius))).sum((-2, -1))


def overlap(maps: Tensor) -> Tensor:
    """What two heads look at alike, Σ min(p, p'): 1 for the same map, 0 for disjoint ones.

    That is 1 less their total variation distance.

    Args:
        maps: (..., heads, queries, h, w).

    Returns:
        (..., heads, heads, queries).
    """
    flat = rearrange(maps, "... heads q h w -> ... heads q (h w)")
    shared = [torch.minimum(flat, head[..., None, :, :]).sum(-1) for head in flat.unbind(-3)]
    return torch.stack(shared, dim=-3)


@dataclasses.dataclass(frozen=True)
class Measures:
    """One layer in one evaluation, mean over the queries, float32, on the CPU.

    Attributes:
        entropy: (B, heads), in nats.
        distance: (B, heads), in pixels of the image.
        local_share: (B, heads), on the 3 x 3 pixels of the grid around the query, from 0 to 1.
        overlap: (B, heads, heads), from 0 to 1.
    """

    entropy: Tensor
    distance: Tensor
    local_share: Tensor
    overlap: Tensor

    @classmethod
    def of(cls, rows: Rows) -> "Measures":
        maps, places, reduction = rows
        return cls(
            entropy=_mean(entropy(maps)),
            distance=_mean(distance(maps, places) * reduction),
            local_share=_mean(local_share(maps, places)),
            overlap=_mean(overlap(maps)),
        )

    @classmethod
    def of_even(cls, grid: tuple[int, int], reduction: int) -> "Measures":
        """The measures of uniform attention, as a baseline."""
        height, width = grid
        pixels = height * width
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        return cls.of(Rows(torch.full((1, 1, pixels, *grid), 1 / pixels), places, reduction))


@contextlib.contextmanager
def measure_attention(
    unet: Network, layers: Layers = "all", queries: Queries = "all"
) -> Iterator[dict[str, list[Measures]]]:
    """Measure attention, around any call of the network, as `record_attention` records it.

    Only a few numbers are kept per evaluation. While a layer computes, its rows are in memory: for
    all queries at 64 x 64 these take 64 MiB per image and head.

    Yields:
        A dict from the name of a layer to a list with one `Measures` per evaluation.
    """
    with record_rows(unet, Measures.of, layers, queries) as measures:
        yield measures


def _mean(values: Tensor) -> Tensor:
    return reduce(values, "... q -> ...", "mean").cpu()


def _offsets(maps: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """y and x of each pixel, less those of the query: (queries, h, 1) and (queries, 1, w)."""
    y, x = (torch.arange(size, device=maps.device) for size in maps.shape[-2:])
    return y[:, None] - places[:, 0, None, None], x - places[:, 1, None, None]
