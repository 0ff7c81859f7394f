"""Linear measurements y = A x: the operator, its adjoint and its pseudo-inverse.

x is a batch of images, (B, C, H, W), in [-1, 1]; y is a batch of measurements, (B, ...), of any
shape. Inner products are those of real numbers, so complex values are held as pairs of them.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from ddpm_sa.errors import UserError, require
from ddpm_sa.randomness import standard_normal

Gain = Callable[[Tensor], Tensor]
"""A function of the singular values, element by element."""

LEAST_SINGULAR_VALUE = 0.03
"""Smaller ones, relative to the largest, are treated as 0 by pseudo-inverses without a ridge: they
would amplify the noise, or the rounding to 8 bits, by more than 30. DDNM's code has the same bound
(svd_operators.py, class Deblurring)."""

ADJOINT_TOLERANCE = 1e-4
"""Of `check_adjoint`, relative to |A x| |y|: float32 sums over a million values err by less."""


class LinearOperator(nn.Module):
    """A linear measurement y = A x.

    A subclass defines `forward`, and `adjoint` if it knows a faster way than automatic
    differentiation. What it computes with are buffers, so that `.to(device)` moves them.

    Args:
        image_shape: (C, H, W) of the images that it measures.

    Attributes:
        gives_images: Whether measurements are images too, (B, D, P, Q), to be shown and stored as
            such.
    """

    gives_images: ClassVar[bool] = False

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """A x. Images (B, C, H, W) -> measurements (B, ...)."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y. Measurements (B, ...) -> images (B, C, H, W)."""
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.image_shape).requires_grad_()
            return torch.autograd.grad(self(x), x, y)[0]

    def pseudo_inverse(self, y: Tensor, ridge: float = 0.0) -> Tensor:
        """(A^T A + ridge)^-1 A^T y, by conjugate gradients; without a ridge A^+ y.

        Started at 0, conjugate gradients find the solution of least norm.

        Args:
            y: Measurements, (B, ...).
            ridge: At least 0.

        Returns:
            (B, C, H, W).
        """
        return conjugate_gradients(lambda x: self.adjoint(self(x)) + ridge * x, self.adjoint(y))

    def filtered(self, x: Tensor, gain: Gain) -> Tensor:
        """V gain(S) V^T x, where A = U S V^T is the singular value decomposition.

        Raises:
            ValueError: If the decomposition is not known.
        """
        raise UserError(
            f"the singular values of {type(self).__name__} are not known; derive it from "
            "SpectralOperator, or use a method that does not need them, such as pigdm"
        )

    def measurement_shape(self) -> tuple[int, ...]:
        """The shape of one measurement, without the batch."""
        with torch.no_grad():
            return tuple(self(torch.zeros(1, *self.image_shape)).shape[1:])


class SpectralOperator(LinearOperator):
    """A linear measurement whose singular value decomposition A = U S V^T is known.

    Attributes:
        singular_values: A buffer that broadcasts with the result of `to_spectrum`; 0 for what the
            measurement does not see.
    """

    singular_values: Tensor

    def to_spectrum(self, x: Tensor) -> Tensor:
        """V^T x, the coefficients of images in the right singular vectors."""
        raise NotImplementedError

    def from_spectrum(self, coefficients: Tensor) -> Tensor:
        """V c, the inverse of `to_spectrum`."""
        raise NotImplementedError

    def filtered(self, x: Tensor, gain: Gain) -> Tensor:
        return self.from_spectrum(gain(self.singular_values) * self.to_spectrum(x))

    def pseudo_inverse(self, y: Tensor, ridge: float = 0.0) -> Tensor:
        """(A^T A + ridge)^-1 A^T y in closed form; without a ridge A^+ y.

        Without a ridge, small singular values count as 0; see `LEAST_SINGULAR_VALUE`.
        """
        if ridge > 0:
            return self.filtered(self.adjoint(y), lambda s: 1 / (s**2 + ridge))
        return self.filtered(self.adjoint(y), lambda s: inverse(s) ** 2)


