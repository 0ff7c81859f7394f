import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_sa.checkpoints import from_openai
from ddpm_sa.models.unet import UNet
from tests.support.openai_network import UNetModel
from tests.support.reference import Fixture, error_of_each_image

HEADS: dict[str, dict[str, Any]] = {
    "improved_diffusion_unet": {"num_heads": 4},
    "guided_diffusion_unet_legacy_order": {"num_head_channels": 16},
    "guided_diffusion_unet_new_order": {"num_head_channels": 16, "use_new_attention_order": True},
}
fixtures = pytest.mark.parametrize("name", HEADS)
# What was recorded -> our module, and whether its input or its output.
RECORDED = {
    "mid/emb_in": ("time_embedding.linear_1", "in"),
    "mid/emb_out": ("time_embedding", "out"),
    "mid/res0_in": ("down_blocks.0.resnets.0", "in"),
    "mid/res0_out": ("down_blocks.0.resnets.0", "out"),
    "mid/down0_in": ("down_blocks.0.downsamplers.0", "in"),
    "mid/down0_out": ("down_blocks.0.downsamplers.0", "out"),
    "mid/attn0_in": ("down_blocks.1.attentions.0", "in"),
    "mid/attn0_out": ("down_blocks.1.attentions.0", "out"),
    "mid/up0_in": ("up_blocks.0.upsamplers.0", "in"),
    "mid/up0_out": ("up_blocks.0.upsamplers.0", "out"),
}


def opened(name: str) -> UNet:
    return from_openai(Fixture(name).weights(), 16, **HEADS[name])


@fixtures
def test_output_and_intermediates_are_those_of_the_original(name: str) -> None:
    original, unet = Fixture(name), opened(name)
    seen: dict[tuple[str, str], Tensor] = {}
    for path in {path for path, _ in RECORDED.values()}:

        def hook(_: Any, inputs: tuple, out: Tensor, path: str = path) -> None:
            seen[path, "in"], seen[path, "out"] = inputs[0], out

        unet.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        out = unet(original["in/x"], original["in/t"]).sample
    assert {key for key in original.arrays if key.startswith("mid/")} == RECORDED.keys()
    for key, where in RECORDED.items():
        assert (error_of_each_image(seen[where], original[key]) < 1e-4).all(), key
    assert (error_of_each_image(out, original["out/y"]) < 1e-4).all()
    assert not unet.training
    assert unet.config["sample_size"] == 16


@fixtures
def test_diffusers_network_of_the_same_weights_gives_the_originals_output(name: str) -> None:
    original, theirs = Fixture(name), opened(name).to_diffusers()
    with torch.no_grad():
        out = theirs(original["in/x"], original["in/t"]).sample
    assert (error_of_each_image(out, original["out/y"]) < 1e-4).all()


# Networks of other configurations

ONE_HEAD = {32: 1, 64: 1, 96: 1}
NETWORKS: dict[str, tuple[UNetModel, dict[str, Any]]] = {
    "attention at every level but one": (
        UNetModel(channel_mult=(1, 2, 3), num_res_blocks=2, attended=(0, 2), heads=ONE_HEAD),
        {"num_heads": 1},
    ),
    "classes, blocks that resample, heads of one width": (
        UNetModel(
            channel_mult=(1, 2, 3),
            attended=(1, 2),
            heads={64: 2, 96: 3},
            num_classes=5,
            resblock_updown=True,
            new_order=True,
        ),
        {"num_head_channels": 32, "use_new_attention_order": True},
    ),
    "a shift without a scale, three outputs": (
        UNetModel(scale_shift=False, out_channels=3, num_res_blocks=2, heads={64: 2}),
        {"num_heads": 2},
    ),
    "one level": (UNetModel(channel_mult=(1,), attended=(0,), heads={32: 4}), {"num_heads": 4}),
    "heads of several widths": (
        UNetModel(channel_mult=(1, 2, 3), attended=(0, 1), heads={32: 4, 64: 4, 96: 4}),
        {"num_heads": 4},
    ),
    "two heads on the way down, one on the way up": (
        UNetModel(heads={64: 2}, heads_up={64: 1}),
        {"num_heads": 2, "num_heads_upsample": 1},
    ),
    "one head on the way down, several of several widths on the way up": (
        UNetModel(channel_mult=(1, 2, 3), attended=(0, 1), heads=ONE_HEAD, heads_up={32: 4, 64: 4}),
        {"num_heads": 1, "num_heads_upsample": 4},
    ),
    "a first level of half the width": (
        UNetModel(
            model_channels=64,
            channel_mult=(0.5, 1, 1),
            attended=(1, 2),
            heads={64: 2},
            num_classes=5,
            resblock_updown=True,
        ),
        {"num_head_channels": 32},
    ),
    "a first level of twice the width": (
        UNetModel(channel_mult=(2, 1), heads={32: 1}),
        {"num_heads": 1},
    ),
    "no weights in what resamples": (
        UNetModel(channel_mult=(1, 2, 2), num_res_blocks=2, heads={64: 2}, conv_resample=False),
        {"num_heads": 2},
    ),
    "residual blocks that resample, though conv_resample is false": (
        UNetModel(heads={64: 2}, conv_resample=False, resblock_updown=True),
        {"num_heads": 2},
    ),
}
# Why a network opens with this package alone.
OURS_ALONE = {
    "heads of several widths": "one width for the heads of all levels",
    "two heads on the way down, one on the way up": "one width for the heads of all levels",
    "one head on the way down, several of several widths on the way up": "one width for the heads",
    "a first level of half the width": "UNet2DModel has no timestep_input_dim",
    "a first level of twice the width": "UNet2DModel has no timestep_input_dim",
    "no weights in what resamples": "resamples by convolutions and residual blocks alone",
}


