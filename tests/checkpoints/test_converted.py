import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_sa.checkpoints import from_ddpm_tf, from_pesser
from ddpm_sa.models.presets import preset
from ddpm_sa.models.unet import UNet
from tests.support.reference import Fixture, error_of_each_image

AVERAGE = "/ExponentialMovingAverage"
FORMATS: dict[str, Callable[..., UNet]] = {"ddpm_tf_unet": from_ddpm_tf, "pesser_unet": from_pesser}
formats = pytest.mark.parametrize("name", FORMATS)

# What was recorded -> our module, and whether its input or its output.
RECORDED = {
    "mid/sinusoid": ("time_embedding.linear_1", "in"),
    "mid/temb": ("time_embedding", "out"),
    "mid/temb_in": ("time_embedding.linear_2", "in"),
    "mid/temb_out": ("time_embedding.linear_2", "out"),
    "mid/resnet0_out": ("down_blocks.0.resnets.0", "out"),
    "mid/res0_in": ("down_blocks.0.resnets.0", "in"),
    "mid/res0_out": ("down_blocks.0.resnets.0", "out"),
    "mid/downsample0_out": ("down_blocks.0.downsamplers.0", "out"),
    "mid/down0_in": ("down_blocks.0.downsamplers.0", "in"),
    "mid/down0_out": ("down_blocks.0.downsamplers.0", "out"),
    "mid/attn0_in": ("down_blocks.1.attentions.0", "in"),
    "mid/attn0_out": ("down_blocks.1.attentions.0", "out"),
    "mid/upsample0_out": ("up_blocks.0.upsamplers.0", "out"),
    "mid/up0_in": ("up_blocks.0.upsamplers.0", "in"),
    "mid/up0_out": ("up_blocks.0.upsamplers.0", "out"),
}


@formats
def test_output_and_intermediates_are_those_of_the_original(name: str) -> None:
    original = Fixture(name)
    unet = FORMATS[name](original.weights(), 16)
    seen: dict[tuple[str, str], Tensor] = {}
    for path in {path for path, _ in RECORDED.values()}:

        def hook(_: Any, inputs: tuple, out: Tensor, path: str = path) -> None:
            seen[path, "in"], seen[path, "out"] = inputs[0], out

        unet.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        out = unet(original.image("in/x"), original["in/t"]).sample
    recorded = [key for key in original.arrays if key.startswith("mid/")]
    assert len(recorded) >= 7
    for key in recorded:
        assert (error_of_each_image(seen[RECORDED[key]], original.image(key)) < 1e-4).all(), key
    assert (error_of_each_image(out, original.image("out/y")) < 1e-4).all()
    assert not unet.training
    assert unet.config["sample_size"] == 16


# The variables of any network of the paper's code


