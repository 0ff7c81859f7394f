import pytest
import torch
from torch import Tensor

from ddpm_sa.models.blocks.resampling import double, halve
from ddpm_sa.models.blocks.resnet import ResnetBlock, ResnetSpec
from tests.support.reference import randomise_

RESAMPLING = {None: None, "down": halve, "up": double}


def block(out_channels: int = 8, resample: str | None = None, **settings) -> ResnetBlock:
    spec = ResnetSpec(**{"temb_channels": 6, "groups": 2, "eps": 1e-6, **settings})
    made = ResnetBlock(4, out_channels, spec, resample=RESAMPLING[resample])
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
        layer = block(4, groups=groups)
        moved = (layer(x, temb) - layer(x, 2 * temb)).abs().max()
        assert (moved < 1e-6) == blind


def test_dropout_acts_in_training_alone() -> None:
    layer, (x, temb) = block(dropout=0.5), inputs()
    layer.train()
    assert not torch.equal(layer(x, temb), layer(x, temb))
    layer.eval()
    assert torch.equal(layer(x, temb), layer(x, temb))
    assert torch.equal(layer(x, temb), block()(x, temb))
