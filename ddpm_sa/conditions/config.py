"""The settings of a run's condition. Every field is a flag; its docstring is the flag's help."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.kinds import CONDITION_KINDS
from ddpm_sa.errors import require
from ddpm_sa.settings.ranges import Range, Rate, check_ranges


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """An image that the network is given besides x_t, such as the small one in super-resolution."""

    kind: list[str] | None = None
    """What the network is given, one kind or several, made from each image: downsample, grey, mask,
    blur, noise, edges, jpeg. None: nothing, an unconditional network."""
    factor: Annotated[int, Range(least=2, most=1024)] | None = None
    """downsample: by how much height and width are smaller. None: 4."""
    filter: Literal["area", "bicubic"] | None = None
    """downsample: area, the mean of factor x factor pixels; or bicubic, antialiased. None: area."""
    mask: str | None = None
    """mask: what is hidden: boxes, strokes, pixels, or a folder of pictures that are white where
    the image is hidden. None: boxes."""
    sigma: Annotated[float, Range(least=0.1, most=1000)] | None = None
    """blur: standard deviation of the Gaussian in pixels. None: 2."""
    std: Annotated[float, Range(above=0, most=1000)] | None = None
    """noise: standard deviation of the noise, for images from -1 to 1. None: 0.2."""
    quality: Annotated[int, Range(least=1, most=95)] | None = None
    """jpeg: quality of the file. None: 20."""
    dropout: Rate | None = None
    """Share of images whose condition is withheld, for guidance on it. None: 0."""
    noise: Annotated[float, Range(above=0, most=0.999)] | None = None
    """Add noise to the condition c, sqrt(1 - s^2) c + s eps with s uniform up to this level, and
    tell the network s: so that it can follow another network in a cascade. None: no noise."""

    def __post_init__(self) -> None:
        check_ranges(self, "condition.")
        names = self.kind or []
        unknown = [name for name in names if name not in CONDITION_KINDS]
        require(
            not unknown,
            f"condition.kind={', '.join(names)}: {', '.join(unknown)} is unknown; known are "
            f"{', '.join(CONDITION_KINDS)}",
        )
        require(len(set(names)) == len(names), f"condition.kind={', '.join(names)}: each kind once")

    def unused(self) -> dict[str, str]:
        """The settings without effect, and why."""
        used = {"kind", *(["dropout", "noise"] if self.kind else [])}
        for name in self.kind or []:
            used |= {field.name for field in dataclasses.fields(CONDITION_KINDS[name])}
        kinds = ", ".join(self.kind or []) or "null"
        names = {field.name for field in dataclasses.fields(self)} - used
        return dict.fromkeys(sorted(names), f"condition.kind={kinds} does not use it")

    @property
    def format(self) -> ConditionFormat | None:
        """What the network is given; None for an unconditional one."""
        if not self.kind:
            return None
        kinds = []
        for name in self.kind:
            kind = CONDITION_KINDS[name]
            values: dict[str, Any] = {
                field.name: getattr(self, field.name) for field in dataclasses.fields(kind)
            }
            kinds.append(kind(**{key: v for key, v in values.items() if v is not None}))
        return ConditionFormat(
            kinds=tuple(kinds), withholds=bool(self.dropout), noise=self.noise or 0.0
        )