def as_unet_model(name: str) -> UNetModel:
    return UNetModel(
        heads={64: 4},
        resblock_updown=name.startswith("guided"),
        new_order=name.endswith("new_order"),
    )


@fixtures
def test_the_network_of_these_tests_is_the_recorded_one(name: str) -> None:
    original, written = Fixture(name), as_unet_model(name)
    weights = {key: torch.from_numpy(array) for key, array in original.weights().items()}
    assert {key: tuple(w.shape) for key, w in weights.items()} == dict(written.shapes())
    out = written(weights, original["in/x"], original["in/t"], None)
    assert (error_of_each_image(out, original["out/y"]) < 1e-4).all()


@pytest.mark.parametrize("case", NETWORKS)
def test_networks_of_any_configuration_give_the_originals_output(case: str) -> None:
    written, flags = NETWORKS[case]
    weights = written.weights()
    unet = from_openai(weights, 16, **flags)
    x, t = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(3)
    labels = None if written.num_classes is None else torch.tensor([4, 0, 2])
    networks = [unet] if case in OURS_ALONE else [unet, unet.to_diffusers()]
    with torch.no_grad():
        expected = written(weights, x, 300 * t, labels)
        for network in networks:
            out = network(x, 300 * t, labels).sample
            assert (error_of_each_image(out, expected) < 1e-4).all()


def test_heads_of_several_widths_stay_ours() -> None:
    written, flags = NETWORKS["heads of several widths"]
    unet = from_openai(written.weights(), 16, **flags)
    assert {layer.heads for layer in unet.modules() if hasattr(layer, "heads")} == {4}


@pytest.mark.parametrize("case", OURS_ALONE)
def test_what_diffusers_has_not_stays_ours(case: str) -> None:
    written, flags = NETWORKS[case]
    unet = from_openai(dict(meta_weights(written)), 16, **flags)
    with pytest.raises(ValueError, match=OURS_ALONE[case]):
        unet.to_diffusers()


def meta_weights(written: UNetModel) -> Iterator[tuple[str, Tensor]]:
    """Names and shapes without memory."""
    for name, shape in written.shapes():
        yield name, torch.empty(shape, device="meta")


def test_without_its_flag_a_network_of_other_heads_on_the_way_up_would_be_another() -> None:
    """Why the flag is needed: the weights fit either way, and the outputs differ by their size."""
    written, flags = NETWORKS["two heads on the way down, one on the way up"]
    weights = written.weights()
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(2)
    with torch.no_grad():
        expected = written(weights, x, 300 * t, None)
        errors = [
            error_of_each_image(from_openai(weights, 16, **given)(x, 300 * t).sample, expected)
            for given in (flags, {"num_heads": 2})
        ]
    assert (errors[0] < 1e-4).all()
    assert (errors[1] > 0.1).all()


def test_files_in_half_precision_open_as_float32() -> None:
    """use_fp16 leaves the first and the last layers in float32."""
    written, flags = NETWORKS["a first level of half the width"]
    weights = written.weights()
    halved = {
        name: weight.half() if "blocks" in name or "middle" in name else weight
        for name, weight in weights.items()
    }
    unet = from_openai(halved, 16, **flags)
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 741]), torch.tensor([4, 1])
    with torch.no_grad():
        expected = written({n: w.float() for n, w in halved.items()}, x, t, y)
        assert (error_of_each_image(unet(x, t, y).sample, expected) < 1e-4).all()