class Padded(LinearOperator):
    """A measurement of images that a network sees larger, continued below and to the right.

    Args:
        operator: Of the images in their own size.
        size: (height, width) that the network sees.
    """

    def __init__(self, operator: LinearOperator, size: tuple[int, int]) -> None:
        channels, height, width = operator.image_shape
        super().__init__((channels, *size))
        self.operator, self.size = operator, (height, width)
        self.margins = (0, size[1] - width, 0, size[0] - height)

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self._cropped(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return F.pad(self.operator.adjoint(y), self.margins)

    def pseudo_inverse(self, y: Tensor, ridge: float = 0.0) -> Tensor:
        return F.pad(self.operator.pseudo_inverse(y, ridge), self.margins)

    def filtered(self, x: Tensor, gain: Gain) -> Tensor:
        # Nothing of the margin is measured: its singular values are 0.
        outside = gain(x.new_zeros(())) * (x - F.pad(self._cropped(x), self.margins))
        return outside + F.pad(self.operator.filtered(self._cropped(x), gain), self.margins)

    def _cropped(self, x: Tensor) -> Tensor:
        return x[..., : self.size[0], : self.size[1]]


def inverse(singular_values: Tensor) -> Tensor:
    """1 / s, and 0 for those that are (nearly) 0; see `LEAST_SINGULAR_VALUE`."""
    kept = singular_values > LEAST_SINGULAR_VALUE * singular_values.max()
    return torch.where(kept, 1 / singular_values, 0)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], b: Tensor, tolerance: float = 1e-5, most: int = 200
) -> Tensor:
    """Solve M x = b for each image of a batch (Hestenes & Stiefel 1952), starting at 0.

    Args:
        matrix: x -> M x, symmetric and positive semi-definite.
        b: (B, C, H, W).
        tolerance: An image is solved when |b - M x| is at most this share of |b|.
        most: The number of steps after which all stop.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared = _dot(residual, residual)
    enough = tolerance**2 * squared
    for _ in range(most):
        # An image that is solved stays as it is, however long the others of the batch take.
        active = squared > enough
        if not active.any():
            break
        image = matrix(direction)
        step = torch.where(active, squared / _dot(direction, image), 0)
        x, residual = x + step * direction, residual - step * image
        before, squared = squared, _dot(residual, residual)
        direction = residual + torch.where(active, squared / before, 0) * direction
    return x


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return reduce(one * other, "b c h w -> b 1 1 1", "sum")


class Products(NamedTuple):
    """The two inner products that are equal for an operator and its adjoint.

    Attributes:
        measured: <A x, y>.
        adjoint: <x, A^T y>.
    """

    measured: float
    adjoint: float


def check_adjoint(operator: LinearOperator) -> Products:
    """Compare <A x, y> with <x, A^T y> for one x and one y of noise.

    An operator that is not linear fails too: <A x, y> is then no inner product with x.

    Returns:
        Both, for whoever wants to see them.

    Raises:
        ValueError: If they differ, or A^T y is of another shape than x.
    """
    name, purpose = type(operator).__name__, "restoration: adjoint"
    x = standard_normal(operator.image_shape, 0, f"{purpose}, x", [0])
    measured = operator(x)
    y = standard_normal(measured.shape[1:], 0, f"{purpose}, y", [0])
    returned = operator.adjoint(y)
    require(
        returned.shape == x.shape,
        f"the adjoint of {name} gives {tuple(returned.shape)}, and must give {tuple(x.shape)}, "
        "the shape of the images",
    )
    found = Products(*(float((a.double() * b).sum()) for a, b in ((measured, y), (x, returned))))
    scale = float(measured.double().norm() * y.double().norm())
    require(
        abs(found.measured - found.adjoint) <= ADJOINT_TOLERANCE * scale,
        f"the adjoint of {name} is none: <A x, y> = {found.measured:.6g} and <x, A^T y> = "
        f"{found.adjoint:.6g} must be equal; see that A is linear and leave the adjoint out, which "
        "is then differentiated",
    )
    return found
