"""diffusers' tools for a model find in UNet what they find in UNet2DModel, and do the same."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ddpm_sa.models.blocks.types import DOWN_BLOCKS, UP_BLOCKS
from ddpm_sa.models.unet import UNet
from tests.support.reference import SMALL, error_of_each_image, twins

# Large enough for the fused upsampling, whose kernel is made from the weight of a convolution.
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
T = torch.tensor([3, 741])
SKIP: dict[str, Any] = {
    "block_out_channels": (32, 32),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
}
CLASSES: dict[str, Any] = {**SMALL, "num_class_embeds": 4}
RESNET: dict[str, Any] = {**SMALL, "downsample_type": "resnet", "upsample_type": "resnet"}
NETWORKS = pytest.mark.parametrize(
    "config", [SMALL, CLASSES, RESNET, SKIP], ids=["small", "classes", "resnet", "skip"]
)

GROUP_OFFLOADING = pytest.mark.skipif(
    tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 41),
    reason="this version of diffusers asks for an accelerator",
)


def predict(network: nn.Module, config: dict[str, Any]) -> Tensor:
    labels = torch.tensor([3, 0]) if "num_class_embeds" in config else None
    with torch.no_grad():
        return network(X, T, labels).sample


def assert_same_predictions(ours: UNet, theirs: UNet2DModel, config: dict[str, Any]) -> None:
    """To 1e-5 of each image's largest value: the sums have another order."""
    outputs = (predict(network, config) for network in (ours, theirs))
    assert (error_of_each_image(*outputs) < 1e-5).all()


# What a tool reads


def test_class_attributes_are_those_of_diffusers() -> None:
    for name in (
        *("config_name", "_no_split_modules", "_keep_in_fp32_modules", "_repeated_blocks"),
        *("_supports_gradient_checkpointing", "_supports_group_offloading", "_skip_keys"),
        *("_keys_to_ignore_on_load_unexpected", "_cp_plan", "_tp_plan"),
    ):
        assert getattr(UNet, name, None) == getattr(UNet2DModel, name, None), name
    patterns = (cls._skip_layerwise_casting_patterns for cls in (UNet, UNet2DModel))
    assert len({tuple(pattern) for pattern in patterns}) == 1


def test_what_diffusers_network_has_ours_has() -> None:
    ours, theirs = UNet(**SMALL), UNet2DModel(**SMALL)
    assert set(dir(theirs)) <= set(dir(ours))
    # Tools ask for these, and go another way where they are missing.
    for name in ("attn_processors", "set_attn_processor", "fuse_qkv_projections", "add_adapter"):
        assert hasattr(ours, name) == hasattr(theirs, name), name


def test_the_sample_size_is_read_without_a_warning() -> None:
    assert UNet(**SMALL, sample_size=(8, 16)).sample_size == (8, 16)


@NETWORKS
def test_counts_types_and_names_are_those_of_diffusers(config: dict[str, Any]) -> None:
    ours, theirs = twins(config, torch.float64)
    assert [name for name, _ in ours.named_parameters()] == [
        name for name, _ in theirs.named_parameters()
    ]
    assert [name for name, _ in ours.named_buffers()] == [
        name for name, _ in theirs.named_buffers()
    ]
    top = {name for name, _ in theirs.named_children()}
    assert top <= {name for name, _ in ours.named_children()}
    ours.conv_in.requires_grad_(False)
    theirs.conv_in.requires_grad_(False)
    for count in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**count) == theirs.num_parameters(**count)
    assert ours.get_memory_footprint() == theirs.get_memory_footprint()
    assert ours.dtype == theirs.dtype == torch.float64
    assert ours.device == theirs.device == torch.device("cpu")
    for name in ("half", "float"):
        assert getattr(ours, name)().dtype == getattr(theirs, name)().dtype


@pytest.mark.parametrize("switch", ["enable", "disable"])
def test_switches_of_attention_kernels_change_no_prediction(switch: str) -> None:
    ours, _ = twins(SMALL)
    before = predict(ours, SMALL)
    for kernel in ("xformers_memory_efficient_attention", "npu_flash_attention"):
        getattr(ours, f"{switch}_{kernel}")()
    assert torch.equal(predict(ours, SMALL), before)


def test_regional_compilation_is_refused_as_by_diffusers() -> None:
    for cls in (UNet, UNet2DModel):
        with pytest.raises(ValueError, match="`_repeated_blocks` attribute is empty"):
            cls(**SMALL).compile_repeated_blocks()


# Casting and offloading


