"""Weights of openai/improved-diffusion and openai/guided-diffusion (Nichol & Dhariwal 2021)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import ArrayLike
from torch import Tensor

from ddpm_sa.checkpoints.foreign_weights import ForeignWeights, assemble
from ddpm_sa.checkpoints.openai_heads import Heads, attention_arguments, split_attention
from ddpm_sa.errors import UserError, require
from ddpm_sa.models.unet import UNet

# GroupNorm32 of their nn.py. Without attn_norm_num_groups diffusers' middle attention would have
# no norm in a network with scale and shift.
_THEIR_NORM = {"norm_num_groups": 32, "attn_norm_num_groups": 32, "norm_eps": 1e-5}
# Parts of our names -> theirs, tried in this order.
_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_out.0": "proj_out",
}
_PART = re.compile("|".join(re.escape(part) for part in _NAMES))
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def from_openai(
    weights: Mapping[str, Tensor | ArrayLike],
    image_size: int,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    use_new_attention_order: bool = False,
    num_heads_upsample: int | None = None,
    dropout: float = 0.0,
) -> UNet:
    """Build the network of a state dict of their `UNetModel`, such as ema_0.9999_*.pt.

    Names and shapes determine everything but the arguments; the others are flags of their
    programs, with the same meaning and default.

    Args:
        weights: Its state dict, as tensors or arrays; on the meta device for names and shapes
            alone.
        image_size: Height and width of its images, in pixels.
        num_heads: Attention heads of every layer (their programs' own default is 4).
        num_head_channels: Or channels of every head, which their -1 leaves to num_heads.
        use_new_attention_order: Whether the rows of an attention's qkv have heads within q, k and v
            rather than q, k and v within heads. improved-diffusion knows the latter alone.
        num_heads_upsample: With num_heads, another number for the layers on the way up, which
            their -1 leaves to num_heads.
        dropout: Probability, for training the network further.

    Returns:
        The network, float32, in eval mode, with one output for each channel, or two where the
        variance was learned.

    Raises:
        ValueError: If neither or both of num_heads and num_head_channels are given, or do not
            divide the channels; if a weight is missing, not expected, or of another shape, naming
            the first; or if the image cannot be halved at every level.
    """
    theirs = ForeignWeights(weights)
    heads = Heads(num_heads, num_head_channels, num_heads_upsample)
    plan = _read_plan(theirs)
    config = _read_config(theirs, plan, image_size, heads) | {"dropout": dropout}
    split = split_attention(theirs, heads, use_new_attention_order)
    return assemble(UNet, ForeignWeights(split), config, plan.their_name)


@dataclass(frozen=True)
class _Plan:
    """How the numbers of their blocks are divided into levels.

    Attributes:
        levels: Number of levels.
        layers: Residual blocks per down level; an up level has one more.
        attends: Whether each level, starting at the image, has attention.
        resample: What resizes the image: "resnet", "conv", or "unweighted" without any weights.
    """

    levels: int
    layers: int
    attends: tuple[bool, ...]
    resample: Literal["conv", "resnet", "unweighted"]

    def down(self, level: int, index: int) -> int:
        """Number of an input block; the last one of a level halves the image."""
        return 1 + level * (self.layers + 1) + index

    def their_name(self, ours: str) -> str:
        """Translate our name to theirs, followed by (q), (k) or (v) for a third of qkv."""
        name = _BLOCK.sub(self._their_block, ours)
        name = name.replace(".0.conv.", ".0.op.") if ".downsamplers." in ours else name
        name = re.sub(r"to_([qkv])\.(weight|bias)", r"qkv.\2 (\1)", name)
        return _PART.sub(lambda part: _NAMES[part[0]], name)

    def _their_block(self, ours: re.Match) -> str:
        way, level, kind, index = ours[1], int(ours[2]), ours[3], int(ours[4])
        if way == "down":
            number = self.down(level, self.layers if kind == "downsamplers" else index)
            return f"input_blocks.{number}.{int(kind == 'attentions')}"
        first = level * (self.layers + 1)
        if kind == "upsamplers":
            # Behind the last block of the level and, where there is one, its attention.
            return f"output_blocks.{first + self.layers}.{1 + self.attends[::-1][level]}"
        return f"output_blocks.{first + index}.{int(kind == 'attentions')}"


def _read_plan(weights: ForeignWeights) -> _Plan:
    first_gap = weights.count("input_blocks.{}.")
    require(
        weights.has("output_blocks."),
        "output_blocks.0.* is missing: these are the weights of a classifier (EncoderUNetModel), "
        "which has no way up, or not all weights of a network",
    )
    blocks = weights.count("output_blocks.{}.")
    # A level ends with what doubles the image; the last has none.
    doubles = [
        number
        for number in range(blocks)
        for place in (1, 2)
        for what in ("conv", "in_layers")
        if weights.has(f"output_blocks.{number}.{place}.{what}")
    ]
    # conv_resample=False: what halves or doubles has no weights, and so its number is missing.
    unweighted = not doubles and first_gap < blocks
    of_a_level = first_gap if unweighted else doubles[0] + 1 if doubles else blocks
    levels = blocks // of_a_level
    if blocks % of_a_level or of_a_level < 2:
        raise UserError(
            f"the {blocks} output_blocks do not fall into levels of {of_a_level}, whose last "
            "doubles the image: this is another network than UNetModel"
        )
    firsts = [1 + level * of_a_level for level in range(levels)]
    halvings = {first - 1 for first in firsts[1:]}
    for number in range(blocks):
        if not weights.has(f"input_blocks.{number}.") and not (unweighted and number in halvings):
            raise UserError(f"input_blocks.{number}.* is missing: the file is incomplete")
    resnet = weights.has(f"input_blocks.{of_a_level}.0.in_layers.")
    return _Plan(
        levels=levels,
        layers=of_a_level - 1,
        attends=tuple(weights.has(f"input_blocks.{first}.1.") for first in firsts),
        resample="unweighted" if unweighted else "resnet" if resnet else "conv",
    )


def _read_config(
    weights: ForeignWeights, plan: _Plan, image_size: int, heads: Heads
) -> dict[str, Any]:
    """Arguments of `UNet`."""
    channels = tuple(
        weights.shape(f"input_blocks.{plan.down(level, 0)}.0.out_layers.3.bias", 1)[0]
        for level in range(plan.levels)
    )
    resnet = plan.resample == "resnet"
    plain = "ResnetDownsampleBlock2D" if resnet else "DownBlock2D"
    down = tuple("AttnDownBlock2D" if attends else plain for attends in plan.attends)
    scaled = weights.shape("input_blocks.1.0.emb_layers.1.bias", 1)[0] == 2 * channels[0]
    classes = weights.shape("label_emb.weight", 2)[0] if weights.has("label_emb.") else None
    return {
        **_THEIR_NORM,
        **_timestep(weights, channels[0]),
        "sample_size": image_size,
        "in_channels": weights.shape("input_blocks.0.0.weight", 4)[1],
        "out_channels": weights.shape("out.2.bias", 1)[0],
        "block_out_channels": channels,
        "layers_per_block": plan.layers,
        "down_block_types": down,
        "up_block_types": tuple(
            name.replace("Downsample", "Upsample").replace("Down", "Up") for name in down[::-1]
        ),
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "conv_resample": plan.resample != "unweighted",
        "resnet_time_scale_shift": "scale_shift" if scaled else "default",
        "num_class_embeds": classes,
        **attention_arguments(channels, plan.attends, heads),
    }


def _timestep(weights: ForeignWeights, first: int) -> dict[str, int]:
    """What follows from num_channels where channel_mult does not begin with 1."""
    width, sinusoid = weights.shape("time_embed.0.weight", 2)
    if sinusoid == first:
        return {}
    return {"timestep_input_dim": sinusoid, "time_embedding_dim": width}
