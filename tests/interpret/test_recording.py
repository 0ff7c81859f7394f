import contextlib
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from einops import rearrange
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from ddpm_sa import Pipeline, UNet, record_attention
from ddpm_sa.models.attention import PixelAttention, SAGANAttention
from ddpm_sa.models.attention_slots import attention_layers
from tests.support.reference import SMALL, Fixture, randomise_, twins

NAMES = [
    "down_blocks.1.attentions.0",
    "mid_block.attentions.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
]


def network(**changes: Any) -> UNet:
    """Two levels, attention in the lower, 4 heads of 4 features."""
    unet = UNet(**(SMALL | {"sample_size": 8} | changes))
    randomise_(unet)
    return unet.eval()


def images(size: int = 1, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 3, height, width, generator=generator)


class Keeping:
    """Keeps what went in and out of the `attend` that was in a slot."""

    def __init__(self, attend: Any) -> None:
        self.attend, self.calls = attend, []

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        out = self.attend(q, k, v, scale=scale, grid=grid)
        self.calls.append((q, k, v, out))
        return out


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [{}, {"attention_head_dim": None}, {"attention_kind": "sagan"}],
    ids=["four heads", "one head", "sagan"],
)
def test_rows_sum_to_one_and_times_v_give_what_attend_returned(config: dict[str, Any]) -> None:
    unet = network(**config)
    keeping = {}
    for name, layer in attention_layers(unet).items():
        layer.module.attend = keeping[name] = Keeping(layer.module.attend)
    with record_attention(unet, queries="all", heads="all") as maps:
        unet(images(2), 5)
    assert list(maps) == list(keeping) == NAMES
    for name, (rows,) in maps.items():
        ((_, _, v, out),) = keeping[name].calls
        assert rows.shape == (2, v.shape[1], 16, 4, 4)
        assert_close(rows.sum((-2, -1)), torch.ones(2, v.shape[1], 16), rtol=0, atol=1e-5)
        assert rows.std() > 0.01  # far from uniform: a wrong row would not do
        assert_close(rearrange(rows, "b n q h w -> b n q (h w)") @ v, out, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_images_have_the_bits_of_an_unrecorded_run(scheduler: str) -> None:
    pipeline = Pipeline(network(), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_images": 3, "steps": 4, "scheduler": scheduler}
    plain = pipeline(**settings, output_type="pt").images
    with record_attention(pipeline.unet, queries=[(0, 0), (7, 7)]) as maps:
        recorded = pipeline(**settings, output_type="pt").images
    assert torch.equal(torch.as_tensor(recorded), torch.as_tensor(plain))
    assert [len(evaluations) for evaluations in maps.values()] == [4] * 4


def test_gradients_have_the_bits_of_an_unrecorded_run() -> None:
    unet = network()

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(unet(images(), 5).sample.sum(), [*unet.parameters()]))

    plain = gradients()
    with record_attention(unet):
        recorded = gradients()
    assert all(map(torch.equal, recorded, plain))


@torch.no_grad()
def test_maps_of_sagan_attention_are_those_of_the_original_port() -> None:
    original = Fixture("sagan_attention")
    unet = network(
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_kind="sagan",
    )
    assert unet.mid_block is not None
    layer = unet.mid_block.attentions[0]
    assert isinstance(layer, SAGANAttention)
    weights = {name: torch.from_numpy(array) for name, array in original.weights().items()}
    layer.load_state_dict(weights, strict=True)
    with record_attention(unet) as maps:
        layer(original["in/x"])
    (rows,) = maps["mid_block.attentions.0"]
    expected = rearrange(original["out/attention"], "b q (h w) -> b 1 q h w", h=8)
    assert_close(rows, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_maps_of_a_network_that_diffusers_saved_are_those_it_computes(tmp_path: Path) -> None:
    _, theirs = twins(SMALL | {"sample_size": 8})
    theirs.save_pretrained(tmp_path)
    ours = UNet.from_pretrained(tmp_path)
    scores: dict[str, Tensor] = {}
    for name in NAMES:
        layer = theirs.get_submodule(name)
        layer.set_processor(AttnProcessor())  # the one that has the map in its hands

        def kept(*inputs: Any, name: str = name, of: Any = layer.get_attention_scores) -> Tensor:
            scores[name] = of(*inputs)
            return scores[name]

        layer.get_attention_scores = kept
    theirs(images(2), 5)
    with record_attention(ours, heads="all") as maps:
        ours(images(2), 5)
    for name, (rows,) in maps.items():
        expected = rearrange(scores[name], "(b n) q (h w) -> b n q h w", n=4, h=4)
        assert_close(rows, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pixel", "sagan"])
def test_attention_of_a_permuted_image_is_the_permuted_attention(kind: str) -> None:
    unet = network(attention_kind=kind)
    assert unet.mid_block is not None
    layer = unet.mid_block.attentions[0]
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    with record_attention(unet, layers=NAMES[1:2], heads="all") as maps:
        layer(x)
        layer(x.flatten(2)[..., order].view_as(x))  # without the convolutions, which see order
    plain, permuted = (rows.flatten(3) for rows in maps[NAMES[1]])
    assert_close(permuted, plain[:, :, order][..., order], rtol=0, atol=1e-6)
    assert (permuted - plain).abs().max() > 0.01


@torch.no_grad()
def test_two_regions_of_known_features_give_the_known_map() -> None:
    """q kᵀ · scale is log 6 for two pixels of one region, 0 for pixels of two regions."""
    unet = network(attention_head_dim=None, resnet_time_scale_shift="scale_shift")
    assert unet.mid_block is not None
    layer = unet.mid_block.attentions[0]
    assert isinstance(layer, PixelAttention)
    assert layer.group_norm is None
    for projection, weight in ((layer.to_q, math.log(6) * 16**0.5), (layer.to_k, 1.0)):
        projection.weight.copy_(weight * torch.eye(16))
        projection.bias.zero_()
    picture = torch.zeros(1, 16, 4, 4)
    picture[:, 0, :, :1] = 1  # a column of 4 pixels that have feature 0
    picture[:, 1, :, 1:] = 1  # 12 pixels that have feature 1
    with record_attention(unet, layers=NAMES[1:2], queries=[(7, 1), (0, 2)]) as maps:
        layer(picture)
    (rows,) = maps[NAMES[1]]
    # Over 4 · 6 + 12 = 36 from the column, over 4 + 12 · 6 = 76 from the rest.
    column = torch.tensor([6, 1, 1, 1]).expand(4, 4) / 36
    rest = torch.tensor([1, 6, 6, 6]).expand(4, 4) / 76
    assert_close(rows[0, 0], torch.stack([column, rest]), rtol=1e-5, atol=0)


@torch.no_grad()
def test_five_queries_at_64_x_64_cost_no_more_than_a_few_percent_of_memory() -> None:
    unet = network(
        sample_size=64,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
    )
    x, pixels = images(1, 64, 64), [(0, 0), (63, 63), (31, 32), (5, 60), (12, 12)]
    unet(x, 5)

    def peak(recording: contextlib.AbstractContextManager[Any]) -> int:
        """The most that torch's tensors took at once in an evaluation, in bytes."""
        with recording, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            unet(x, 5)
        assert record.profiler is not None
        events = record.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        return max(itertools.accumulate(change for _, change in sorted(changes)))

    plain = peak(contextlib.nullcontext())
    few = peak(record_attention(unet, queries=pixels))
    every = peak(record_attention(unet, queries="all"))
    assert plain > 1e6
    assert few < 1.03 * plain
    assert every > plain + 4096**2 * 4  # so the measure sees a whole map


@torch.no_grad()
def test_a_query_is_the_grids_pixel_that_holds_the_images() -> None:
    unet = network(sample_size=None)
    x = images(1, height=8, width=12)
    pixels = [(0, 0), (7, 11), (3, 4), (2, 5), (7, 11)]
    with record_attention(unet, heads="all") as whole:
        unet(x, 5)
    with record_attention(unet, queries=pixels, heads="all") as maps:
        unet(x, 5)
    for name, (rows,) in maps.items():
        assert rows.shape == (1, 4, 5, 4, 6)
        # 4 x 6 pixels of 2 x 2 each: (3, 4) and (2, 5) lie in row 1, column 2.
        expected = whole[name][0][:, :, [0, 23, 8, 8, 23]]
        # The product of few rows adds up in another order than that of many.
        assert_close(rows, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_each_level_has_its_own_grid() -> None:
    unet = network(
        block_out_channels=(8, 16, 16),
        down_block_types=("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3,
    )
    with record_attention(unet, queries=[(5, 2)]) as maps:
        unet(images(), 5)
    with record_attention(unet) as whole:
        unet(images(), 5)
    sizes = {"down_blocks.0": 8, "down_blocks.1": 4, "down_blocks.2": 2, "mid_block": 2}
    for level, size in (sizes | {"up_blocks.0": 2, "up_blocks.1": 4, "up_blocks.2": 8}).items():
        (rows,) = maps[f"{level}.attentions.0"]
        assert rows.shape == (1, 1, 1, size, size)
        place = 5 * size // 8 * size + 2 * size // 8
        (every,) = whole[f"{level}.attentions.0"]
        assert_close(rows[:, :, 0], every[:, :, place], rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_mean_is_over_the_heads() -> None:
    unet = network()
    with record_attention(unet, heads="all") as every, record_attention(unet) as mean:
        unet(images(2), 5)
    for name in NAMES:
        assert_close(mean[name][0], every[name][0].mean(1, keepdim=True), rtol=0, atol=1e-6)


@torch.no_grad()
def test_evaluations_are_kept_apart_whatever_their_batch() -> None:
    unet = network()
    with record_attention(unet, layers=NAMES[1:2], queries=[(1, 1)]) as maps:
        for size in (1, 3, 2):
            unet(images(size), size)
    assert list(maps) == NAMES[1:2]
    assert [rows.shape[0] for rows in maps[NAMES[1]]] == [1, 3, 2]
    for size, rows in zip((1, 3, 2), maps[NAMES[1]], strict=True):
        with record_attention(unet, queries=[(1, 1)]) as alone:
            unet(images(size), size)
        assert torch.equal(rows, alone[NAMES[1]][0])
        assert (rows.dtype, rows.device.type, rows.requires_grad) == (torch.float32, "cpu", False)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_computes_again_is_not_recorded_again(reentrant: bool) -> None:
    unet = network().train()
    unet.enable_gradient_checkpointing(
        lambda function, *inputs: torch.utils.checkpoint.checkpoint(
            function.__call__, *inputs, use_reentrant=reentrant
        )
    )
    calls = [Keeping(layer.module.attend) for layer in attention_layers(unet).values()]
    for layer, keeping in zip(attention_layers(unet).values(), calls, strict=True):
        layer.module.attend = keeping
    with record_attention(unet) as maps:
        for step in range(2):
            unet(images(2).requires_grad_(), step).sample.sum().backward()
    assert [len(keeping.calls) for keeping in calls] == [4] * 4
    assert [len(evaluations) for evaluations in maps.values()] == [2] * 4


@torch.no_grad()
def test_rows_are_in_single_precision_where_the_network_is_not() -> None:
    unet = network()
    keeping = Keeping(attention_layers(unet)[NAMES[1]].module.attend)
    attention_layers(unet)[NAMES[1]].module.attend = keeping
    with record_attention(unet, heads="all") as maps, torch.autocast("cpu", torch.bfloat16):
        unet(images(), 5)
    ((q, k, _, _),) = keeping.calls
    assert q.dtype == torch.bfloat16
    logits = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    expected = rearrange(logits.softmax(-1), "b n q (h w) -> b n q h w", h=4).float()
    assert_close(maps[NAMES[1]][0], expected, rtol=0, atol=1e-6)


def slots(unet: UNet) -> list[Any]:
    return [layer.module.attend for layer in attention_layers(unet).values()]


def test_slots_hold_what_they_held_after_an_exception_and_after_nesting() -> None:
    unet = network()
    before = slots(unet)
    with pytest.raises(ValueError, match="class_labels"), record_attention(unet):
        unet(images(), 5, class_labels=torch.zeros(1))
    assert slots(unet) == before
    with record_attention(unet) as outer:
        between = slots(unet)
        with record_attention(unet, layers=NAMES[:1]) as inner, torch.no_grad():
            unet(images(), 5)
        assert all(map(lambda one, other: one is other, slots(unet), between))
    assert slots(unet) == before
    assert torch.equal(outer[NAMES[0]][0], inner[NAMES[0]][0])
    assert len(outer[NAMES[1]]) == 1


@torch.no_grad()
@pytest.mark.parametrize("query", [(8, 0), (0, 12)])
def test_a_query_outside_the_image_is_refused_with_its_size(query: tuple[int, int]) -> None:
    unet = network()
    with (
        pytest.raises(ValueError, match=r"outside the image of 8 x 12 pixels; y comes first"),
        record_attention(unet, queries=[query]),
    ):
        unet(images(1, 8, 12), 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": [(-1, 0)]}, r"queries=\[\(-1, 0\)\] must be 'all' or a list of pixels"),
        ({"queries": [(0.5, 0)]}, "whole numbers"),
        ({"queries": [3, 4]}, "a list of pixels"),
        ({"queries": [(1, 2, 3)]}, "a list of pixels"),
        ({"queries": []}, "a list of pixels"),
        ({"queries": "some"}, "a list of pixels"),
        ({"heads": "first"}, "heads='first' must be 'mean' or 'all'"),
        ({"layers": ["mid_block"]}, f"known are {', '.join(NAMES)}"),
        ({"layers": [NAMES[0], "attn"]}, f"known are {', '.join(NAMES)}"),
        ({"layers": NAMES[0]}, "a list of names"),
        ({"layers": []}, "a list of names"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    unet = network()
    before = slots(unet)
    with pytest.raises(ValueError, match=message), record_attention(unet, **settings):
        pass
    assert slots(unet) == before


def test_networks_that_cannot_be_recorded_are_refused_with_the_way_out() -> None:
    unet = network()
    plain = UNet(
        **SMALL | {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
        add_attention=False,
    )
    pipeline = Pipeline(unet, DDPMScheduler())
    for thing, message in [
        (unet.to_diffusers(), r"open its folder with ddpm_sa.UNet.from_pretrained"),
        (torch.compile(unet, backend="eager"), "the network is compiled.*given to torch.compile"),
        (pipeline, "not in a Pipeline; give its .unet"),
        (plain, "no attention layer"),
    ]:
        with pytest.raises(ValueError, match=message), record_attention(thing):
            pass
    unet.compile(backend="eager")
    with pytest.raises(ValueError, match="the network is compiled"), record_attention(unet):
        pass
