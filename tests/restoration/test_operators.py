"""Operators against dense matrices, Pillow, scipy and numpy."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.oracles.gaussian import matrix_of
from ddpm_sa.errors import UserError
from ddpm_sa.restoration import (
    Bicubic,
    BlockMean,
    FourierMask,
    GaussianBlur,
    Grey,
    LinearOperator,
    Mask,
    check_adjoint,
)
from ddpm_sa.restoration.linear import LEAST_SINGULAR_VALUE, Padded
from ddpm_sa.restoration.operators import cartesian_lines

SHAPE = (3, 8, 12)
HALF = torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) < 0.5
OPERATORS = {
    "mask": Mask(SHAPE, HALF),
    "mean": BlockMean(SHAPE, 2),
    "bicubic": Bicubic(SHAPE, 4),
    "blur": GaussianBlur(SHAPE, 0.7),
    "grey": Grey(SHAPE),
    "fourier": FourierMask(SHAPE, HALF),
    "lines": FourierMask(SHAPE, cartesian_lines((8, 12), 3)),
    "padded": Padded(GaussianBlur((3, 6, 11), 0.7), (8, 12)),
}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]


def test_adjoint_is_the_transposed_matrix(operator):
    matrix = matrix_of(operator)
    y = noise(2, *operator.measurement_shape())
    expected = (y.double().flatten(1) @ matrix).reshape(2, *SHAPE)
    torch.testing.assert_close(operator.adjoint(y).double(), expected, atol=1e-5, rtol=0)
    # That of automatic differentiation, which operators of one's own have.
    differentiated = LinearOperator.adjoint(operator, y).double()
    torch.testing.assert_close(differentiated, expected, atol=1e-5, rtol=0)


def test_both_inner_products_are_reported_and_equal(operator):
    found = check_adjoint(operator)
    assert found.measured == pytest.approx(found.adjoint, rel=1e-4, abs=1e-4)
    assert abs(found.measured) > 1e-2


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_pseudo_inverse_is_that_of_the_matrix(operator, ridge):
    matrix = matrix_of(operator)
    y = noise(2, *operator.measurement_shape())
    if ridge:
        normal = matrix.mT @ matrix + ridge * torch.eye(matrix.shape[1], dtype=torch.double)
        inverse = torch.linalg.solve(normal, matrix.mT)
    else:
        inverse = torch.linalg.pinv(matrix, rtol=LEAST_SINGULAR_VALUE)
    expected = (y.double().flatten(1) @ inverse.mT).reshape(2, *SHAPE)
    found = operator.pseudo_inverse(y, ridge).double()
    # float32, amplified by at most 1 / LEAST_SINGULAR_VALUE
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_filtered_applies_a_function_to_the_singular_values(operator):
    _, s, vectors = torch.linalg.svd(matrix_of(operator))
    s = torch.nn.functional.pad(s, (0, len(vectors) - len(s)))
    x = noise(2, *SHAPE)
    dense = vectors.mT @ torch.diag(1 / (1 + s)) @ vectors
    expected = (x.double().flatten(1) @ dense.mT).reshape(2, *SHAPE)
    found = operator.filtered(x, lambda values: 1 / (1 + values)).double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_conjugate_gradients_find_what_the_closed_forms_find(operator):
    y = operator(noise(3, *SHAPE))
    y[1] *= 1e-3  # whose steps end with the same relative error
    for ridge in (0.0, 0.1):
        expected = operator.pseudo_inverse(y, ridge)
        found = LinearOperator.pseudo_inverse(operator, y, ridge)
        largest = expected.abs().amax((1, 2, 3), keepdim=True)
        assert ((found - expected).abs() / largest).max() < 1e-3


def test_conjugate_gradients_treat_each_image_alone():
    operator = OPERATORS["blur"]
    y = operator(noise(4, *SHAPE)) * torch.tensor([1.0, 1e-6, 0.0, 1e3]).reshape(4, 1, 1, 1)
    together = LinearOperator.pseudo_inverse(operator, y)
    alone = torch.cat([LinearOperator.pseudo_inverse(operator, row[None]) for row in y])
    torch.testing.assert_close(together, alone, atol=0, rtol=1e-5)


def test_mask_keeps_the_values_of_known_pixels():
    x = noise(2, *SHAPE)
    assert torch.equal(OPERATORS["mask"](x), x[:, :, HALF])
    assert torch.equal(Mask(SHAPE, HALF | True)(x).flatten(), x.flatten())


def test_block_mean_is_average_pooling():
    x = noise(2, *SHAPE)
    expected = torch.nn.functional.avg_pool2d(x, 4)
    torch.testing.assert_close(BlockMean(SHAPE, 4)(x), expected, atol=1e-6, rtol=0)


def test_bicubic_is_pillows():
    x = noise(1, 1, 24, 16)
    picture = Image.fromarray(x[0, 0].numpy())
    for factor in (2, 4):
        small = np.asarray(picture.resize((16 // factor, 24 // factor), Image.Resampling.BICUBIC))
        found = Bicubic((1, 24, 16), factor)(x)[0, 0].numpy()
        assert np.abs(found - small).max() < 1e-5


@pytest.mark.parametrize("width", [0.3, 1.0, 4.0])  # the last reaches beyond the image twice
def test_blur_is_scipys(width):
    x = noise(1, 1, 10, 9)
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), width, mode="reflect")
    found = GaussianBlur((1, 10, 9), width)(x)[0, 0].numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_grey_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
    x = torch.from_numpy(pixels).float().permute(2, 0, 1)[None]
    assert np.abs(Grey(SHAPE)(x)[0, 0].numpy() - expected).max() < 0.51


def test_fourier_mask_is_numpys_transform():
    x = noise(1, *SHAPE)
    expected = np.fft.fft2(x[0].numpy(), norm="ortho")[:, HALF.numpy()]
    found = torch.view_as_complex(OPERATORS["fourier"](x)[0]).numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_lines_of_an_accelerated_scan_are_whole_columns_with_the_centre():
    known = cartesian_lines((64, 100), 4, centre=0.08)
    assert (known == known[:1]).all()
    frequencies = [f for f in range(-50, 50) if torch.fft.fftshift(known[0])[f + 50]]
    assert frequencies == [f for f in range(-50, 50) if f % 4 == 0 or abs(f) < 4]
    assert cartesian_lines((4, 4), 1).all()


class Tilted(LinearOperator):
    """One's own: the mean of each row."""

    def forward(self, x):
        return x.mean(3)


