"""Weights of the paper's own code, hojonathanho/diffusion (TensorFlow 1.15)."""

import re
from collections.abc import Mapping

from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.checkpoints.foreign_weights import ForeignWeights
from ddpm_sa.checkpoints.pesser import build
from ddpm_sa.models.unet import UNet

_AVERAGE = "/ExponentialMovingAverage"
# Variables of a training checkpoint that are not the network's: tf.train's slots and counters.
_BESIDES = re.compile(r"(^|/)((Adam|RMSProp|Momentum|beta[12]_power)(_\d+)?|global_step)$")
# pesser's names -> TensorFlow's. The parameters of norms are called gamma and beta.
_SPELLING = (
    (r"\b(down|up|block|attn)\.(\d+)", r"\1_\2"),
    (r"\bdense\.(\d)", r"dense\1"),
    (r"(\bnorm\w*)\.weight$", r"\1.gamma"),
    (r"(\bnorm\w*)\.bias$", r"\1.beta"),
    (r"\.weight$", ".W"),
    (r"\.bias$", ".b"),
    (r"\.", "/"),
)


def from_ddpm_tf(weights: Mapping[str, ArrayLike], image_size: int) -> UNet:
    """Build the network of a checkpoint of the paper's code.

    `{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}`, with
    `reader = tf.train.load_checkpoint(path)`, is such a mapping.

    Args:
        weights: TensorFlow's variable names ("model/down_0/block_0/conv1/W", with or without a
            ":0" at the end) -> arrays. Moving averages ("…/ExponentialMovingAverage") are used if
            there are any; the optimiser's variables are ignored.
        image_size: Height and width of its images, in pixels; the weights do not say.

    Returns:
        The network, float32, in eval mode. Its dropout, which the weights do not say, is 0.

    Raises:
        ValueError: If a variable is missing, not expected, or of another shape, naming the first,
            or if the image cannot be halved at every level.
    """
    variables = {name.removesuffix(":0"): array for name, array in weights.items()}
    variables = {name: array for name, array in variables.items() if not _BESIDES.search(name)}
    # Only averages or only raw weights: a mixture would not be a network.
    suffix = _AVERAGE if any(name.endswith(_AVERAGE) for name in variables) else ""
    chosen = {name: a for name, a in variables.items() if name.endswith(suffix)}
    return build(ForeignWeights(chosen, lambda name: _spell(name, suffix), _to_torch), image_size)


def _spell(name: str, suffix: str) -> str:
    """Translate pesser's name, or a prefix of one that ends in a dot, to TensorFlow's."""
    is_prefix = name.endswith(".")
    for pattern, replacement in _SPELLING:
        name = re.sub(pattern, replacement, name)
    return f"model/{name}{'' if is_prefix else suffix}"


def _to_torch(array: Tensor) -> Tensor:
    """Permute kernels (height, width, in, out) and matrices (in, out) to torch's (out, in, ...)."""
    if array.ndim == 4:
        return array.permute(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array