@NETWORKS
@pytest.mark.parametrize("storage", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_layerwise_casting_computes_what_diffusers_computes(
    config: dict[str, Any], storage: torch.dtype
) -> None:
    ours, theirs = twins(config)
    for network in (ours, theirs):
        network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    for name, weight in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == weight.dtype, name
    assert ours.dtype == torch.float32
    assert ours.get_memory_footprint() == theirs.get_memory_footprint()
    assert_same_predictions(ours, theirs, config)
    assert ours.conv_in.weight.dtype == storage


@NETWORKS
def test_layerwise_casting_trains_under_autocast_as_diffusers_does(config: dict[str, Any]) -> None:
    """All gradients together agree to the rounding of bfloat16, 2^-8, summed up in the layers."""
    labels = torch.tensor([3, 0]) if "num_class_embeds" in config else None
    gradients = []
    for network in twins(config):
        network.enable_layerwise_casting(torch.float16, torch.float32)
        with torch.autocast("cpu"):
            loss = network(X, T, labels).sample.float().square().mean()
        loss.backward()
        gradients.append({name: weight.grad for name, weight in network.named_parameters()})
    ours, theirs = gradients
    types = ({name: g.dtype for name, g in side.items() if g is not None} for side in gradients)
    assert next(types) == next(types)
    flat, expected = (
        torch.cat([side[name].float().flatten() for name in theirs if theirs[name] is not None])
        for side in (ours, theirs)
    )
    assert expected.norm() > 0
    assert (flat - expected).norm() < 0.05 * expected.norm()


@GROUP_OFFLOADING
@NETWORKS
@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize(
    "kind",
    [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}],
)
def test_group_offloading_changes_no_prediction(
    config: dict[str, Any], kind: dict[str, Any], to_disk: bool, tmp_path: Path
) -> None:
    ours, theirs = twins(config)
    folder = {"offload_to_disk_path": str(tmp_path)} if to_disk else {}
    ours.enable_group_offload(torch.device("cpu"), **kind, **folder)
    assert ours.device == torch.device("cpu")
    assert_same_predictions(ours, theirs, config)


@GROUP_OFFLOADING
def test_group_offloading_goes_with_layerwise_casting() -> None:
    ours, theirs = twins(SMALL)
    for network in (ours, theirs):
        network.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        network.enable_layerwise_casting(torch.float16, torch.float32)
    assert_same_predictions(ours, theirs, SMALL)


def test_hooks_see_every_convolution_and_linear_layer() -> None:
    """So does what replaces a layer: LoRA, a quantiser."""
    ours, theirs = twins(SMALL)
    called: dict[str, list[str]] = {"ours": [], "theirs": []}
    for side, network in (("ours", ours), ("theirs", theirs)):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm):
                module.register_forward_hook(lambda *_, s=side, n=name: called[s].append(n))
    assert_same_predictions(ours, theirs, SMALL)
    assert sorted(called["ours"]) == sorted(called["theirs"])


class Doubled(nn.Module):
    """A layer around another, as LoRA and quantisers put them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


def test_a_layer_may_be_replaced_by_one_around_it() -> None:
    ours, theirs = twins(SMALL)
    for network in (ours, theirs):
        upsampler = network.up_blocks[0].upsamplers[0]
        upsampler.conv = Doubled(upsampler.conv)
        attention: Any = network.mid_block.attentions[0]
        attention.to_q = Doubled(attention.to_q)
        network.conv_in = Doubled(network.conv_in)
    assert_same_predictions(ours, theirs, SMALL)


# Gradient checkpointing


@pytest.mark.parametrize(("down", "up"), [*zip(DOWN_BLOCKS, UP_BLOCKS, strict=True)])
def test_the_blocks_that_diffusers_checkpoints_say_so(down: str, up: str) -> None:
    config: dict[str, Any] = {
        "block_out_channels": (32, 32),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "down_block_types": (down, down),
        "up_block_types": (up, up),
    }
    found = []
    for network in (UNet(**config), UNet2DModel(**config)):
        assert not network.is_gradient_checkpointing
        network.enable_gradient_checkpointing()
        assert network.is_gradient_checkpointing
        found.append(
            {
                (name, type(module).__name__, module.gradient_checkpointing)
                for name, module in network.named_modules()
                if hasattr(module, "gradient_checkpointing")
            }
        )
        network.disable_gradient_checkpointing()
        assert not network.is_gradient_checkpointing
    assert found[0] == found[1]


def stored(network: UNet) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        network(X, T).sample.square().mean().backward()
    return sum(sizes.values())


@pytest.mark.parametrize("config", [SMALL, SKIP], ids=["small", "skip"])
def test_checkpointing_stores_less_and_changes_no_gradient(config: dict[str, Any]) -> None:
    def gradients() -> list[Tensor | None]:
        found = [parameter.grad for parameter in ours.parameters()]
        ours.zero_grad()
        return found

    ours, _ = twins(config)
    everything, expected = stored(ours), gradients()
    ours.enable_gradient_checkpointing()
    assert stored(ours) < 0.5 * everything
    for gradient, other in zip(gradients(), expected, strict=True):
        assert (gradient is None) == (other is None)
        assert gradient is None or torch.equal(gradient, other)
    ours.disable_gradient_checkpointing()
    assert stored(ours) == everything


@NETWORKS
def test_a_function_of_ones_own_checkpoints(config: dict[str, Any]) -> None:
    ours, _ = twins(config)
    calls = []

    def run(module: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        calls.append(module)
        return module(*arguments)

    ours.enable_gradient_checkpointing(run)
    labels = torch.tensor([3, 0]) if "num_class_embeds" in config else None
    output = ours(X, T, labels).sample
    # Two residual blocks on either way, or three, and two in the middle.
    assert len(calls) >= 2 + 4 + 2
    assert (error_of_each_image(output.detach(), predict(ours, config)) < 1e-6).all()
    assert math.isfinite(output.square().mean().item())
