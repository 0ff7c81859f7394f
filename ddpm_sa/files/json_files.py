"""JSON files of a model folder that anybody may have written: read them, and check their values."""

import dataclasses
import json
import math
import numbers
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ddpm_sa.errors import UserError, require


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UserError: If it cannot be read, is not JSON, or is another value than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # The parser recurses into nested lists.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    require(isinstance(content, dict), f"{path} must hold a JSON object, not {shown(content)}")
    return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """The numbers that a value of a JSON file may be.

    Attributes:
        low, high: The least and the greatest.
        whole: Whether only integers are allowed.
        inside: Whether low and high themselves are excluded.
        optional: Whether null (None) is allowed.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    inside: bool = False
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise a UserError that names the setting, its value and the range, unless it fits."""
        require(self.holds(value), f"{name}={shown(value)} must be {self}")

    def holds(self, value: Any) -> bool:
        """Whether a value is a number of this range."""
        if value is None:
            return self.optional
        kind: Any = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        # Every comparison with NaN is false.
        if self.inside:
            return self.low < value < self.high
        return self.low <= value <= self.high and abs(value) < math.inf

    def __str__(self) -> str:
        words = "a whole number" if self.whole else "a finite number"
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        if math.isfinite(self.low) and math.isfinite(self.high):
            words += f" between {low} and {high}" if self.inside else f" from {low} to {high}"
        elif math.isfinite(self.low):
            words += f" above {low}" if self.inside else f" of at least {low}"
        return f"{words}, or null" if self.optional else words


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise a UserError that names the setting, its value and the choices, unless it is one."""
    known = ", ".join("null" if choice is None else str(choice) for choice in choices)
    # Lists cannot be hashed, and True equals 1.
    fits = any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in choices)
    require(fits, f"{name}={shown(value)} is unknown; known are {known}")


def shown(value: Any) -> str:
    """A value for a message of one line, shortened if it is long."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