def paper_variables(
    ch: int, ch_mult: tuple[int, ...], layers: int, attended: set[int], out_ch: int = 3
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order in which diffusion_tf/models/unet.py makes its variables."""

    def dense(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"model/{name}/W", shape
        yield f"model/{name}/b", shape[-1:]

    def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"model/{name}/beta", (channels,)
        yield f"model/{name}/gamma", (channels,)

    def block(name: str, before: int, after: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{name}/norm1", before)
        yield from dense(f"{name}/conv1", 3, 3, before, after)
        yield from dense(f"{name}/temb_proj", 4 * ch, after)
        yield from norm(f"{name}/norm2", after)
        yield from dense(f"{name}/conv2", 3, 3, after, after)
        if before != after:
            yield from dense(f"{name}/nin_shortcut", before, after)

    def attention(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{name}/norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            yield from dense(f"{name}/{part}", channels, channels)

    yield from dense("temb/dense0", ch, 4 * ch)
    yield from dense("temb/dense1", 4 * ch, 4 * ch)
    yield from dense("conv_in", 3, 3, 3, ch)
    h, skips, levels = ch, [ch], range(len(ch_mult))
    for level in levels:
        for index in range(layers):
            yield from block(f"down_{level}/block_{index}", h, ch * ch_mult[level])
            h = ch * ch_mult[level]
            if level in attended:
                yield from attention(f"down_{level}/attn_{index}", h)
            skips.append(h)
        if level != levels[-1]:
            yield from dense(f"down_{level}/downsample/conv", 3, 3, h, h)
            skips.append(h)
    yield from block("mid/block_1", h, h)
    yield from attention("mid/attn_1", h)
    yield from block("mid/block_2", h, h)
    for level in reversed(levels):
        for index in range(layers + 1):
            yield from block(f"up_{level}/block_{index}", h + skips.pop(), ch * ch_mult[level])
            h = ch * ch_mult[level]
            if level in attended:
                yield from attention(f"up_{level}/attn_{index}", h)
        if level != 0:
            yield from dense(f"up_{level}/upsample/conv", 3, 3, h, h)
    yield from norm("norm_out", h)
    yield from dense("conv_out", 3, 3, h, out_ch)


def zeros(variables: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in variables}


def test_paper_variables_are_those_of_the_recorded_network() -> None:
    """The list that the tests below rest on, against the names that TensorFlow itself gave."""
    recorded = {name: a.shape for name, a in Fixture("ddpm_tf_unet").weights().items()}
    assert dict(paper_variables(32, (1, 2), 1, {1})) == recorded


@pytest.mark.parametrize("out_ch", [3, 6], ids=["", "learned variance"])
def test_configuration_of_the_cifar10_checkpoint_is_read_off_its_variables(out_ch: int) -> None:
    unet = from_ddpm_tf(zeros(paper_variables(128, (1, 2, 2, 2), 2, {1}, out_ch)), 32)
    # The paper's own count, and with learned variance that of its 2C outputs.
    counts = {3: 35_746_307, 6: 35_749_766}
    assert sum(p.numel() for p in unet.parameters()) == counts[out_ch]
    expected = {**preset("cifar10").unet, "out_channels": out_ch, "dropout": 0.0}
    assert {name: unet.config[name] for name in expected} == expected


def test_every_variable_of_a_deep_network_finds_its_place() -> None:
    """Each array holds its own number; the paper's order of creation says whose it is."""
    variables = list(paper_variables(32, (1, 2, 3, 3), 2, {1, 3}))
    weights = {n: np.full(s, i, dtype=np.float32) for i, (n, s) in enumerate(variables)}
    unet = from_ddpm_tf(weights, 64)
    numbers = {name: int(p.flatten()[0]) for name, p in unet.named_parameters()}
    assert sorted(numbers.values()) == list(range(len(variables)))
    whose = {name: variables[number][0] for name, number in numbers.items()}
    assert whose["up_blocks.0.resnets.2.conv1.weight"] == "model/up_3/block_2/conv1/W"
    assert whose["up_blocks.3.resnets.0.norm1.bias"] == "model/up_0/block_0/norm1/beta"
    assert whose["up_blocks.2.attentions.1.to_out.0.bias"] == "model/up_1/attn_1/proj_out/b"
    assert whose["down_blocks.3.attentions.1.to_k.weight"] == "model/down_3/attn_1/k/W"
    assert whose["mid_block.resnets.1.time_emb_proj.weight"] == "model/mid/block_2/temb_proj/W"
    assert whose["conv_norm_out.weight"] == "model/norm_out/gamma"


# What else lies in a TensorFlow checkpoint


def tiny() -> dict[str, np.ndarray]:
    return Fixture("ddpm_tf_unet").weights()


def assert_same(ours: UNet, expected: UNet) -> None:
    for name, weight in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight), name


