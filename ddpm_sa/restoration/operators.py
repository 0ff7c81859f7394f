"""Common measurements of images: masks, coarser pixels, blur, grey and parts of k-space.

Each knows its singular value decomposition. The one of a separable operator, channels ⊗ rows ⊗
columns, is that of its three small matrices.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ddpm_sa.errors import require
from ddpm_sa.restoration.linear import SpectralOperator

Shape = tuple[int, int, int]

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow's convert("L")."""


class Mask(SpectralOperator):
    """The values of some pixels.

    y is (B, C, K), the K pixels that are known.

    Args:
        image_shape: (C, H, W).
        known: Which pixels, (H, W), bool.

    Raises:
        ValueError: If the sizes differ, or no pixel is known.
    """

    known: Tensor

    def __init__(self, image_shape: Shape, known: Tensor) -> None:
        super().__init__(image_shape)
        check_mask(known, image_shape, "pixels")
        self.register_buffer("known", known)
        self.register_buffer("singular_values", known.float())

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.known]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.image_shape)
        x[..., self.known] = y
        return x

    def to_spectrum(self, x: Tensor) -> Tensor:
        return x

    def from_spectrum(self, coefficients: Tensor) -> Tensor:
        return coefficients


class FourierMask(SpectralOperator):
    """Some frequencies of the unitary Fourier transform: k-space, as magnetic resonance has it.

    y is (B, C, K, 2), the real and the imaginary parts of the K frequencies that are known. Images
    are real, so the values at frequencies k and -k are conjugate: where both are known, that
    component has the singular value 1, and where one is, √½.

    Args:
        image_shape: (C, H, W).
        known: Which frequencies, (H, W), bool, in the order of `torch.fft.fft2`: 0 first.

    Raises:
        ValueError: If the sizes differ, or no frequency is known.
    """

    known: Tensor

    def __init__(self, image_shape: Shape, known: Tensor) -> None:
        super().__init__(image_shape)
        check_mask(known, image_shape, "frequencies")
        opposite = known.flip(0, 1).roll((1, 1), (0, 1))
        self.register_buffer("known", known)
        self.register_buffer("singular_values", ((known.float() + opposite) / 2).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(self.to_spectrum(x)[..., self.known])

    def adjoint(self, y: Tensor) -> Tensor:
        values = torch.view_as_complex(y.contiguous())
        spectrum = values.new_zeros(len(y), *self.image_shape)
        spectrum[..., self.known] = values
        return self.from_spectrum(spectrum)

    def to_spectrum(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")

    def from_spectrum(self, coefficients: Tensor) -> Tensor:
        return torch.fft.ifft2(coefficients, norm="ortho").real


class Separable(SpectralOperator):
    """A matrix for the channels, one for the rows and one for the columns of each image.

    y is (B, D, P, Q).

    Args:
        channels: (D, C).
        rows: (P, H).
        columns: (Q, W).
    """

    gives_images = True

    def __init__(self, channels: Tensor, rows: Tensor, columns: Tensor) -> None:
        matrices = {"channels": channels, "rows": rows, "columns": columns}
        super().__init__([matrix.shape[1] for matrix in matrices.values()])
        spectra = []
        for name, matrix in matrices.items():
            _, s, vectors = torch.linalg.svd(matrix.double())
            self.register_buffer(f"{name}_matrix", matrix.float())
            self.register_buffer(f"{name}_vectors", vectors.float())
            spectra.append(F.pad(s, (0, len(vectors) - len(s))))
        product = torch.einsum("c,h,w->chw", *spectra)
        self.register_buffer("singular_values", product.float())

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_to_axes(x, "matrix", "bchw,dc,ph,qw->bdpq")

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply_to_axes(y, "matrix", "bdpq,dc,ph,qw->bchw")

    def to_spectrum(self, x: Tensor) -> Tensor:
        return self._apply_to_axes(x, "vectors", "bchw,dc,ph,qw->bdpq")

    def from_spectrum(self, coefficients: Tensor) -> Tensor:
        return self._apply_to_axes(coefficients, "vectors", "bdpq,dc,ph,qw->bchw")

    def _apply_to_axes(self, x: Tensor, kind: str, pattern: str) -> Tensor:
        matrices = (self.get_buffer(f"{axis}_{kind}") for axis in ("channels", "rows", "columns"))
        return torch.einsum(pattern, x, *(matrix.to(x.dtype) for matrix in matrices))


class BlockMean(Separable):
    """The mean of each block of factor x factor pixels; y is (B, C, H / factor, W / factor).

    Raises:
        ValueError: If the factor is below 2, or does not divide the size of the images.
    """

    def __init__(self, image_shape: Shape, factor: int) -> None:
        check_factor(image_shape, factor)

        def means(length: int) -> Tensor:
            return repeat(torch.eye(length // factor) / factor, "p h -> p (h f)", f=factor)

        channels, height, width = image_shape
        super().__init__(torch.eye(channels), means(height), means(width))


class Bicubic(Separable):
    """Pillow's BICUBIC reduction, which is MATLAB's imresize; y is (B, C, H / factor, W / factor).

    Raises:
        ValueError: If the factor is below 2, or does not divide the size of the images.
    """

    def __init__(self, image_shape: Shape, factor: int) -> None:
        check_factor(image_shape, factor)

        def reduction(length: int) -> Tensor:
            # Column i of the matrix is what becomes of the i-th unit vector.
            size = (length // factor, length)
            unit = rearrange(torch.eye(length, dtype=torch.float64), "h w -> 1 1 h w")
            reduced = F.interpolate(unit, size, mode="bicubic", antialias=True)
            return rearrange(reduced, "1 1 p h -> p h")

        channels, height, width = image_shape
        super().__init__(torch.eye(channels), reduction(height), reduction(width))


class GaussianBlur(Separable):
    """A Gaussian blur, cut off at 4 standard deviations; the image is mirrored at its borders.

    It is `scipy.ndimage.gaussian_filter`. y is (B, C, H, W).

    Args:
        image_shape: (C, H, W).
        width: Standard deviation in pixels.

    Raises:
        ValueError: If the width is not above 0, or larger than the images.
    """

    def __init__(self, image_shape: Shape, width: float) -> None:
        require(
            0 < width <= max(image_shape[1:]),
            f"blur={width:g} must be above 0 and at most the size of the images, "
            f"{image_shape[1]} x {image_shape[2]}; it is a standard deviation in pixels",
        )
        radius = int(4 * width + 0.5)
        offsets = torch.arange(-radius, radius + 1)
        weights = torch.exp(-0.5 * (offsets.double() / width) ** 2)

        def blur(length: int) -> Tensor:
            # ... 1 0 | 0 1 ... n-1 | n-1 n-2 ..., which has a period of 2 n
            place = (torch.arange(length)[:, None] + offsets) % (2 * length)
            place = torch.minimum(place, 2 * length - 1 - place)
            kernel = (weights / weights.sum()).expand(length, -1)
            return torch.zeros(length, length, dtype=kernel.dtype).scatter_add_(1, place, kernel)

        channels, height, width_of_image = image_shape
        super().__init__(torch.eye(channels), blur(height), blur(width_of_image))


class Grey(Separable):
    """The grey version of RGB images; y is (B, 1, H, W).

    Raises:
        ValueError: If the images have other than 3 channels.
    """

    def __init__(self, image_shape: Shape) -> None:
        channels, height, width = image_shape
        require(channels == 3, f"colorize takes images of 3 channels, and these have {channels}")
        super().__init__(torch.tensor([GREY]), torch.eye(height), torch.eye(width))


def cartesian_lines(size: tuple[int, int], acceleration: int, centre: float = 0.08) -> Tensor:
    """The k-space columns of an accelerated scan: each so-many-th, and all in the centre.

    The pattern of fastMRI's equispaced masks (Zbontar et al. 2018), with offset 0.

    Args:
        size: (H, W).
        acceleration: Each so-many-th column is known; at least 1.
        centre: The share of columns that are known around frequency 0.

    Returns:
        Which are known, (H, W), bool, in the order of `torch.fft.fft2`.
    """
    height, width = size
    frequency = torch.fft.fftfreq(width, 1 / width).round().long()
    known = (frequency % acceleration == 0) | (2 * frequency.abs() < max(centre * width, 1))
    return repeat(known, "w -> h w", h=height).clone()


def check_factor(image_shape: Shape, factor: int) -> None:
    """
    Raises:
        ValueError: If images of this shape cannot be reduced by the factor.
    """
    _, height, width = image_shape
    require(
        factor >= 2 and height % factor == 0 and width % factor == 0,
        f"factor={factor} must be at least 2 and divide the size of the images, {height} x {width}",
    )


def check_mask(known: Tensor, image_shape: Shape, what: str) -> None:
    """
    Raises:
        ValueError: If the mask is of another size than the images, or hides everything.
    """
    _, height, width = image_shape
    require(
        known.shape == (height, width),
        f"a mask of {' x '.join(map(str, known.shape))} is of another size than the images, "
        f"{height} x {width}",
    )
    require(bool(known.any()), f"the mask hides all {what}; leave some that are known")
