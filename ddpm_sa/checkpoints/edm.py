"""Weights of NVlabs/edm (Karras et al. 2022): its DDPM++ networks."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from diffusers import DDPMScheduler
from einops import rearrange
from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.checkpoints.foreign_weights import ForeignWeights, assemble
from ddpm_sa.errors import UserError, require
from ddpm_sa.models.families.preconditioning import PRECONDITIONINGS, geometric_betas
from ddpm_sa.models.families.song import SongUNet

# Parts of our names -> theirs, tried in this order.
_NAMES = {
    "time_embedding.linear_1": "map_layer0",
    "time_embedding.linear_2": "map_layer1",
    "class_embedding": "map_label",
    "time_emb_proj": "affine",
    "conv_shortcut": "skip",
    "conv1": "conv0",
    "conv2": "conv1",
    "norm1": "norm0",
    "norm2": "norm1",
    "group_norm": "norm2",
    "to_out.0": "proj",
}
_PART = re.compile("|".join(re.escape(part) for part in _NAMES))


def from_edm(
    weights: Mapping[str, Tensor | ArrayLike], preconditioning: Literal["edm", "vp"]
) -> SongUNet:
    """Build the network of a state dict of EDM's `SongUNet` with the options of DDPM++.

    Names and shapes determine all of it but the preconditioning. The augmentation labels of the
    training, map_augment, are 0 in sampling, so their weights are left out.

    Args:
        weights: The state dict, as tensors or arrays, without the "model." of the preconditioner.
        preconditioning: "edm" for EDMPrecond, which all networks trained by EDM have, or "vp" for
            VPPrecond.

    Returns:
        The network, float32, in eval mode, for timesteps from sigma 0.002 to 80, which are the
        limits of EDM's sampler. Its dropout, which the weights do not say, is 0.

    Raises:
        ValueError: If it is another network of EDM (NCSN++ or ADM); if a weight is missing, not
            expected, or of another shape, naming the first; or if the preconditioning is unknown.
    """
    require(
        preconditioning in PRECONDITIONINGS,
        f"preconditioning={preconditioning!r} is unknown; known are {', '.join(PRECONDITIONINGS)}",
    )
    theirs = ForeignWeights(weights)
    _check_architecture(theirs)
    sizes = _sizes(theirs)
    config: dict[str, Any] = {**_read_config(theirs, sizes), "preconditioning": preconditioning}
    places = _places(sizes, config["layers_per_block"])
    return assemble(
        SongUNet, ForeignWeights(_split(theirs)), config, lambda ours: _their_name(ours, places)
    )


def edm_scheduler(unet: SongUNet) -> DDPMScheduler:
    """The noise schedule of a `SongUNet`: as many timesteps, evenly spaced in log sigma.

    As in EDM's sampler, x_0 is not clipped, and any number of steps begins at sigma_max and ends at
    sigma_min, before the image itself. "heun" with use_karras_sigmas is that sampler.
    """
    config = unet.config
    betas = geometric_betas(config["sigma_min"], config["sigma_max"], config["num_train_timesteps"])
    return DDPMScheduler(
        num_train_timesteps=len(betas),
        trained_betas=betas,
        prediction_type=PRECONDITIONINGS[config["preconditioning"]].prediction_type,
        clip_sample=False,
        timestep_spacing="linspace",
    )


def _check_architecture(weights: ForeignWeights) -> None:
    others = {
        "map_noise.freqs": "NCSN++ (embedding_type fourier)",
        "out_conv.weight": "ADM (DhariwalUNet)",
    }
    others |= {
        name: "NCSN++ (encoder_type or decoder_type not standard)"
        for name in weights.weights
        if re.search(r"aux_(down|skip|residual|up)\.", name)
    }
    others |= {
        name: "NCSN++ (resample_filter with more than two taps)"
        for name in weights.weights
        if name.endswith(".resample_filter") and weights.shape(name, 4)[2:] != (2, 2)
    }
    for name, architecture in others.items():
        if weights.has(name):
            raise UserError(
                f"{name} is there: this is EDM's {architecture}; of EDM's networks DDPM++ alone is "
                "built here"
            )


def _sizes(weights: ForeignWeights) -> list[int]:
    """Height of the feature maps of each level, which their names have."""
    found = {int(m[1]) for n in weights.weights if (m := re.match(r"enc\.(\d+)x\d+_", n))}
    require(bool(found), "enc.*_conv.* is missing: this is another format")
    sizes = sorted(found, reverse=True)
    expected = [sizes[0] // 2**level for level in range(len(sizes))]
    require(
        sizes == expected,
        f"enc has feature maps of {sizes} pixels, and each must be half of the one before",
    )
    return sizes


def _read_config(weights: ForeignWeights, sizes: list[int]) -> dict[str, Any]:
    """Arguments of `SongUNet`."""
    name = f"{sizes[0]}x{sizes[0]}"
    first, in_channels = weights.shape(f"enc.{name}_conv.weight", 4)[:2]
    width, sinusoid = weights.shape("map_layer0.weight", 2)
    labels = weights.shape("map_label.weight", 2)[1] if weights.has("map_label.") else None
    return {
        "sample_size": sizes[0],
        "in_channels": in_channels,
        "out_channels": weights.shape(f"dec.{name}_aux_conv.weight", 4)[0],
        "conv_in_channels": first,
        "block_out_channels": tuple(
            weights.shape(f"enc.{size}x{size}_block0.conv1.bias", 1)[0] for size in sizes
        ),
        "layers_per_block": weights.count(f"enc.{name}_block{{}}."),
        "attention_levels": tuple(weights.has(f"enc.{size}x{size}_block0.qkv.") for size in sizes),
        "timestep_input_dim": sinusoid,
        "time_embedding_dim": width,
        "num_class_embeds": labels,
    }


def _split(weights: ForeignWeights) -> dict[str, Any]:
    """The weights with q, k and v apart, labels as a table, and what sampling needs alone."""
    split: dict[str, Any] = {}
    for name, array in weights.weights.items():
        if name.endswith(".resample_filter") or name.startswith("map_augment."):
            continue
        if ".qkv." in name:
            qkv = weights.tensor(name)
            require(bool(qkv.ndim) and not len(qkv) % 3, f"{name} has rows for no q, k and v")
            # Each feature has its q, k and v side by side.
            parts = rearrange(qkv, "(d three) ... -> three d ...", three=3)
            for part, third in zip("qkv", parts, strict=True):
                split[f"{name} ({part})"] = third
        elif name == "map_label.weight":
            # W (sqrt(n) e) + b for the unit vector e of a class, a row for each of n classes.
            labels = weights.tensor(name)
            split[name] = math.sqrt(labels.shape[-1]) * labels.T + weights.tensor("map_label.bias")
        elif name != "map_label.bias":
            split[name] = array
    return split


def _places(sizes: list[int], layers: int) -> list[tuple[str, str]]:
    """Patterns of the beginnings of our names, and what takes their place.

    Args:
        sizes: As `_sizes` gives them.
        layers: Residual blocks of a level on the way down.
    """
    top, low = f"{sizes[0]}x{sizes[0]}", f"{sizes[-1]}x{sizes[-1]}"
    places = [
        (r"conv_in\b", f"enc.{top}_conv"),
        (r"conv_norm_out\b", f"dec.{top}_aux_norm"),
        (r"conv_out\b", f"dec.{top}_aux_conv"),
        (r"mid_block\.(?:resnets|attentions)\.(\d)", rf"dec.{low}_in\1"),
    ]
    for level, size in enumerate(sizes):
        here, up = f"{size}x{size}", len(sizes) - 1 - level
        places += [
            (rf"down_blocks\.{level}\.resnet_down", f"enc.{here}_down"),
            (rf"down_blocks\.{level}\.(?:resnets|attentions)\.(\d+)", rf"enc.{here}_block\1"),
            (rf"up_blocks\.{up}\.resnet_up", f"dec.{here}_up"),
            (rf"up_blocks\.{up}\.resnets\.(\d+)", rf"dec.{here}_block\1"),
            (rf"up_blocks\.{up}\.attentions\.0", f"dec.{here}_block{layers}"),
        ]
    return places


def _their_name(ours: str, places: list[tuple[str, str]]) -> str:
    name = ours
    for pattern, place in places:
        name = re.sub(f"^{pattern}", place, name)
    name = re.sub(r"to_([qkv])\.(weight|bias)", r"qkv.\2 (\1)", name)
    return _PART.sub(lambda part: _NAMES[part[0]], name)
