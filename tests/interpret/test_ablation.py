from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from ddpm_sa import UNet, record_attention
from ddpm_sa.interpret.ablation import ablate_attention
from ddpm_sa.models.attention import PixelAttention, SAGANAttention
from ddpm_sa.models.attention_slots import attention_layers
from tests.support.reference import SMALL, randomise_

MID = "mid_block.attentions.0"
REPLACEMENTS: list[dict[str, Any]] = [
    {"replacement": "identity"},
    {"replacement": "uniform"},
    {"replacement": "local", "radius": 1},
]


def network(**changes: Any) -> UNet:
    unet = UNet(**(SMALL | {"sample_size": (8, 12)} | changes))
    randomise_(unet)
    return unet.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def slots(unet: UNet) -> list[Any]:
    return [layer.module.attend for layer in attention_layers(unet).values()]


def q_k_v(pixels: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(3, 2, 4, pixels, 5, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pixel", "sagan"])
@pytest.mark.parametrize("ablation", REPLACEMENTS, ids=str)
def test_a_layer_whose_output_is_zero_changes_nothing(ablation: Any, kind: str) -> None:
    unet = network(attention_kind=kind)
    for layer in attention_layers(unet).values():
        module = layer.module
        assert isinstance(module, PixelAttention | SAGANAttention)
        last = module.to_out if isinstance(module, PixelAttention) else [module.gamma]
        for parameter in last.parameters() if isinstance(last, torch.nn.Module) else last:
            torch.nn.init.zeros_(parameter)
    plain = unet(images(), 5).sample
    with ablate_attention(unet, **ablation):
        assert torch.equal(unet(images(), 5).sample, plain)


@torch.no_grad()
@pytest.mark.parametrize("ablation", REPLACEMENTS, ids=str)
def test_any_replacement_changes_what_a_network_says_and_only_inside(ablation: Any) -> None:
    unet = network()
    before, plain = slots(unet), unet(images(), 5).sample
    with ablate_attention(unet, **ablation, layers=[MID]):
        changed = unet(images(), 5).sample
    assert changed.isfinite().all()
    assert (changed - plain).abs().max() > 1e-3
    assert slots(unet) == before
    assert torch.equal(unet(images(), 5).sample, plain)


def test_uniform_is_mean_pooling_of_v_and_identity_is_v() -> None:
    unet, (q, k, v) = network(), q_k_v()
    layer = attention_layers(unet)[MID].module
    with ablate_attention(unet, "uniform"):
        pooled = layer.attend(q, k, v, scale=0.4, grid=(4, 6))
    expected = F.adaptive_avg_pool1d(v.flatten(0, 1).mT, 1).mT.unflatten(0, (2, 4))
    assert_close(pooled, expected.expand_as(v), rtol=0, atol=1e-6)
    with ablate_attention(unet, "identity"):
        assert torch.equal(layer.attend(q, k, v, scale=0.4, grid=(4, 6)), v)


def test_a_window_of_one_pixel_is_the_identity_and_one_of_all_changes_nothing() -> None:
    unet, (q, k, v) = network(), q_k_v()
    layer = attention_layers(unet)[MID].module
    with ablate_attention(unet, "local", radius=0):
        assert_close(layer.attend(q, k, v, scale=0.4, grid=(4, 6)), v)
    with ablate_attention(unet, "local", radius=5):
        windowed = layer.attend(q, k, v, scale=0.4, grid=(4, 6))
    assert_close(windowed, layer.attend(q, k, v, scale=0.4, grid=(4, 6)), rtol=0, atol=1e-5)


def test_a_window_sees_its_own_pixels_alone() -> None:
    """v marks one pixel; who is further off than the radius, in y or in x, gets nothing of it."""
    unet, (q, k, _) = network(), q_k_v()
    v = torch.zeros(2, 4, 24, 1)
    v[:, :, 1 * 6 + 2] = 1
    layer = attention_layers(unet)[MID].module
    with ablate_attention(unet, "local", radius=1):
        seen = layer.attend(q, k, v, scale=0.4, grid=(4, 6)).unflatten(2, (4, 6))[..., 0] > 0
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[0:3, 1:4] = True
    assert torch.equal(seen, expected.expand(2, 4, 4, 6))


@torch.no_grad()
@pytest.mark.parametrize("ablation", REPLACEMENTS, ids=str)
@pytest.mark.parametrize("queries", ["all", [(0, 0), (5, 7), (7, 11)]])
def test_rows_recorded_inside_times_v_are_what_the_replacement_gave(
    ablation: Any, queries: Any
) -> None:
    unet = network()
    with (
        ablate_attention(unet, **ablation),
        record_attention(unet, [MID], queries, "all") as maps,
        record_attention(unet, [MID], queries, "all") as nested,
    ):
        layer = attention_layers(unet)[MID].module
        q, k, v = q_k_v()
        out = layer.attend(q, k, v, scale=0.4, grid=(4, 6))
    (rows,) = maps[MID]
    places = range(24) if queries == "all" else [y // 2 * 6 + x // 2 for y, x in queries]
    assert_close(rows.sum((-2, -1)), torch.ones(2, 4, len(places)))
    assert_close(rows.flatten(3) @ v, out[:, :, list(places)], rtol=0, atol=1e-5)
    assert torch.equal(nested[MID][0], rows)


@torch.no_grad()
def test_different_layers_are_replaced_differently_when_nested() -> None:
    unet = network()
    others = [name for name in attention_layers(unet) if name != MID]
    with (
        ablate_attention(unet, "uniform", [MID]),
        ablate_attention(unet, "identity", others),
        record_attention(unet, queries=[(0, 0)]) as maps,
    ):
        unet(images(), 5)
    assert_close(maps.pop(MID)[0], torch.full((2, 1, 1, 4, 6), 1 / 24))
    for (rows,) in maps.values():
        assert rows[:, 0, 0, 0, 0].tolist() == [1, 1]


def test_what_makes_no_sense_is_refused_and_leaves_the_slots() -> None:
    unet = network()
    before = slots(unet)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"replacement": "none"}, "known are identity, uniform, local"),
        ({"replacement": "local"}, "'local', and it alone, needs one"),
        ({"replacement": "uniform", "radius": 1}, "'local', and it alone, needs one"),
        ({"replacement": "local", "radius": -1}, "radius=-1 must be 0 or greater"),
        ({"replacement": "uniform", "layers": ["mid"]}, "known are down_blocks"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message), ablate_attention(unet, **settings):
            pass
    with (
        record_attention(unet),
        pytest.raises(ValueError, match="enter ablate_attention first, and record inside"),
        ablate_attention(unet, "uniform"),
    ):
        pass
    assert slots(unet) == before
