"""Heads of the attention in OpenAI's networks: the flags for them, and how qkv is split."""

from dataclasses import dataclass
from typing import Any

from einops import rearrange

from ddpm_sa.checkpoints.foreign_weights import ForeignWeights
from ddpm_sa.errors import UserError, require


@dataclass(frozen=True)
class Heads:
    """The flags that say how an attention's channels are divided into heads.

    Attributes:
        num_heads, num_head_channels, num_heads_upsample: As in `from_openai`.

    Raises:
        ValueError: If not one of the first two is given, or the third without the first.
    """

    num_heads: int | None
    num_head_channels: int | None
    num_heads_upsample: int | None = None

    def __post_init__(self) -> None:
        heads, width, up = self.num_heads, self.num_head_channels, self.num_heads_upsample
        if (heads is None) == (width is None):
            given = "neither is" if heads is None else "both are"
            raise UserError(
                f"num_heads or num_head_channels must be given, and {given}: the weights do not "
                "say how many heads share their channels; the training's flags do (num_heads is 4 "
                "if unset)"
            )
        require(
            up is None or heads is not None,
            f"num_heads_upsample={up} has no effect beside num_head_channels={width}, which holds "
            "for all layers",
        )

    def count(self, channels: int, upwards: bool) -> int:
        """Heads of an attention of so many channels.

        Raises:
            UserError: If the flags do not divide them.
        """
        name, value = "num_heads", self.num_heads
        if self.num_head_channels is not None:
            name, value = "num_head_channels", self.num_head_channels
        elif upwards and self.num_heads_upsample is not None:
            name, value = "num_heads_upsample", self.num_heads_upsample
        if not value or value < 1 or channels % value:
            raise UserError(
                f"{name}={value} does not divide the {channels} channels of an attention"
            )
        return channels // value if name == "num_head_channels" else value


def attention_arguments(
    channels: tuple[int, ...], attends: tuple[bool, ...], heads: Heads
) -> dict[str, int | None]:
    """The arguments of `UNet` that say how wide a head is; UNet2DModel's where it can.

    Args:
        channels: Features of each level.
        attends: Whether each level has attention.
        heads: The flags.

    Raises:
        ValueError: If the flags do not divide the channels.
    """
    upwards = {c for c, attended in zip(channels, attends, strict=True) if attended}
    downwards = {*upwards, channels[-1]}  # and the middle
    counts = {c: heads.count(c, upwards=False) for c in sorted(downwards)}
    counts_up = {c: heads.count(c, upwards=True) for c in sorted(upwards)}
    widths = {c // count for of in (counts, counts_up) for c, count in of.items()}
    if heads.num_head_channels is not None or len(widths) == 1:
        [width] = widths
        # Where every attention has one head, that is said as in the paper's configuration.
        single = heads.num_head_channels is None and width == channels[-1]
        return {"attention_head_dim": None if single else width}
    if {*counts.values(), *counts_up.values()} == {1}:
        return {"attention_head_dim": None}
    same = all(count == heads.num_heads for count in counts_up.values())
    return {
        "num_attention_heads": heads.num_heads,
        "num_attention_heads_up": None if same else heads.num_heads_upsample,
    }


def split_attention(weights: ForeignWeights, heads: Heads, new_order: bool) -> dict[str, Any]:
    """Split every qkv into three weights; the other weights are unchanged."""
    pattern = "(three heads d) ... -> three (heads d) ..."
    if not new_order:
        pattern = pattern.replace("three heads d", "heads three d", 1)
    split: dict[str, Any] = {}
    for name, array in weights.weights.items():
        if ".qkv." not in name:
            split[name] = array
            continue
        qkv = weights.tensor(name)
        rows = qkv.shape[0] if qkv.ndim else 0
        if not rows or rows % 3:
            raise UserError(f"{name} has {rows} rows, which no q, k and v have")
        count = heads.count(rows // 3, name.startswith("output_blocks."))
        parts = rearrange(qkv, pattern, three=3, heads=count)
        split |= {f"{name} ({part})": third for part, third in zip("qkv", parts, strict=True)}
    return split
