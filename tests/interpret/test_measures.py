import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from ddpm_sa import Pipeline, UNet, record_attention
from ddpm_sa.interpret.measures import (
    Measures,
    distance,
    entropy,
    local_share,
    measure_attention,
    overlap,
)
from tests.support.reference import SMALL, randomise_

GRID = torch.cartesian_prod(torch.arange(4), torch.arange(6))  # every pixel of 4 x 6


def one_hot(y: int, x: int) -> Tensor:
    """A map of 4 x 6 that looks at one pixel."""
    maps = torch.zeros(4, 6)
    maps[y, x] = 1
    return maps


def test_attention_on_the_query_itself_is_narrow_near_and_local() -> None:
    maps = torch.stack([one_hot(int(y), int(x)) for y, x in GRID])
    assert_close(entropy(maps), torch.zeros(24))
    assert_close(distance(maps, GRID), torch.zeros(24))
    assert_close(local_share(maps, GRID), torch.ones(24))


def test_even_attention_has_the_entropy_log_of_the_pixels_and_the_mean_distance_of_two() -> None:
    maps = torch.full((24, 4, 6), 1 / 24)
    assert_close(entropy(maps), torch.full((24,), math.log(24)))
    pixels = [(int(y), int(x)) for y, x in GRID]
    by_hand = [sum(math.dist(one, other) for other in pixels) / 24 for one in pixels]
    assert_close(distance(maps, GRID), torch.tensor(by_hand))
    # A corner has 4 pixels around it, an edge 6, the inside 9.
    assert_close(local_share(maps, GRID)[[0, 1, 7]], torch.tensor([4, 6, 9]) / 24)


def test_attention_that_is_even_over_n_pixels_has_the_entropy_log_n() -> None:
    maps = (one_hot(0, 0) + one_hot(3, 5) + one_hot(2, 2)) / 3
    assert_close(entropy(maps), torch.tensor(math.log(3)))


def test_distance_is_that_of_pythagoras_and_locality_that_of_a_square() -> None:
    maps, query = one_hot(3, 5)[None], torch.tensor([[0, 1]])
    assert_close(distance(maps, query), torch.tensor([5.0]))
    assert local_share(maps, query, 3).item() == 0  # 4 columns away
    assert local_share(maps, query, 4).item() == 1


def test_heads_that_look_at_the_same_overlap_whole_and_others_not() -> None:
    half = (one_hot(0, 0) + one_hot(1, 1)) / 2
    maps = torch.stack([one_hot(0, 0), half, one_hot(2, 2)])[:, None]  # (heads, 1, h, w)
    expected = torch.tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    assert_close(overlap(maps)[..., 0], expected)


@pytest.mark.parametrize("queries", ["all", [(2, 11), (7, 0), (5, 5)]])
def test_measures_while_sampling_are_those_of_the_recorded_maps(queries) -> None:
    unet = randomise_(UNet(**SMALL | {"sample_size": (8, 12)}))
    pipeline = Pipeline(unet, DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    with (
        record_attention(pipeline.unet, queries=queries, heads="all") as maps,
        measure_attention(pipeline.unet, queries=queries) as measures,
    ):
        pipeline(num_images=2, steps=3)
    for name, evaluations in measures.items():
        assert len(evaluations) == len(maps[name]) == 3
        # Layers lie at half the resolution: queries of the image, halved.
        places = GRID if queries == "all" else torch.tensor(queries) // 2
        for found, kept in zip(evaluations, maps[name], strict=True):
            assert found.overlap.shape == (2, 4, 4)
            assert_close(found.entropy, entropy(kept).mean(-1))
            assert_close(found.distance, 2 * distance(kept, places).mean(-1))
            assert_close(found.local_share, local_share(kept, places).mean(-1))
            assert_close(found.overlap, overlap(kept).mean(-1))
            assert_close(found.overlap.diagonal(dim1=1, dim2=2), torch.ones(2, 4))


def test_even_measures_are_what_a_layer_without_keys_has() -> None:
    """Where all keys are alike, every pixel looks everywhere evenly."""
    unet = UNet(**SMALL | {"sample_size": (8, 12)})
    randomise_(unet)
    for parameter in unet.mid_block.attentions[0].to_q.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad(), measure_attention(unet, ["mid_block.attentions.0"]) as measures:
        unet(torch.randn(1, 3, 8, 12), 5)
    ((found,),) = measures.values()
    even = Measures.of_even((4, 6), 2)
    for name in ("entropy", "distance", "local_share"):
        assert_close(getattr(found, name), getattr(even, name).expand(1, 4))
