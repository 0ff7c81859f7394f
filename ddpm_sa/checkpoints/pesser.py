"""Weights of pesser/pytorch_diffusion, the PyTorch port of the paper's network.

Its names are the paper's own, written PyTorch's way, so the TensorFlow format is read from here
too: it only spells them differently and stores its arrays in another order.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.presets import PAPER
from ddpm_sa.unet import UNet

# Parts of our names and what they are called there, tried in this order.
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
    """The network of a state dict of pesser/pytorch_diffusion's `Model`.

    Args:
        weights: Its state dict, as tensors or arrays.
        image_size: Height and width of its images, in pixels; the weights do not say.

    Returns:
        The network, float32, in eval mode. Its dropout, which the weights do not say, is 0.

    Raises:
        ValueError: If a variable is missing, not expected, or of another shape, naming the first,
            or if the image cannot be halved at every level.
    """
    return build(PaperWeights(weights), image_size)


@dataclass(frozen=True)
class PaperWeights:
    """Weights of the paper's network, addressed by pesser's names.

    Attributes:
        weights: Their own names -> arrays.
        spell: pesser's name, or the beginning of one -> theirs.
        to_torch: Brings an array's axes into torch's order.
    """

    weights: Mapping[str, Tensor | ArrayLike]
    spell: Callable[[str], str] = lambda name: name
    to_torch: Callable[[Tensor], Tensor] = lambda array: array

    def has(self, prefix: str) -> bool:
        """Whether any name begins like this."""
        theirs = self.spell(prefix)
        return any(name.startswith(theirs) for name in self.weights)

    def tensor(self, name: str) -> Tensor:
        """A copy in torch's layout, float32."""
        theirs = self.spell(name)
        if theirs not in self.weights:
            raise ValueError(f"{theirs} is missing: these are not all weights of one network")
        weight = self.weights[theirs]
        # np.array copies, so that an array that may not be written to is taken without a warning.
        array = weight.detach().cpu() if isinstance(weight, Tensor) else np.array(weight)
        return self.to_torch(torch.asarray(array, dtype=torch.float32, copy=True))

    def shape(self, name: str, ndim: int) -> torch.Size:
        """The shape of `tensor`, which must have that many axes."""
        shape = self.tensor(name).shape
        if len(shape) != ndim:
            raise ValueError(f"{self.spell(name)} must have {ndim} axes, not {len(shape)}")
        return shape


def build(weights: PaperWeights, image_size: int) -> UNet:
    """The network of these weights; see `from_pesser`."""
    config = _read_config(weights, image_size)
    with torch.device("meta"):
        unet = UNet(**config)
    if image_size % unet.size_multiple:
        raise ValueError(
            f"image_size={image_size} cannot be halved at each of the "
            f"{len(unet.down_blocks)} levels of these weights; give the size they were trained at"
        )
    names = {ours: _pesser_name(ours, len(unet.down_blocks)) for ours in unet.state_dict()}
    expected = {weights.spell(name) for name in names.values()}
    state = {ours: _fitted(weights, names[ours], p) for ours, p in unet.state_dict().items()}
    unexpected = [name for name in weights.weights if name not in expected]
    if unexpected:
        raise ValueError(
            f"{unexpected[0]} has no place in a network of {config['block_out_channels']} channels "
            f"and {config['layers_per_block']} blocks a level ({len(unexpected)} such in all)"
        )
    unet.load_state_dict(state, assign=True)
    return unet.eval()


def _read_config(weights: PaperWeights, image_size: int) -> dict[str, Any]:
    """Arguments of `UNet`, read off the names and shapes."""
    levels = _count(weights, "down.{}.")
    attends = [weights.has(f"down.{level}.attn.0.") for level in range(levels)]
    return {
        **PAPER,
        "sample_size": image_size,
        "in_channels": weights.shape("conv_in.weight", 4)[1],
        "out_channels": weights.shape("conv_out.bias", 1)[0],
        "block_out_channels": tuple(
            weights.shape(f"down.{level}.block.0.conv1.bias", 1)[0] for level in range(levels)
        ),
        "layers_per_block": _count(weights, "down.0.block.{}."),
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
    }


def _count(weights: PaperWeights, prefix: str) -> int:
    """How many numbers from 0 on are there."""
    count = 0
    while weights.has(prefix.format(count)):
        count += 1
    if count == 0:
        raise ValueError(f"{weights.spell(prefix.format(0))}* is missing: this is another format")
    return count


def _pesser_name(ours: str, levels: int) -> str:
    """Our name for a weight -> pesser's, who counts levels from the image on the way up as well."""
    theirs = _PART.sub(lambda part: _NAMES[part[0]], ours)
    return re.sub(r"^up\.(\d+)", lambda up: f"up.{levels - 1 - int(up[1])}", theirs)


def _fitted(weights: PaperWeights, name: str, parameter: Tensor) -> Tensor:
    """The weight of that name in the parameter's shape.

    Some have a 1 x 1 convolution where others have a matrix; both are taken.
    """
    tensor = weights.tensor(name)
    if _matrix(tensor.shape) != _matrix(parameter.shape):
        raise ValueError(
            f"{weights.spell(name)} has {tuple(tensor.shape)} numbers in torch's order, where "
            f"this network, as its other weights have it, takes {tuple(parameter.shape)}"
        )
    return tensor.reshape(parameter.shape).contiguous()


def _matrix(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2] if shape[2:] == (1, 1) else shape)
