"""Weights under the names of diffusers' UNet2DModel, which are those of this package."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.checkpoints.foreign_weights import ForeignWeights, load_into
from ddpm_sa.models.unet import UNet

# What the parts of an attention were called before diffusers 0.12.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(?<=\.)({'|'.join(_OLD_NAMES)})(?=\.(weight|bias)$)")


def from_diffusers(weights: Mapping[str, Tensor | ArrayLike], config: Mapping[str, Any]) -> UNet:
    """Build the network of a state dict of a UNet2DModel, or of a `UNet`.

    Args:
        weights: Its state dict, as tensors or arrays; old names of the attention are known.
        config: The arguments of `UNet`, as in config.json; the weights do not say them all.

    Returns:
        The network, float32, in eval mode.

    Raises:
        ValueError: If the arguments cannot be built, or a weight is missing, not expected, or of
            another shape, naming the first.
    """
    with torch.device("meta"):
        unet = UNet(**config)
    named = {_OLD_NAME.sub(lambda old: _OLD_NAMES[old[0]], n): w for n, w in weights.items()}
    return load_into(unet, ForeignWeights(named), lambda name: name)