def test_configuration_of_the_256_pixel_checkpoint_is_read_off_its_names() -> None:
    """256x256_diffusion.pt, with the flags that guided-diffusion's README gives for it."""
    written = UNetModel(
        model_channels=256,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attended=(3, 4, 5),
        heads={},
        num_classes=1000,
        resblock_updown=True,
    )
    weights = {n: np.broadcast_to(np.float16(0), s) for n, s in written.shapes()}
    unet = from_openai(weights, 256, num_head_channels=64)
    assert sum(p.numel() for p in unet.parameters()) == sum(w.size for w in weights.values())
    expected = {
        "block_out_channels": (256, 256, 512, 512, 1024, 1024),
        "layers_per_block": 2,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        "attention_head_dim": 64,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 1000,
        "out_channels": 6,
    }
    assert {name: unet.config[name] for name in expected} == expected


# Mistakes


def improved() -> dict[str, np.ndarray]:
    return Fixture("improved_diffusion_unet").weights()


@fixtures
def test_a_missing_weight_is_named_as_the_format_names_it(name: str) -> None:
    weights = Fixture(name).weights()
    for variable in list(weights)[::3]:
        rest = {other: array for other, array in weights.items() if other != variable}
        with pytest.raises(ValueError, match=rf"^{re.escape(variable)}( \(q\))? is missing"):
            from_openai(rest, 16, **HEADS[name])


@fixtures
def test_a_misshapen_weight_is_named(name: str) -> None:
    weights = Fixture(name).weights()
    # With these, which the configuration is read off, the others do not fit any more.
    telling = re.compile(r"input_blocks\.\d\.0\.(out_layers\.3|emb_layers\.1)\.bias|out\.2\.bias")
    for variable, array in list(weights.items())[::3]:
        spoilt = {**weights, variable: np.concatenate([array, array])}
        named = r"\S+" if telling.match(variable) else re.escape(variable)
        with pytest.raises(ValueError, match=rf"^{named}( \(q\))? (has|takes) .*"):
            from_openai(spoilt, 16, **HEADS[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "num_heads or num_head_channels must be given, and neither is"),
        ({"num_heads": 4, "num_head_channels": 16}, "and both are"),
        ({"num_heads": 5}, "num_heads=5 does not divide the 64 channels"),
        ({"num_heads": 0}, "num_heads=0 does not divide"),
        ({"num_head_channels": 48}, "num_head_channels=48 does not divide the 64 channels"),
        ({"num_heads": 4, "num_heads_upsample": 3}, "num_heads_upsample=3 does not divide the 64"),
        ({"num_heads": 4, "num_heads_upsample": 0}, "num_heads_upsample=0 does not divide"),
        ({"num_head_channels": 16, "num_heads_upsample": 2}, "num_heads_upsample=2 has no effect"),
    ],
)
def test_heads_that_cannot_be_are_refused(flags: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_openai(improved(), 16, **flags)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_block_is_no_network_without_resampling_weights(number: int) -> None:
    rest = {n: a for n, a in improved().items() if f"input_blocks.{number}." not in n}
    message = rf"^input_blocks\.{number}\.\* is missing: the file is incomplete"
    if number == 3:  # the last one: the way up tells that it is missing
        message = r"^input_blocks\.3\.\* is missing"
    with pytest.raises(ValueError, match=message):
        from_openai(rest, 16, num_heads=4)


def test_a_classifier_is_refused_as_one() -> None:
    encoder = {n: a for n, a in improved().items() if not n.startswith("output_blocks")}
    with pytest.raises(ValueError, match=r"^output_blocks\.0\.\* is missing: .* a classifier"):
        from_openai(encoder, 16, num_heads=4)


def test_what_is_no_such_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^input_blocks\.0\.\* is missing: this is another"):
        from_openai(Fixture("pesser_unet").weights(), 16, num_heads=4)
    with pytest.raises(ValueError, match=r"^extra has no place"):
        from_openai({**improved(), "extra": np.zeros(3)}, 16, num_heads=4)
    cut = {n: a for n, a in improved().items() if not n.startswith("output_blocks.3.")}
    with pytest.raises(ValueError, match="the 3 output_blocks do not fall into levels of 2"):
        from_openai(cut, 16, num_heads=4)
    with pytest.raises(ValueError, match="image_size=15 cannot be halved"):
        from_openai(improved(), 15, num_heads=4)
