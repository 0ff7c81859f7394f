import pytest
import torch
from diffusers.models.downsampling import FirDownsample2D, KDownsample2D
from diffusers.models.upsampling import FirUpsample2D, KUpsample2D
from torch.nn import functional
from torch.testing import assert_close

from ddpm_sa.models.blocks.resampling import (
    Downsample,
    Upsample,
    double,
    fir_double,
    fir_halve,
    halve,
)
from tests.support.reference import randomise_

RAMP = torch.arange(16.0).reshape(1, 1, 4, 4)


def test_halve_takes_means_and_double_repeats() -> None:
    assert torch.equal(halve(RAMP), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert torch.equal(double(RAMP), RAMP.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(halve(double(RAMP)), RAMP)


@pytest.mark.parametrize(("padding", "around"), [(0, (0, 1, 0, 1)), (1, (1, 1, 1, 1))])
def test_downsample_pads_the_end_alone_or_all_around(padding: int, around: tuple) -> None:
    """Against sums written out: with weights of one the convolution adds up 3 x 3 windows."""
    layer = Downsample(1, padding=padding)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    padded = functional.pad(RAMP[0, 0], around)
    windows = [[padded[i : i + 3, j : j + 3].sum() for j in (0, 2)] for i in (0, 2)]
    assert_close(layer(RAMP, torch.empty(0))[0, 0], torch.tensor(windows))


@pytest.mark.parametrize("height", [4, 40], ids=["few pixels", "many pixels"])
def test_upsample_convolves_the_doubled_image_whichever_way_it_takes(height: int) -> None:
    layer = randomise_(Upsample(3)).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, height, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    results = []
    for out in (
        layer(x, torch.empty(0)),
        functional.conv2d(double(x), layer.conv.weight, layer.conv.bias, padding=1),
    ):
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    # Sums of up to 40 x 32 x 4 products in another order.
    assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


def test_upsample_repeats_before_it_convolves() -> None:
    layer = Upsample(1)
    torch.nn.init.zeros_(layer.conv.bias)
    layer.conv.weight.data = torch.zeros(1, 1, 3, 3)
    layer.conv.weight.data[0, 0, 1, 1] = 1
    assert_close(layer(RAMP, torch.empty(0)), double(RAMP))


def test_filters_are_those_of_diffusers() -> None:
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    assert_close(fir_halve(x), FirDownsample2D(3)(x))
    assert_close(fir_double(x), FirUpsample2D(3)(x))
    assert_close(fir_halve(x, "reflect"), KDownsample2D()(x))
    assert_close(fir_double(x, "reflect"), KUpsample2D()(x))


def test_filters_keep_a_constant_image() -> None:
    """Away from the border, where zeros lie beyond it."""
    x = torch.full((1, 2, 8, 8), 0.7)
    assert_close(fir_halve(x, "reflect"), x[..., ::2, ::2])
    assert_close(fir_double(x, "reflect"), torch.full((1, 2, 16, 16), 0.7))
    assert_close(fir_halve(x)[..., 1:-1, 1:-1], x[..., 2:6:2, 2:6:2])
