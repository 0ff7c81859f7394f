import math
import shutil
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ddpm_sa.models.blocks.resnet import ResnetBlock
from ddpm_sa.models.unet import UNet
from tests.support.reference import SMALL, error_of_each_image, randomise_, twins

ATTENTION_EVERYWHERE = {
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}
RESNET_BLOCKS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
# What each configuration changes of SMALL.
GRID: dict[str, dict[str, Any]] = {
    "small": {},
    "one head": {"attention_head_dim": None},
    "heads of 2": {"attention_head_dim": 2, **ATTENTION_EVERYWHERE},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale, shift, norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "norm of its own": {"attn_norm_num_groups": 8},
    "classes": {"num_class_embeds": 5},
    "class timesteps": {"class_embed_type": "timestep"},
    "class vectors": {"class_embed_type": "identity"},
    "resnet blocks": RESNET_BLOCKS,
    "resnet blocks alone": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 3,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 3,
        "block_out_channels": (8, 8, 16),
        "add_attention": False,
    },
    "resnet resampling": {
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        **ATTENTION_EVERYWHERE,
    },
    "padding 0": {"downsample_padding": 0, **ATTENTION_EVERYWHERE},
    "three layers": {"layers_per_block": 3},
    "three levels": {
        "block_out_channels": (8, 16, 24),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
    },
    "attention on one side": {"up_block_types": ("UpBlock2D", "UpBlock2D")},
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "mish": {"act_fn": "mish"},
    "gelu": {"act_fn": "gelu"},
    "relu": {"act_fn": "relu"},
    "middle without attention": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": math.sqrt(2)},
    "centred input": {"center_input_sample": True},
    "wide time embedding": {"time_embedding_dim": 24},
    "the paper's": {
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "old names of blocks": {
        "down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D"),
        "up_block_types": ("UNetResAttnUpBlock2D", "UNetResUpBlock2D"),
    },
    "1 to 2 channels": {"in_channels": 1, "out_channels": 2},
    "heads that do not divide": {"attention_head_dim": 3},
    "Fourier features": {"time_embedding_type": "fourier"},
    "Fourier features of classes": {
        "time_embedding_type": "fourier",
        "class_embed_type": "timestep",
    },
    "learned timesteps": {"time_embedding_type": "learned", "num_train_timesteps": 800},
    "NCSN++": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "time_embedding_type": "fourier",
        "norm_num_groups": None,
        "mid_block_scale_factor": math.sqrt(2),
        "layers_per_block": 2,
    },
    "skip blocks on the way down": {
        "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "block_out_channels": (32, 32),
        "resnet_time_scale_shift": "scale_shift",
    },
    "skip blocks on the way up": {
        "block_out_channels": (32, 32),
        "up_block_types": ("AttnSkipUpBlock2D", "AttnSkipUpBlock2D"),
        "layers_per_block": 2,
    },
    "skip block at the end": {"up_block_types": ("AttnUpBlock2D", "SkipUpBlock2D")},
    "k-diffusion's": {
        "block_out_channels": (32, 64),
        "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
        "act_fn": "gelu",
        "layers_per_block": 2,
    },
    "k-diffusion's, one layer": {
        "block_out_channels": (32, 64),
        "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
        "norm_num_groups": None,
    },
    "k-diffusion's lowest alone": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "KDownBlock2D"),
    },
}
everywhere = pytest.mark.parametrize("changes", GRID.values(), ids=GRID)


def batch(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Arguments of one evaluation of the network: images higher than wide, two timesteps."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.get("in_channels", 3), 12, 8, generator=generator, dtype=dtype)
    arguments = {"sample": x, "timestep": torch.tensor([3, 741])}
    if "num_class_embeds" in config:
        arguments["class_labels"] = torch.tensor([4, 1])
    elif config.get("class_embed_type") == "timestep":
        arguments["class_labels"] = torch.tensor([40.5, 900.0])
    elif config.get("class_embed_type") == "identity":
        width = 4 * config["block_out_channels"][0]
        arguments["class_labels"] = torch.randn(2, width, generator=generator, dtype=dtype)
    return arguments


# The same network as diffusers'


@everywhere
def test_state_dict_has_diffusers_names_order_and_shapes(changes: dict[str, Any]) -> None:
    config = {**SMALL, **changes}
    ours, theirs = UNet(**config), UNet2DModel(**config)
    shapes = [(name, p.shape) for name, p in ours.state_dict().items()]
    assert shapes == [(name, p.shape) for name, p in theirs.state_dict().items()]
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in theirs.named_parameters()]


