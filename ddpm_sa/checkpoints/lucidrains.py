"""Weights of lucidrains/denoising-diffusion-pytorch, version 2."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.checkpoints.foreign_weights import ForeignWeights, assemble
from ddpm_sa.errors import UserError, require
from ddpm_sa.models.families.lucidrains import LucidrainsUNet

Objective = Literal["pred_noise", "pred_x0", "pred_v"]
PREDICTION_TYPES: dict[str, Literal["epsilon", "sample", "v_prediction"]] = {
    "pred_noise": "epsilon",
    "pred_x0": "sample",
    "pred_v": "v_prediction",
}
"""Their objective -> diffusers' prediction_type."""

# Parts of our names -> theirs, tried in this order.
_NAMES = {
    "time_embedding.linear_1": "time_mlp.1",
    "time_embedding.linear_2": "time_mlp.3",
    "mid_block.resnets.0": "mid_block1",
    "mid_block.resnets.1": "mid_block2",
    "mid_block.attentions.0": "mid_attn",
    "resnet_out": "final_res_block",
    "conv_out": "final_conv",
    "conv_in": "init_conv",
    "down_blocks": "downs",
    "up_blocks": "ups",
    "resnets.": "",
    "attentions.0": "2",
    "resample": "3",
    "time_emb_proj": "mlp.1",
    "conv_shortcut": "res_conv",
    "conv1": "block1.proj",
    "conv2": "block2.proj",
    "norm1.weight": "block1.norm.g",
    "norm2.weight": "block2.norm.g",
    "to_out.1.weight": "to_out.1.g",
    "norm.weight": "norm.g",
    "to_q.weight": "to_qkv.weight (q)",
    "to_k.weight": "to_qkv.weight (k)",
    "to_v.weight": "to_qkv.weight (v)",
    "memory": "mem_kv",
}
_PART = re.compile("|".join(re.escape(part) for part in _NAMES))


def from_lucidrains(weights: Mapping[str, Tensor | ArrayLike], image_size: int) -> LucidrainsUNet:
    """Build the network of a state dict of their `Unet`.

    Names and shapes determine all of it but sinusoidal_pos_emb_theta, which is taken to be its
    default of 10000. flash_attn changes no number.

    Args:
        weights: Its state dict, as tensors or arrays, without the "model." of GaussianDiffusion.
        image_size: Height and width of its images, in pixels; the weights do not say.

    Returns:
        The network, float32, in eval mode. Its dropout, which the weights do not say, is 0.

    Raises:
        ValueError: If the network has an option that is not built here (self_condition,
            learned_sinusoidal_cond, random_fourier_features), or is of a version before 2; if a
            weight is missing, not expected, or of another shape, naming the first; or if the image
            cannot be halved at every level.
    """
    theirs = ForeignWeights(weights)
    _check_options(theirs)
    config = _read_config(theirs, image_size)
    return assemble(LucidrainsUNet, ForeignWeights(_split(theirs)), config, _their_name)


def lucidrains_scheduler(
    betas: Tensor | ArrayLike, objective: Objective, learned_variance: bool = False
) -> DDPMScheduler:
    """The scheduler of their GaussianDiffusion, or LearnedGaussianDiffusion.

    As there, x_0 is clipped to [-1, 1], and the variance is the posterior's unless it is learned.

    Args:
        betas: The buffer of that name, (T,).
        objective: What the network was trained to predict.
        learned_variance: Whether it has two outputs for each channel.

    Raises:
        ValueError: If the objective is not theirs, or the betas are no vector of numbers in (0, 1].
    """
    require(
        objective in PREDICTION_TYPES,
        f"objective={objective!r} is unknown; known are {', '.join(PREDICTION_TYPES)}",
    )
    values = torch.as_tensor(betas).double()
    fits = values.ndim == 1 and len(values) > 0 and bool(((values > 0) & (values <= 1)).all())
    require(fits, "betas must be a vector of numbers above 0 and at most 1")
    require(
        not learned_variance or objective == "pred_noise",
        f"objective={objective} with two outputs for each channel: LearnedGaussianDiffusion learns "
        "a variance beside the noise alone; give pred_noise",
    )
    return DDPMScheduler(
        num_train_timesteps=len(values),
        trained_betas=values.tolist(),
        prediction_type=PREDICTION_TYPES[objective],
        variance_type="learned_range" if learned_variance else "fixed_small",
        clip_sample=True,
        timestep_spacing="trailing",
    )


def _check_options(weights: ForeignWeights) -> None:
    if weights.has("time_mlp.0.weights"):
        raise UserError(
            "time_mlp.0.weights is there: learned_sinusoidal_cond and random_fourier_features are "
            "not built here"
        )
    if weights.has("downs.0.0.block1.norm.weight"):
        raise UserError(
            "downs.0.0.block1.norm.weight is there: blocks with GroupNorm are of a version of "
            "denoising-diffusion-pytorch before 2, which is not built here"
        )
    channels = weights.shape("init_conv.weight", 4)[1]
    outputs = weights.shape("final_conv.weight", 4)[0]
    if channels == 2 * outputs:
        raise UserError(
            f"the network takes {channels} channels and gives {outputs}: self_condition=True, with "
            "which it is also given its last prediction, is not built here"
        )


def _read_config(weights: ForeignWeights, image_size: int) -> dict[str, Any]:
    """Arguments of `LucidrainsUNet`."""
    levels = range(weights.count("downs.{}."))
    # What ends a level is a pair of layers, of which the second has weights, or one convolution.
    ends = ["3.1" if weights.has(f"downs.{level}.3.1.") else "3" for level in levels]
    linear = [weights.has(f"downs.{level}.2.to_out.0.") for level in levels]
    memories = [weights.shape(f"downs.{level}.2.mem_kv", 4) for level in levels]
    first, in_channels = weights.shape("init_conv.weight", 4)[:2]
    return {
        "sample_size": image_size,
        "in_channels": in_channels,
        "out_channels": weights.shape("final_conv.weight", 4)[0],
        "conv_in_channels": first,
        "block_out_channels": tuple(
            weights.shape(f"downs.{level}.{end}.weight", 4)[0]
            for level, end in zip(levels, ends, strict=True)
        ),
        "timestep_input_dim": weights.shape("time_mlp.1.weight", 2)[1],
        "attention_types": tuple("linear" if of_level else "full" for of_level in linear),
        "num_attention_heads": tuple(shape[1] for shape in memories),
        "attention_head_dim": tuple(
            shape[2 if of_level else 3] for shape, of_level in zip(memories, linear, strict=True)
        ),
        "num_memory_tokens": memories[0][3 if linear[0] else 2],
    }


def _split(weights: ForeignWeights) -> dict[str, Any]:
    """The weights with q, k and v apart, memory as (2, heads, tokens, d), and norms as vectors."""
    split: dict[str, Any] = {}
    for name, array in weights.weights.items():
        if name.endswith(".to_qkv.weight"):
            parts = weights.tensor(name).chunk(3)
            require(len(parts) == 3, f"{name} has fewer rows than q, k and v")
            split |= {f"{name} ({part})": third for part, third in zip("qkv", parts, strict=True)}
        elif name.endswith(".mem_kv"):
            memory, linear = weights.tensor(name), weights.has(name.replace("mem_kv", "to_out.0."))
            split[name] = memory.mT if linear and memory.ndim == 4 else memory
        elif name.endswith(".g"):
            split[name] = weights.tensor(name).flatten()
        else:
            split[name] = array
    return split


def _their_name(ours: str) -> str:
    return _PART.sub(lambda part: _NAMES[part[0]], ours)
