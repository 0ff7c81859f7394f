"""The U-Net of denoising-diffusion-pytorch as a network of this package."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_sa.interpret.ablation import ablate_attention
from ddpm_sa.interpret.recording import record_attention
from ddpm_sa.models.attention_slots import attention_layers
from ddpm_sa.models.blocks.rms_norm import LinearAttention, MemoryAttention, RMSNorm
from ddpm_sa.models.families.lucidrains import LucidrainsUNet
from ddpm_sa.models.unet import UNet
from tests.support.reference import randomise_

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "conv_in_channels": 6,
    "block_out_channels": (8, 12),
    "timestep_input_dim": 8,
    "attention_types": ("linear", "full"),
    "num_attention_heads": (1, 2),
    "attention_head_dim": (4, 4),
    "num_memory_tokens": 3,
}


def network() -> LucidrainsUNet:
    unet = LucidrainsUNet(**SMALL).eval()
    randomise_(unet)
    return unet


def images(size: int = 8) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_memory_attention_is_the_softmax_over_tokens_and_pixels() -> None:
    """The definition: tokens put before the keys and values of the pixels."""
    layer = MemoryAttention(6, heads=2, head_dim=4, memory_tokens=3).double()
    randomise_(layer)
    x = images().double()[:, [0, 1, 2, 0, 1, 2]]
    tokens = layer.norm(x).flatten(2).mT
    q, k, v = (
        project(tokens).unflatten(-1, (2, 4)).transpose(1, 2)
        for project in (layer.to_q, layer.to_k, layer.to_v)
    )
    memory_k, memory_v = layer.memory[:, None].expand(-1, 2, -1, -1, -1)
    k, v = torch.cat([memory_k, k], 2), torch.cat([memory_v, v], 2)
    mixed = (q @ k.mT / math.sqrt(4)).softmax(-1) @ v
    out = layer.to_out(mixed.transpose(1, 2).flatten(2)).mT.unflatten(-1, (8, 8))
    torch.testing.assert_close(layer(x), x + out, rtol=1e-6, atol=1e-6)


def test_linear_attention_is_its_definition() -> None:
    layer = LinearAttention(6, heads=2, head_dim=4, memory_tokens=3).double()
    randomise_(layer)
    x = images().double()[:, [0, 1, 2, 0, 1, 2]]
    tokens = layer.norm(x).flatten(2).mT
    expected = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q = (tokens @ layer.to_q.weight[rows].T).softmax(-1) / 2
        k = tokens @ layer.to_k.weight[rows].T
        v = tokens @ layer.to_v.weight[rows].T
        k = torch.cat([layer.memory[0, head].expand(2, -1, -1), k], 1).softmax(1)
        v = torch.cat([layer.memory[1, head].expand(2, -1, -1), v], 1)
        expected.append(torch.einsum("bnd,bnv,bqd->bvq", k, v, q))
    out = layer.to_out(torch.cat(expected, 1).unflatten(-1, (8, 8)))
    torch.testing.assert_close(layer(x), x + out)


def test_rms_norm_leaves_a_mean_square_of_the_squared_weight() -> None:
    norm = RMSNorm(6)
    norm.weight.data.fill_(3.0)
    x = 100 * torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(norm(x).square().mean(1), torch.full((2, 4, 4), 9.0))
    assert torch.equal(norm(torch.zeros(1, 6, 2, 2)), torch.zeros(1, 6, 2, 2))


def test_one_image_alone_is_that_image_in_a_batch() -> None:
    unet, x, t = network(), images(), torch.tensor([3, 741])
    with torch.no_grad():
        both = unet(x, t).sample
        alone = unet(x[1:], t[1:], return_dict=False)[0]
    torch.testing.assert_close(both[1:], alone)


def test_it_is_one_graph_for_the_compiler() -> None:
    unet, x, t = network(), images(), torch.tensor([3, 741])
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t).sample, unet(x, t).sample)


def test_gradients_are_finite_and_somewhere_not_zero() -> None:
    unet = network()
    unet(images(), torch.tensor([3, 741])).sample.square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


# Attention


def test_layers_with_maps_are_those_of_full_attention_alone() -> None:
    found = attention_layers(network())
    assert {name: layer.reduction for name, layer in found.items()} == {
        "down_blocks.1.attentions.0": 2,
        "mid_block.attentions.0": 2,
        "up_blocks.0.attentions.0": 2,
    }


def test_recording_changes_no_bit_and_each_map_sums_to_1() -> None:
    unet, x = network(), images()
    with torch.no_grad():
        expected = unet(x, 500).sample
        with record_attention(unet, heads="all") as maps:
            assert torch.equal(unet(x, 500).sample, expected)
    assert set(maps) == set(attention_layers(unet))
    for recorded in maps.values():
        assert recorded[0].shape == (2, 2, 16, 4, 4)
        torch.testing.assert_close(recorded[0].sum((-2, -1)), torch.ones(2, 2, 16))


def test_pixels_are_weighed_by_their_map_and_their_share() -> None:
    """Attention that the slot computes: uniform attention leaves what the tokens get as it is."""
    layer = MemoryAttention(6, heads=1, head_dim=4, memory_tokens=3).double()
    randomise_(layer)
    x = images().double()[:, [0, 1, 2, 0, 1, 2]]
    tokens = layer.norm(x).flatten(2).mT
    q, k, v = layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens)
    logits = torch.cat([q @ layer.memory[0, 0].T, q @ k.mT], -1) / 2
    weights = logits.softmax(-1)
    share = weights[..., 3:].sum(-1, keepdim=True)
    mixed = weights[..., :3] @ layer.memory[1, 0] + share * v.mean(1, keepdim=True)
    out = layer.to_out(mixed).mT.unflatten(-1, (8, 8))
    layer.attend = lambda q, k, v, *, scale, grid: v.mean(-2, keepdim=True).expand_as(v)
    torch.testing.assert_close(layer(x), x + out, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("replacement", ["identity", "uniform"])
def test_ablation_reaches_the_layers(replacement: Any) -> None:
    unet, x = network(), images()
    with torch.no_grad():
        expected = unet(x, 500).sample
        with ablate_attention(unet, replacement):
            changed = unet(x, 500).sample
        again = unet(x, 500).sample
    assert changed.isfinite().all()
    assert not torch.allclose(changed, expected)
    assert torch.equal(again, expected)


# Files and mistakes


def test_a_saved_network_opens_with_the_same_bits(tmp_path: Any) -> None:
    unet = network()
    unet.save_pretrained(tmp_path / "unet")
    again = LucidrainsUNet.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[n], w) for n, w in unet.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(images(), 3).sample, unet(images(), 3).sample)


def test_another_class_says_whose_configuration_it_is(tmp_path: Any) -> None:
    network().save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match=r"which UNet does not know: it is of a 'LucidrainsUNet'"):
        UNet.from_pretrained(tmp_path)


def test_diffusers_has_none_of_it() -> None:
    with pytest.raises(ValueError, match="diffusers has no LucidrainsUNet: this network stays a"):
        network().to_diffusers()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_types": ("linear", "cubic")}, r"attention_types\[1\]='cubic' is unknown"),
        ({"attention_types": ("full",)}, r"attention_types names 1 levels and block_out_channels"),
        ({"num_attention_heads": (1, 0)}, r"num_attention_heads\[1\]=0 must be a whole number"),
        ({"block_out_channels": "big"}, r"block_out_channels='big' must be a list of 1 to 16"),
        ({"block_out_channels": (10**9, 8)}, r"block_out_channels\[0\]=1000000000 must be"),
        ({"num_memory_tokens": -1}, "num_memory_tokens=-1 must be a whole number"),
        ({"num_class_embeds": 3}, "num_class_embeds=3 must be null: there are no classes"),
        ({"timestep_input_dim": 2}, "timestep_input_dim=2 must be at least 4"),
        ({"dropout": 2}, "dropout=2 must be a finite number from 0 to 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LucidrainsUNet(**SMALL | change)


def test_images_and_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="7 x 7 cannot be halved at each of the 2 levels"):
        network()(images(7), 3)
    with pytest.raises(ValueError, match="unconditional: leave class_labels out"):
        network()(images(), 3, torch.tensor([0, 1]))
