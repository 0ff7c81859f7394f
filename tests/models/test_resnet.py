import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from ddpm_sa.models.resnet import Downsample, ResnetBlock, Upsample, double, halve
from tests.support.reference import randomise_

RAMP = torch.arange(16.0).reshape(1, 1, 4, 4)


def block(groups: int = 2, **settings) -> ResnetBlock:
    made = ResnetBlock(4, 8, temb_channels=6, groups=groups, eps=1e-6, **settings)
    return randomise_(made).double()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_gradients_are_those_of_finite_differences(scale_shift: bool, resample: str | None) -> None:
    layer = block(scale_shift=scale_shift, resample=resample)
    x, temb = (tensor.requires_grad_() for tensor in inputs())
    assert torch.autograd.gradcheck(layer, (x, temb), fast_mode=True)
    height = {None: 4, "down": 2, "up": 8}[resample]
    assert layer(x, temb).shape == (2, 8, height, height)


def test_timestep_shifts_the_result_unless_a_group_has_but_one_channel() -> None:
    """A group of one channel takes any shift of that channel out again: such a network is blind."""
    x, temb = inputs()
    for groups, blind in [(1, False), (2, False), (4, True)]:
        layer = ResnetBlock(4, 4, temb_channels=6, groups=groups, eps=1e-6)
        layer = randomise_(layer).double()
        moved = (layer(x, temb) - layer(x, 2 * temb)).abs().max()
        assert (moved < 1e-6) == blind


def test_dropout_acts_in_training_alone() -> None:
    layer, (x, temb) = block(dropout=0.5), inputs()
    layer.train()
    assert not torch.equal(layer(x, temb), layer(x, temb))
    layer.eval()
    assert torch.equal(layer(x, temb), layer(x, temb))
    assert torch.equal(layer(x, temb), block()(x, temb))


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