@everywhere
def test_initial_weights_of_a_seed_are_diffusers(changes: dict[str, Any]) -> None:
    config = {**SMALL, **changes}
    states = []
    for network in (UNet, UNet2DModel):
        torch.manual_seed(7)
        states.append(network(**config).state_dict())
    for (name, ours), theirs in zip(states[0].items(), states[1].values(), strict=True):
        assert torch.equal(ours, theirs), name


@everywhere
def test_output_is_diffusers_in_float32(changes: dict[str, Any]) -> None:
    config = {**SMALL, **changes}
    ours, theirs = twins(config)
    with torch.no_grad():
        out = ours(**batch(config)).sample
        expected = theirs(**batch(config)).sample
    # Our kernels add up in another order than theirs.
    assert (error_of_each_image(out, expected) < 1e-5).all()


@everywhere
def test_output_and_every_gradient_are_diffusers_in_float64(changes: dict[str, Any]) -> None:
    config = {**SMALL, **changes}
    results = []
    for network in twins(config, torch.float64):
        arguments = batch(config, torch.float64)
        arguments["sample"].requires_grad_()
        out = network(**arguments).sample
        out.square().sum().backward()
        # All but the fixed frequencies of Fourier features.
        gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        results.append({"output": out.detach(), "sample": arguments["sample"].grad, **gradients})
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    largest = max(theirs[name].abs().max() for name in theirs)
    for name, expected in theirs.items():
        assert expected.isfinite().all()
        # The bias of the keys has no gradient but rounding: a softmax takes out what all keys
        # share. Its scale is the others'.
        scale = max(expected.abs().max(), 1e-6 * largest)
        assert (ours[name] - expected).abs().max() <= 1e-9 * scale, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_is_diffusers_for_larger_images_too(dtype: torch.dtype) -> None:
    """Some layers choose another way to compute the same for many pixels."""
    x = torch.randn(1, 3, 64, 72, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.no_grad():
        out, expected = (n(x, 741).sample for n in twins({**SMALL, **GRID["the paper's"]}, dtype))
    assert (error_of_each_image(out, expected) < (1e-5 if dtype == torch.float32 else 1e-9)).all()


def test_dropout_falls_where_diffusers_does() -> None:
    # Without attention, behind which their images lie otherwise in memory than ours, and a mask is
    # drawn in the order of memory.
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    config = {**SMALL, **blocks, "add_attention": False, "dropout": 0.4}
    outputs = []
    for network in twins(config, torch.float64):
        network.train()
        torch.manual_seed(0)
        outputs.append(network(**batch(config, torch.float64)).sample)
    assert (error_of_each_image(*outputs) < 1e-9).all()
    evaluated = network.eval()(**batch(config, torch.float64)).sample
    assert (error_of_each_image(evaluated, outputs[0]) > 0.01).all()


# Behaviour


@pytest.fixture(scope="module")
def small() -> UNet:
    unet = UNet(**SMALL)
    randomise_(unet)
    return unet.double().eval()


def test_each_image_is_computed_alone(small: UNet) -> None:
    arguments = batch(SMALL, torch.float64)
    together = small(**arguments).sample
    alone = small(arguments["sample"][1:], arguments["timestep"][1:]).sample
    assert (error_of_each_image(alone, together[1:]) < 1e-12).all()


@pytest.mark.parametrize(
    "t", [741, 741.0, torch.tensor(741), torch.tensor([741]), torch.tensor([741, 741])]
)
def test_timestep_may_be_a_number_or_one_an_image(small: UNet, t: Tensor | float) -> None:
    x = batch(SMALL, torch.float64)["sample"]
    expected = small(x, torch.tensor([741.0, 741.0], dtype=torch.float64)).sample
    assert torch.equal(small(x, t).sample, expected)
    assert not torch.allclose(small(x, 3).sample, expected)


def test_return_dict_false_gives_a_tuple_of_one(small: UNet) -> None:
    arguments = batch(SMALL, torch.float64)
    (out,) = small(**arguments, return_dict=False)
    assert torch.equal(out, small(**arguments).sample)


def test_network_in_bfloat16_computes_its_sinusoid_in_float32() -> None:
    """In bfloat16 the timesteps 740 and 741 would be one."""
    unet = UNet(**SMALL)
    randomise_(unet)
    unet.to(torch.bfloat16).eval()
    x = batch(SMALL, torch.bfloat16)["sample"]
    seen = []
    unet.time_embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    for t in (740, 741):
        out = unet(x, t).sample
        assert out.dtype == torch.bfloat16
        assert out.isfinite().all()
    assert (seen[0] - seen[1]).abs().max() > 0.1


def test_sagan_network_runs_and_all_its_gradients_are_finite_and_somewhere_not_zero() -> None:
    unet = UNet(**{**SMALL, "attention_kind": "sagan"})
    randomise_(unet)
    out = unet(**batch(SMALL)).sample
    assert out.isfinite().all()
    out.square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("height", [10, 12])
def test_a_size_that_cannot_be_halved_is_refused_with_the_way_out(height: int) -> None:
    unet = UNet(**{**SMALL, **GRID["three levels"]})
    if height == 12:
        assert unet(torch.zeros(1, 3, 12, 8), 0).sample.shape == (1, 3, 12, 8)
        return
    with pytest.raises(ValueError, match=r"10 x 8 cannot be halved.*3 levels.*multiples of 4"):
        unet(torch.zeros(1, 3, 10, 8), 0)


def test_labels_given_or_missing_against_the_configuration_are_refused(small: UNet) -> None:
    x = batch(SMALL, torch.float64)["sample"]
    with pytest.raises(ValueError, match="unconditional: leave class_labels out"):
        small(x, 0, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class-conditional: give class_labels"):
        UNet(**SMALL, num_class_embeds=3)(x.float(), 0)


# Compiling


def compiles(backend: str) -> None:
    unet = UNet(**SMALL)
    randomise_(unet)
    x, t = batch(SMALL)["sample"], torch.tensor([3, 741])
    compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend=backend)
    results = []
    for network in (unet, compiled):
        unet.zero_grad()
        out = network(x, t).sample
        out.square().sum().backward()
        results.append(
            (out.detach(), {name: p.grad.clone() for name, p in unet.named_parameters()})
        )
    (out, gradients), (compiled_out, compiled_gradients) = results
    assert (error_of_each_image(compiled_out, out) < 1e-5).all()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (compiled_gradients[name] - gradient).abs().max() < 1e-5 * largest, name


def test_forward_and_backward_are_one_graph() -> None:
    compiles("aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
def test_compiled_network_computes_the_same() -> None:
    compiles("inductor")


# The paper's initialisation


def last_layers(unet: UNet) -> set[str]:
    """By name: second convolutions, outputs of attention, the network's last convolution."""
    ends = ("conv2.weight", "to_out.0.weight", "conv_out.weight")
    return {name for name, _ in unet.named_parameters() if name.endswith(ends)}


def test_paper_init_is_xavier_uniform_with_zero_biases_and_faint_last_layers() -> None:
    config = {**SMALL, "block_out_channels": (32, 64), "attention_head_dim": None}
    unet = UNet(**config)
    assert unet.paper_init_() is unet
    faint = last_layers(unet)
    assert len(faint) == 2 + 1 + 2 + 1 + 4 + 2 + 1  # down, attended; middle, its; up, its; conv_out
    for name, parameter in unet.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == ("norm" in name and name.endswith("weight"))).all(), name
            continue
        fan_in, fan_out = parameter[0].numel(), parameter[:, 0].numel()
        bound = math.sqrt(6 / (fan_in + fan_out)) * (1e-5 if name in faint else 1)
        values = parameter.detach().double() / bound
        assert values.abs().max() <= 1 + 1e-6, name
        # A uniform distribution has variance 1/3; its estimate has a standard error of
        # sqrt(4/45 / n). Six of those.
        assert abs(values.var() - 1 / 3) < 6 * math.sqrt(4 / 45 / values.numel()), name


def test_paper_init_follows_the_seed() -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(UNet(**SMALL).paper_init_().state_dict())
    first, again, other = made
    for name, weight in first.items():
        if weight.ndim == 1:
            continue
        assert torch.equal(weight, again[name]), name
        assert not torch.equal(weight, other[name]), name


def test_fresh_blocks_are_near_identities_and_every_gradient_is_finite_and_not_zero() -> None:
    torch.manual_seed(0)
    unet = UNet(**SMALL).paper_init_()
    changes = []

    def hook(module: nn.Module, inputs: tuple, out: Tensor) -> None:
        if not isinstance(module, ResnetBlock) or module.conv_shortcut is None:
            changes.append((out - inputs[0]).abs().max() / inputs[0].abs().max())

    for module in unet.modules():
        if isinstance(module, ResnetBlock) or hasattr(module, "attend"):
            module.register_forward_hook(hook)
    out = unet(**batch(SMALL)).sample
    assert len(changes) > 4
    assert max(changes) < 1e-3
    assert 0 < out.abs().max() < 1e-3
    (out - 1).square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A softmax takes out what all keys share, and with it the gradient of their bias.
        if not name.endswith("to_k.bias"):
            assert parameter.grad.abs().max() > 0, name
