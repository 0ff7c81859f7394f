"""Which images a network is conditioned on, and how they become channels of its input."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_sa.conditions.kinds import CONDITION_KINDS, ConditionKind, Shape, name_of
from ddpm_sa.errors import UserError, require
from ddpm_sa.files.json_files import Number, check_choice, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionFormat:
    """What a network is given besides x_t: [conditions | whether there are any | their noise].

    Attributes:
        kinds: The conditions, whose channels follow x_t in this order.
        withholds: Whether a channel says if the condition is given (1) or withheld (0), with zeros
            in all other channels: for guidance on it (Ho & Salimans 2022).
        noise: The highest level of noise that the network was trained with in its condition (Ho et
            al. 2021, cascaded diffusion), from 0 (none) to below 1. Beyond 0 a channel has the
            level.

    Raises:
        UserError: If there is no kind, or a field is out of range.
    """

    kinds: tuple[ConditionKind, ...]
    withholds: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        require(len(self.kinds) > 0, "kinds of a condition must be at least one")
        check_choice("withholds", self.withholds, (True, False))
        Number(low=0, high=0.999).check("noise", self.noise)

    def check(self, image: Shape) -> None:
        """Refuse images, (C, H, W), that cannot have these conditions.

        Raises:
            UserError: If their channels or size do not allow it.
        """
        for kind in self.kinds:
            kind.check(image)

    def channels(self, image: Shape) -> int:
        """How many channels of the network's input it takes, for images (C, H, W)."""
        return sum(kind.channels(image) for kind in self.kinds) + self.withholds + (self.noise > 0)

    def layout(self, image: Shape) -> str:
        """What the channels are, in a sentence, for images (C, H, W)."""
        parts = [
            f"{kind.channels(image)} of {name_of(kind)}, resized to {image[1]} x {image[2]}"
            for kind in self.kinds
        ]
        if self.withholds:
            parts.append("1 of ones (zeros in all channels withhold the condition)")
        if self.noise > 0:
            parts.append("1 with the level of the noise in the condition, 0 for none")
        return "; ".join(parts)

    def assemble(
        self,
        given: Sequence[Tensor],
        size: tuple[int, int],
        *,
        withheld: Tensor | None = None,
        levels: Tensor | None = None,
        eps: Tensor | None = None,
    ) -> Tensor:
        """Make the channels that follow x_t.

        Args:
            given: The condition of each kind, (B, C, h, w), in [-1, 1].
            size: (H, W) of the images.
            withheld: Whether to withhold the condition of each image, (B,), bool; None: of none.
            levels: s of each image's condition c, (B,): it becomes sqrt(1 - s²) c + s eps; None: 0.
            eps: Standard normal noise for it, (B, C, H, W).

        Returns:
            (B, channels, H, W).
        """
        pairs = zip(self.kinds, given, strict=True)
        condition = torch.cat([kind.prepare(image, size) for kind, image in pairs], dim=1)
        blank = condition.new_zeros(len(condition), 1, *size)
        parts = [condition, *([blank + 1] if self.withholds else [])]
        if self.noise > 0:
            s = blank[:, :, :1, :1] if levels is None else levels.float()[:, None, None, None]
            if eps is not None:
                parts[0] = (1 - s.square()).sqrt() * condition + s * eps
            parts.append(blank + s)
        channels = torch.cat(parts, dim=1)
        if withheld is not None:
            channels[withheld] = 0.0
        return channels

    def preview(self, channels: Tensor, image_channels: int) -> Tensor:
        """The first condition as an image: (B, K, H, W) of `assemble` -> (B, C, H, W)."""
        count = self.kinds[0].shown(image_channels)
        return channels[:, :count].expand(-1, image_channels, -1, -1)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        kinds = [{"kind": name_of(kind)} | dataclasses.asdict(kind) for kind in self.kinds]
        return {"kinds": kinds, "withholds": self.withholds, "noise": self.noise}

    @classmethod
    def from_json(cls, content: Any) -> "ConditionFormat":
        """
        Raises:
            UserError: If it is not what `to_json` wrote.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        fits = isinstance(content, Mapping) and content.keys() <= known and "kinds" in content
        require(fits, f"condition={shown(content)} must be an object of {', '.join(sorted(known))}")
        kinds = content["kinds"]
        require(isinstance(kinds, list), f"kinds={shown(kinds)} of the condition must be a list")
        return cls(**{**content, "kinds": tuple(_kind_from_json(kind) for kind in kinds)})

    def __str__(self) -> str:
        """The kinds with their settings, such as "downsample (factor 4, filter area)"."""
        words = []
        for kind in self.kinds:
            values = [f"{name} {value}" for name, value in dataclasses.asdict(kind).items()]
            words.append(name_of(kind) + (f" ({', '.join(values)})" if values else ""))
        return " and ".join(words)


def _kind_from_json(content: Any) -> ConditionKind:
    require(isinstance(content, Mapping), f"a kind of condition is {shown(content)}, not an object")
    fields = dict(content)
    name = fields.pop("kind", None)
    check_choice("kind", name, CONDITION_KINDS)
    try:
        return CONDITION_KINDS[name](**fields)
    except TypeError as error:  # an unknown name
        raise UserError(f"condition {name}: {error}") from error
