"""Weights under the names of another implementation, and how to load them into a network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.errors import UserError
from ddpm_sa.models.network import Network

NetworkType = TypeVar("NetworkType", bound=Network)


@dataclass(frozen=True)
class ForeignWeights:
    """Weights that are requested by one spelling of their names and stored under another.

    Attributes:
        weights: Stored names -> arrays.
        spell: Requested name, or a prefix of one -> stored name.
        to_torch: Permutes an array's axes to torch's order.
    """

    weights: Mapping[str, Tensor | ArrayLike]
    spell: Callable[[str], str] = lambda name: name
    to_torch: Callable[[Tensor], Tensor] = lambda array: array

    def has(self, prefix: str) -> bool:
        """Whether any name starts with the prefix."""
        theirs = self.spell(prefix)
        return any(name.startswith(theirs) for name in self.weights)

    def tensor(self, name: str) -> Tensor:
        """Return a float32 copy in torch's layout."""
        theirs = self.spell(name)
        if theirs not in self.weights:
            raise UserError(f"{theirs} is missing: these are not all weights of one network")
        weight = self.weights[theirs]
        # np.array copies, since torch warns about arrays that are not writable.
        array = weight.detach() if isinstance(weight, Tensor) else torch.as_tensor(np.array(weight))
        # Weights without memory give a network without memory, which has names and shapes.
        device = "meta" if array.is_meta else "cpu"
        return self.to_torch(array.to(device, torch.float32, copy=True))

    def shape(self, name: str, ndim: int) -> torch.Size:
        """Return the shape of a weight, which must have `ndim` axes."""
        shape = self.tensor(name).shape
        if len(shape) != ndim:
            raise UserError(f"{self.spell(name)} must have {ndim} axes, not {len(shape)}")
        return shape

    def count(self, prefix: str) -> int:
        """Count the numbers 0, 1, ... that exist in place of the prefix's {}; at least one must."""
        count = 0
        while self.has(prefix.format(count)):
            count += 1
        if count == 0:
            missing = self.spell(prefix.format(0))
            raise UserError(f"{missing}* is missing: this is another format")
        return count


def assemble(
    architecture: type[NetworkType],
    weights: ForeignWeights,
    config: Mapping[str, Any],
    their_name: Callable[[str], str],
) -> NetworkType:
    """Build the network of a configuration and load the weights into it.

    Args:
        architecture: The class of the network.
        weights: All weights of the network, and nothing else.
        config: Arguments of the class, sample_size among them.
        their_name: Our name of a weight -> the name to request from `weights`.

    Returns:
        The network, float32, in eval mode.

    Raises:
        ValueError: If a weight is missing, not expected, or of another shape, naming the first, or
            if the image cannot be halved at every level.
    """
    with torch.device("meta"):
        unet = architecture(**config)
    if config["sample_size"] % unet.size_multiple:
        raise UserError(
            f"image_size={config['sample_size']} cannot be halved at each of the "
            f"{len(unet.down_blocks)} levels of these weights; give the size they were trained at"
        )
    return load_into(unet, weights, their_name)


def load_into(
    unet: NetworkType, weights: ForeignWeights, their_name: Callable[[str], str]
) -> NetworkType:
    """Load weights into a network that was built without memory, on the meta device.

    Raises:
        ValueError: If a weight is missing, not expected, or of another shape, naming the first.
    """
    names = {ours: their_name(ours) for ours in unet.state_dict()}
    expected = {weights.spell(name) for name in names.values()}
    state = {
        ours: _reshape_weight(weights, names[ours], p) for ours, p in unet.state_dict().items()
    }
    unexpected = [name for name in weights.weights if name not in expected]
    if unexpected:
        raise UserError(
            f"{unexpected[0]} has no place in a network of {unet.config['block_out_channels']} "
            f"channels ({len(unexpected)} such in all)"
        )
    unet.load_state_dict(state, assign=True)
    return unet.eval()


def _reshape_weight(weights: ForeignWeights, name: str, parameter: Tensor) -> Tensor:
    """Return a weight in the shape of the parameter.

    Some implementations have a 1 x 1 convolution where others have a matrix; both are accepted.
    """
    tensor = weights.tensor(name)
    if _matrix(tensor.shape) != _matrix(parameter.shape):
        raise UserError(
            f"{weights.spell(name)} has the shape {tuple(tensor.shape)} in torch's order, but "
            f"according to the other weights it must be {tuple(parameter.shape)}"
        )
    return tensor.reshape(parameter.shape).contiguous()


def _matrix(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2] if shape[2:] in ((1,), (1, 1)) else shape)
