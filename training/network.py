"""Build the network of a run: a new one from a preset, or a saved one to fine-tune."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ddpm_sa.data.dataset import Images
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat, padded_size
from ddpm_sa.models.normalization import keeps_channels_last
from ddpm_sa.models.presets import block_types, preset
from ddpm_sa.models.sizing import AUTO, unet_for_size
from ddpm_sa.models.unet import UNet
from ddpm_sa.randomness import stream
from training.config import ModelConfig


def build_network(
    config: ModelConfig, images: Images, seed: int, learned_variance: bool = False
) -> UNet:
    """Build the network for these images.

    Args:
        config: Settings of the network.
        images: The dataset, which gives channels, size and number of labels.
        seed: Seed of the initial weights, unless they are loaded.
        learned_variance: Whether to add a second output for each channel.

    Raises:
        ValueError: If the settings contradict each other, or saved weights do not fit the data.
    """
    fixed = {
        "in_channels": images.format.in_channels,
        "out_channels": images.format.channels * (2 if learned_variance else 1),
        "num_class_embeds": images.num_class_embeds,
    }
    if config.init_from is None:
        network = _new_network(config, images.format.size, fixed, seed)
    else:
        network = _saved_network(config.init_from, config, images.format, fixed)
    height, width = padded_size(images.format.size, network.size_multiple)
    network.register_to_config(sample_size=height if height == width else [height, width])
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network.train()


def memory_format(device: torch.device, compiled: bool) -> torch.memory_format:
    """The memory format of a network for training on a device.

    Convolutions in half precision are fastest in channels_last, but not if GroupNorm returns
    contiguous images that the next convolution has to reorder: the network is in channels_last on
    devices whose GroupNorm keeps it, and where it is compiled, since a compiler makes kernels of
    its own. On a CPU torch's GroupNorm is several times slower in channels_last, and less accurate:
    it computes E[x²] - E[x]² for the variance (benchmarks/network.py).
    """
    fast = compiled or (device.type != "cpu" and keeps_channels_last(device))
    return torch.channels_last if fast else torch.contiguous_format


def height_and_width(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """Convert sample_size, an integer for square images, to (height, width)."""
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width


def _preset_arguments(config: ModelConfig, size: tuple[int, int]) -> dict[str, Any]:
    if config.preset != AUTO:
        return preset(config.preset).unet
    channels = config.unet.get("block_out_channels")
    width = {} if config.width is None else {"width": config.width}
    return unet_for_size(size, block_out_channels=channels, **width)


def _new_network(
    config: ModelConfig, size: tuple[int, int], fixed: dict[str, Any], seed: int
) -> UNet:
    arguments: dict[str, Any] = _preset_arguments(config, size) | config.unet
    if config.attention_resolutions is not None:
        levels = len(arguments["block_out_channels"])
        height, _ = padded_size(size, 2 ** (levels - 1))
        down, up = block_types(config.attention_resolutions, height, levels)
        arguments |= {"down_block_types": down, "up_block_types": up}
    if config.dropout is not None:
        arguments["dropout"] = config.dropout
    arguments |= fixed
    # paper_init_() below does not change the class embedding, which torch initialises here.
    torch.manual_seed(int(stream(seed, "class embedding").integers(2**63)))
    try:
        network = UNet(**arguments)
    except TypeError as error:  # model.unet has a name that is not an argument of UNet
        raise UserError(f"model.unet={config.unet}: {error}") from error
    torch.manual_seed(seed)
    return network.paper_init_()


def _with_more_inputs(network: UNet, in_channels: int) -> UNet:
    """An unconditional network that takes a condition too, and ignores it to begin with.

    The weights of the new channels are 0, so the outputs are those of the network that was given.
    """
    wider = UNet(**{**network.config, "in_channels": in_channels})
    weights = network.state_dict()
    new = in_channels - network.config["in_channels"]
    weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, new))
    wider.load_state_dict(weights)
    return wider


def _saved_network(
    folder_or_repo: str, config: ModelConfig, image_format: ImageFormat, fixed: dict[str, Any]
) -> UNet:
    network = UNet.from_pretrained(folder_or_repo)
    if network.config["in_channels"] == image_format.channels < fixed["in_channels"]:
        network = _with_more_inputs(network, fixed["in_channels"])
    for name, needed in fixed.items():
        if network.config[name] != needed:
            raise UserError(
                f"the network in model.init_from={folder_or_repo} has {name}="
                f"{network.config[name]}, these data need {needed}; change data.channels, "
                "condition.kind, data.class_conditional, data.num_classes, "
                "objective.learned_variance or other weights"
            )
    if config.unet:
        raise UserError(
            f"model.unet={config.unet} cannot be used with model.init_from={folder_or_repo}, "
            "whose network is fixed"
        )
    if config.dropout is not None:
        network.register_to_config(dropout=config.dropout)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    return network