def test_an_operator_of_ones_own_needs_no_adjoint():
    operator = Tilted(SHAPE)
    check_adjoint(operator)
    y = noise(2, 3, 8)
    torch.testing.assert_close(operator.pseudo_inverse(y), y[..., None].expand(2, *SHAPE))


class Doubled(Tilted):
    def adjoint(self, y):
        return 2 * super().adjoint(y)


class Squared(LinearOperator):
    def forward(self, x):
        return x**2


class Shifted(LinearOperator):
    def forward(self, x):
        return x + 1


class Flat(LinearOperator):
    def forward(self, x):
        return x.mean(3)

    def adjoint(self, y):
        return y


@pytest.mark.parametrize("kind", [Doubled, Squared, Shifted])
def test_an_operator_whose_adjoint_is_none_is_refused_with_both_numbers(kind):
    with pytest.raises(UserError) as error:
        check_adjoint(kind(SHAPE))
    message = str(error.value)
    assert f"the adjoint of {kind.__name__} is none: <A x, y> = " in message
    assert "\n" not in message
    if kind is Doubled:
        words = message.split()
        measured, adjoint = (float(words[i + 1]) for i, word in enumerate(words) if word == "=")
        assert adjoint == pytest.approx(2 * measured, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check_adjoint(Flat(SHAPE)), "must give .1, 3, 8, 12., the shape of the images"),
        (lambda: Mask(SHAPE, HALF & False), "the mask hides all pixels"),
        (lambda: FourierMask(SHAPE, HALF & False), "the mask hides all frequencies"),
        (lambda: Mask(SHAPE, HALF[:4]), "4 x 12 is of another size than the images, 8 x 12"),
        (lambda: BlockMean(SHAPE, 3), "factor=3 must be at least 2 and divide .* 8 x 12"),
        (lambda: Bicubic(SHAPE, 1), "factor=1 must be at least 2"),
        (lambda: GaussianBlur(SHAPE, 0), "blur=0 must be above 0 and at most .* 8 x 12"),
        (lambda: GaussianBlur(SHAPE, 1e20), "blur=1e.20 must be above 0 and at most .* 8 x 12"),
        (lambda: Grey((1, 8, 8)), "takes images of 3 channels, and these have 1"),
        (
            lambda: Tilted(SHAPE).filtered(noise(1, *SHAPE), torch.zeros_like),
            "the singular values of Tilted are not known",
        ),
    ],
)
def test_measurements_that_cannot_be_are_refused_in_words(make, message):
    with pytest.raises(UserError, match=message):
        make()