def test_moving_averages_are_preferred_and_optimiser_variables_passed_over() -> None:
    weights = tiny()
    expected = from_ddpm_tf(weights, 16)
    slots = {f"{name}/Adam{n}": array for name, array in weights.items() for n in ("", "_1")}
    counters = dict.fromkeys(["beta1_power", "beta2_power", "global_step"], np.float32(0.5))
    averages = {name + AVERAGE: array for name, array in weights.items()}
    raw = {name: array + 1 for name, array in weights.items()}
    assert_same(from_ddpm_tf({**weights, **slots, **counters}, 16), expected)
    assert_same(from_ddpm_tf(averages, 16), expected)
    assert_same(from_ddpm_tf({**raw, **slots, **averages, **counters}, 16), expected)
    everything = {**raw, **slots, **averages, **counters}
    assert_same(from_ddpm_tf({f"{name}:0": a for name, a in everything.items()}, 16), expected)


def test_averages_and_raw_weights_are_not_mixed() -> None:
    weights = tiny()
    averages = {name + AVERAGE: array for name, array in weights.items()}
    del averages["model/conv_in/b" + AVERAGE]
    with pytest.raises(ValueError, match="model/conv_in/b/ExponentialMovingAverage is missing"):
        from_ddpm_tf({**weights, **averages}, 16)


def test_tensors_and_half_precision_arrays_are_taken_and_copied() -> None:
    arrays = Fixture("pesser_unet").weights()
    tensors = {name: torch.nn.Parameter(torch.from_numpy(a)) for name, a in arrays.items()}
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}  # exact: see README
    unet = from_pesser(arrays, 16)
    assert_same(from_pesser(tensors, 16), unet)
    assert_same(from_pesser(halves, 16), unet)
    arrays["conv_in.bias"] += 1
    assert_same(from_pesser(tensors, 16), from_pesser(arrays, 16))
    assert not torch.equal(unet.conv_in.bias.detach(), torch.from_numpy(arrays["conv_in.bias"]))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in unet.parameters())


# Mistakes


@formats
def test_a_missing_variable_is_named_as_the_format_names_it(name: str) -> None:
    weights = Fixture(name).weights()
    for variable in list(weights)[::3]:
        rest = {other: array for other, array in weights.items() if other != variable}
        with pytest.raises(ValueError, match=re.escape(f"{variable} is missing")):
            FORMATS[name](rest, 16)


@formats
def test_an_unexpected_variable_is_named(name: str) -> None:
    for variable in ("model/decoder/W", "down.0.attn.1.q.weight"):
        weights = {**Fixture(name).weights(), variable: np.zeros((4, 4))}
        with pytest.raises(ValueError, match=rf"{re.escape(variable)} has no place .*\(32, 64\)"):
            FORMATS[name](weights, 16)


@formats
def test_a_misshapen_variable_is_named(name: str) -> None:
    weights = Fixture(name).weights()
    # With these, which the configuration is read off, the others do not fit any more.
    telling = re.compile(r"(down\S*block.0\Wconv1|conv_out)\W(b|bias)$")
    for variable, array in list(weights.items())[::3]:
        spoilt = {**weights, variable: np.concatenate([array, array])}
        named = r"\S+" if telling.search(variable) else re.escape(variable)
        with pytest.raises(
            ValueError, match=rf"^{named} has the shape \(.*\) in torch's order, but"
        ):
            FORMATS[name](spoilt, 16)
    key = next(key for key in weights if "conv_in" in key and weights[key].ndim == 4)
    with pytest.raises(ValueError, match=f"{key} must have 4 axes, not 2"):
        FORMATS[name]({**weights, key: np.zeros((3, 3))}, 16)


def test_another_format_is_refused_with_the_name_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"^model/down_0/\* is missing: this is another format"):
        from_ddpm_tf(Fixture("pesser_unet").weights(), 16)
    with pytest.raises(ValueError, match=r"^down\.0\.\* is missing"):
        from_pesser(tiny(), 16)


def test_a_size_that_the_levels_cannot_halve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size=15 cannot be halved at each of the 2 levels"):
        from_ddpm_tf(tiny(), 15)
