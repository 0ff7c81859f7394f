"""Weights of pesser/pytorch_diffusion, the PyTorch port of the paper's network.

Its names are those of the paper's code in PyTorch style. The TensorFlow format, which differs only
in spelling and in the order of axes, is therefore converted with this module too.
"""

import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.checkpoints.foreign_weights import ForeignWeights, assemble
from ddpm_sa.models.presets import PAPER
from ddpm_sa.models.unet import UNet

# Parts of our names -> theirs, tried in this order.
_NAMES = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "down_blocks": "down",
    "up_blocks": "up",
    "resnets": "block",
    "attentions": "attn",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "time_emb_proj": "temb_proj",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "conv_norm_out": "norm_out",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_PART = re.compile("|".join(re.escape(part) for part in _NAMES))


def from_pesser(weights: Mapping[str, Tensor | ArrayLike], image_size: int) -> UNet:
    """Build the network of a state dict of pesser/pytorch_diffusion's `Model`.

    Args:
        weights: Its state dict, as tensors or arrays.
        image_size: Height and width of its images, in pixels; the weights do not say.

    Returns:
        The network, float32, in eval mode. Its dropout, which the weights do not say, is 0.

    Raises:
        ValueError: If a variable is missing, not expected, or of another shape, naming the first,
            or if the image cannot be halved at every level.
    """
    return build(ForeignWeights(weights), image_size)


def build(weights: ForeignWeights, image_size: int) -> UNet:
    """Build the network from weights with pesser's names; see `from_pesser`."""
    config = _read_config(weights, image_size)
    levels = len(config["block_out_channels"])
    return assemble(UNet, weights, config, lambda ours: _pesser_name(ours, levels))


def _read_config(weights: ForeignWeights, image_size: int) -> dict[str, Any]:
    """Read the arguments of `UNet` from names and shapes."""
    levels = weights.count("down.{}.")
    attends = [weights.has(f"down.{level}.attn.0.") for level in range(levels)]
    channels = tuple(
        weights.shape(f"down.{level}.block.0.conv1.bias", 1)[0] for level in range(levels)
    )
    return {
        **PAPER,
        **_width(weights, channels[0]),
        "sample_size": image_size,
        "in_channels": weights.shape("conv_in.weight", 4)[1],
        "out_channels": weights.shape("conv_out.bias", 1)[0],
        "block_out_channels": channels,
        "layers_per_block": weights.count("down.0.block.{}."),
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
    }


def _width(weights: ForeignWeights, first: int) -> dict[str, int]:
    """What follows from ch where it is not the width of the first level, ch · ch_mult[0]."""
    ch = weights.shape("conv_in.weight", 4)[0]
    # If these two differ, one is of the wrong shape, and loading says which.
    if ch == first or ch != weights.shape("temb.dense.0.weight", 2)[1]:
        return {}
    return {"conv_in_channels": ch, "timestep_input_dim": ch, "time_embedding_dim": 4 * ch}


def _pesser_name(ours: str, levels: int) -> str:
    """Translate our name to pesser's, which counts up levels from the image too."""
    theirs = _PART.sub(lambda part: _NAMES[part[0]], ours)
    return re.sub(r"^up\.(\d+)", lambda up: f"up.{levels - 1 - int(up[1])}", theirs)
