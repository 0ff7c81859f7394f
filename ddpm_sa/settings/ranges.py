"""Ranges of numeric settings, stated in their types: `steps: Count = 50`.

`check_ranges` checks every number of a dataclass whose fields have such types; --help shows them.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from ddpm_sa.errors import require

LARGEST = 2**63 - 1
"""The largest integer of 64 bits, which torch's generators, tensors and sizes hold."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Range:
    """The numbers that a setting may have; never NaN.

    Attributes:
        least, most: Inclusive bounds.
        above, below: Exclusive bounds.
        infinite: Whether infinity is allowed.
        otherwise: What the setting may be instead, for the message.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    infinite: bool = False
    otherwise: str = ""

    def __contains__(self, number: float) -> bool:
        if number == math.inf:
            return self.infinite
        return self.least <= number <= self.most and self.above < number < self.below

    def __repr__(self) -> str:
        """The rule, as in "above 0 and at most 1"; --help shows it."""
        bounds = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        # That an integer has 64 bits goes without saying.
        finite = [
            f"{words} {bound}"
            for words, bound in bounds.items()
            if math.isfinite(bound) and bound != LARGEST
        ]
        return " and ".join(finite) or "finite"

    def rule_for(self, number: float) -> str:
        """The rule that a number outside the range breaks."""
        if not math.isfinite(number) and not self.infinite:
            return f"finite, {self!r}" if repr(self) != "finite" else "finite"
        return "at most 2^63 - 1" if self.most == LARGEST < number else repr(self)


Count = Annotated[int, Range(least=1, most=LARGEST)]
Several = Annotated[int, Range(least=2, most=LARGEST)]
Index = Annotated[int, Range(least=0, most=LARGEST)]
Seed = Annotated[int, Range(least=0, most=LARGEST)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(above=0, below=1)]
"""A part that is neither nothing nor all, such as the held-out images."""
Rate = Annotated[float, Range(least=0, below=1)]
"""A probability or decay rate; 1 would drop or keep everything."""
Fraction = Annotated[float, Range(least=0, most=1)]


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Check the numbers of a dataclass, those in lists and tuples too, against their types.

    Args:
        settings: An instance; nested dataclasses are left to their own checks.
        prefix: Put before the names in messages, as in "optim.".

    Raises:
        UserError: If a number is outside its range; the message names the setting.
    """
    for name, (allowed, may_be_none) in field_ranges(type(settings)).items():
        value = getattr(settings, name)
        for number in _numbers(value):
            of = "" if number is value else f": {number}"
            instead = allowed.otherwise + (", or null" if may_be_none else "")
            require(
                number in allowed,
                f"{prefix}{name}={value}{of} must be {allowed.rule_for(number)}{instead}",
            )


@functools.cache
def field_ranges(settings: type) -> dict[str, tuple[Range, bool]]:
    """Each field with a range: its range, and whether the field may also be None."""
    hints = get_type_hints(settings, include_extras=True)
    ranges = {
        name: [p for p in _parts(hint) if isinstance(p, Range)] for name, hint in hints.items()
    }
    return {
        name: (found[0], NoneType in get_args(hints[name]))
        for name, found in ranges.items()
        if found
    }


def _parts(hint: Any) -> Iterator[Any]:
    """A type hint and everything that it is made of."""
    yield hint
    for part in (*get_args(hint), *getattr(hint, "__metadata__", ())):
        yield from _parts(part)


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Real) and not isinstance(value, bool):  # numpy's too
        yield value
