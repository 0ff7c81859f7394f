"""Which axes of an array are an image's, which count its channels, and which count the images.

The rule: Y is the height and X the width. C and S count channels. Every other axis counts images,
the first the slowest. The order of the letters is that of the array's axes.
"""

import math
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.containers.stack import Part, Stack

IMAGE, CHANNELS = "YX", "CS"


@dataclass(frozen=True)
class Layout:
    """The axes of an array of images.

    Attributes:
        axes: One letter for each axis, all different, with Y and X among them.
        shape: The length of each axis.
    """

    axes: str
    shape: tuple[int, ...]

    @property
    def counting(self) -> str:
        """The letters of the axes that count images."""
        return "".join(letter for letter in self.axes if letter not in IMAGE + CHANNELS)

    @property
    def counting_channels(self) -> str:
        """The letters of the axes that count channels."""
        return "".join(letter for letter in self.axes if letter in CHANNELS)

    @property
    def images(self) -> int:
        """The number of images."""
        return math.prod(map(self._length, self.counting))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        channels = math.prod(map(self._length, self.counting_channels))
        return self._length("Y"), self._length("X"), channels

    def part(self, i: int) -> Part:
        """The part of the array that is image i."""
        lengths = [self._length(letter) for letter in self.counting]
        places = iter(np.unravel_index(i, lengths) if lengths else ())
        return tuple(int(next(places)) if a in self.counting else slice(None) for a in self.axes)

    def image(self, part: np.ndarray) -> np.ndarray:
        """Turn what was read of `part` into an image, (H, W, C)."""
        rest = " ".join(a for a in self.axes if a not in self.counting)
        return rearrange(part, f"{rest} -> Y X ({' '.join(self.counting_channels)})")

    def describe(self) -> str:
        """Say what each axis counts, as in "40 images along Z, 1 channel"."""
        _, _, channels = self.image_shape
        along = f" along {', '.join(self.counting)}" if self.counting else ""
        of = f" along {', '.join(self.counting_channels)}" if self.counting_channels else ""
        return f"{_count(self.images, 'image')}{along}, {_count(channels, 'channel')}{of}"

    def _length(self, letter: str) -> int:
        return self.shape[self.axes.index(letter)]


def axes_problem(axes: str) -> str | None:
    """Why letters cannot name axes, or None."""
    if not (axes.isascii() and axes.isalpha() and axes.isupper()):
        return "must be capital letters, one for each axis of the array"
    if len({*axes}) < len(axes):
        return "must name each axis once"
    return None if {*IMAGE} <= {*axes} else "must name Y, the height, and X, the width"


def layout_of(stack: Stack, axes: str | None) -> tuple[Layout, str]:
    """The layout of a stack, and a line that says what it follows from.

    Args:
        stack: The stack.
        axes: data.axes, which overrides what the file says; or None.

    Raises:
        RefusedError: If axes does not fit, or is needed since the file does not name its axes.
    """
    shape = "x".join(map(str, stack.shape))
    if axes is not None and len(axes) != len(stack.shape):
        said = f" ({stack.axes} by {stack.origin})" if stack.axes else ""
        raise RefusedError(
            f"is {stack.kind} of {len(stack.shape)} axes, {shape}{said}; data.axes={axes} names "
            f"{len(axes)}"
        )
    given = axes or stack.axes or ("YX" if len(stack.shape) == 2 else None)
    if given is None:
        raise RefusedError(
            f"is {stack.kind} of shape {shape}, and does not say what its axes are; set data.axes, "
            f"such as {'ZYX' if len(stack.shape) == 3 else 'TCYX'} or "
            f"{'YXC' if len(stack.shape) == 3 else 'ZYXC'}"
        )
    if problem := axes_problem(given):
        raise RefusedError(f"is {stack.kind} of axes {given}, which {problem}; set data.axes")
    layout = Layout(given, tuple(map(int, stack.shape)))
    origin = "data.axes" if axes else stack.origin if stack.axes else "an array of two axes"
    return layout, f"{given} by {origin}: {layout.describe()}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
