import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.testing import assert_close

from ddpm_sa.models.attention import PixelAttention, SAGANAttention, scaled_dot_product
from tests.support.reference import Fixture, randomise_


def images(channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 4, 6, generator=generator, dtype=dtype)


def layers(dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    made = [
        PixelAttention(16, heads=1, norm_num_groups=4),
        PixelAttention(16, heads=4, norm_num_groups=None, output_scale=2.0),
        SAGANAttention(16),
    ]
    return [randomise_(layer).to(dtype) for layer in made]


class Explicit:
    """The textbook's softmax(scale · q kᵀ) v in an `attend` slot, keeping what it was given."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        self.shapes, self.scale, self.grid = (q.shape, k.shape, v.shape), scale, grid
        self.map = torch.softmax(scale * q @ k.transpose(-1, -2), dim=-1)
        return self.map @ v


@pytest.mark.parametrize("heads", [1, 2, 16])
@pytest.mark.parametrize("groups", [None, 4])
@pytest.mark.parametrize("output_scale", [1.0, 2.0])
def test_pixel_attention_has_diffusers_weights_and_output(
    heads: int, groups: int | None, output_scale: float
) -> None:
    theirs = Attention(
        16,
        heads=heads,
        dim_head=16 // heads,
        norm_num_groups=groups,
        eps=1e-6,
        rescale_output_factor=output_scale,
        residual_connection=True,
        bias=True,
    )
    randomise_(theirs)
    ours = PixelAttention(16, heads=heads, norm_num_groups=groups, output_scale=output_scale)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(16)
    assert_close(ours.double()(x), theirs.double()(x), rtol=1e-12, atol=1e-12)


def test_sagan_attention_is_that_of_the_original_port() -> None:
    original = Fixture("sagan_attention")
    layer = SAGANAttention(32)
    weights = {name: torch.from_numpy(array) for name, array in original.weights().items()}
    layer.load_state_dict(weights, strict=True)
    x, recorded = original["in/x"], original["out/out"]
    assert (layer(x) - recorded).abs().max() < 1e-5
    layer.attend = explicit = Explicit()
    assert (layer(x) - recorded).abs().max() < 1e-5
    assert (explicit.map[:, 0] - original["out/attention"]).abs().max() < 1e-5


def test_sagan_attention_starts_as_the_identity() -> None:
    x = images(16, torch.float32)
    assert torch.equal(SAGANAttention(16)(x), x)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_attention_commutes_with_permuted_pixels(layer: nn.Module) -> None:
    """Nothing in it knows where a pixel is."""
    x = images(16)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))

    def permuted(image: Tensor) -> Tensor:
        return image.flatten(2)[:, :, order].unflatten(2, image.shape[2:])

    out = layer(x)
    assert not torch.allclose(permuted(out), out)
    assert_close(layer(permuted(x)), permuted(out), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_every_pixel_attends_to_every_other(layer: nn.Module) -> None:
    x = images(16).requires_grad_()
    layer(x)[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0].abs().sum(0) > 0).all()
    assert (x.grad[1] == 0).all()


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_gradients_are_those_of_finite_differences(layer: nn.Module) -> None:
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, state, (x,))

    x = images(16)[:1, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_attend_slot_takes_another_callable_and_gives_the_default_back(layer: nn.Module) -> None:
    x, default = images(16), layer.attend
    out = layer(x)
    layer.attend = explicit = Explicit()
    # The default is torch's fused kernel, which adds up in another order.
    assert_close(layer(x), out, rtol=1e-12, atol=1e-12)
    heads, (queries, keys, values) = getattr(layer, "heads", 1), explicit.shapes
    width = 16 // heads if isinstance(layer, PixelAttention) else 2
    assert queries == keys == (2, heads, 24, width)
    assert values == (2, heads, 24, 16 // heads)
    assert explicit.grid == (4, 6)
    assert explicit.scale == (width**-0.5 if isinstance(layer, PixelAttention) else 1)

    layer.attend = lambda q, k, v, *, scale, grid: torch.zeros_like(v)
    assert not torch.allclose(layer(x), out)
    layer.attend = default
    assert torch.equal(layer(x), out)
    assert not any("attend" in name for name in layer.state_dict())


@pytest.mark.parametrize("pixels", [24, 1056], ids=["short", "long"])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_default_of_the_slot_is_the_textbooks_formula_at_every_length(
    pixels: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, pixels, 4, generator=generator, dtype=torch.float64)
    out = scaled_dot_product(q, k, v, scale=scale, grid=(pixels // 12, 12))
    expected = Explicit()(q, k, v, scale=scale, grid=(pixels // 12, 12))
    assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_widths_that_do_not_divide_are_refused_with_their_numbers() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide 16 channels"):
        PixelAttention(16, heads=3)
    with pytest.raises(ValueError, match="divisible by 8, not 12"):
        SAGANAttention(12)
