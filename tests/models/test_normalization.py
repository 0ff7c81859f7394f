"""GroupNorm and the projections of attention in bfloat16, where autocast would use float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm_sa.models.attention import PixelAttention, project_at_once
from ddpm_sa.models.normalization import GroupNorm, keeps_channels_last, normalize_in_own_type

CPU = torch.device("cpu")


def parameters(channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(channels, dtype=dtype), torch.randn(channels, dtype=dtype)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_in_its_own_type_is_torchs(order: torch.memory_format, affine: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64).contiguous(memory_format=order)
    weight, bias = parameters(8, torch.float64) if affine else (None, None)
    results = []
    for compute in (
        lambda x: normalize_in_own_type(x, 4, 1e-5, weight, bias),
        lambda x: F.group_norm(x, 4, weight, bias, 1e-5),
    ):
        given = x.clone().requires_grad_()
        out = compute(given)
        out.square().sum().backward()
        results.append((out, given.grad))
    (out, gradient), (expected, expected_gradient) = results
    assert torch.equal(out, expected)
    assert torch.equal(gradient, expected_gradient)


def test_group_norm_of_bfloat16_is_float32s_to_its_rounding() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 32, 16, 16).bfloat16() * 3 + 1
    weight, bias = parameters(32, torch.float32)
    out = normalize_in_own_type(x, 8, 1e-6, weight, bias)
    assert out.dtype == torch.bfloat16
    expected = F.group_norm(x.float(), 8, weight, bias, 1e-6)
    # Weight, bias, mean, deviation and result are each rounded to 8 bits: 2^-9 of their size.
    size = (expected - bias[:, None, None]).abs() + bias.abs()[:, None, None] + weight.abs().max()
    assert ((out.float() - expected).abs() <= 5 * 2**-9 * size).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_on_a_cpu_has_the_bits_of_torchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 4, dtype=dtype)
    ours, theirs = GroupNorm(4, 8), nn.GroupNorm(4, 8)
    assert torch.equal(ours(x), theirs(x))


def test_group_norm_elsewhere_returns_the_type_of_its_input() -> None:
    x = torch.empty(2, 8, 4, 4, device="meta", dtype=torch.bfloat16)
    norm = GroupNorm(4, 8, device="meta")  # with parameters in float32, as under autocast
    assert norm(x).dtype == torch.bfloat16
    assert norm(x.contiguous(memory_format=torch.channels_last)).is_contiguous()


def test_layout_is_asked_of_the_kernel() -> None:
    """torch's kernel for CPUs keeps channels_last; what the meta device stands for does not."""
    for device in (CPU, torch.device("meta")):
        x = torch.ones(1, 4, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
        kept = F.group_norm(x, 2).stride() == x.stride()
        assert keeps_channels_last(device) == kept
    assert keeps_channels_last(CPU)
    assert not keeps_channels_last(torch.device("meta"))


def test_projections_at_once_are_the_projections() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 24).double() for _ in range(3)]
    tokens = torch.randn(2, 16, 10, dtype=torch.float64).mT
    gradients = []
    for projected in (project_at_once(tokens, layers), [layer(tokens) for layer in layers]):
        for part, layer in zip(projected, layers, strict=True):
            torch.testing.assert_close(part, layer(tokens), rtol=0, atol=1e-13)
        sum(part.pow(i + 2).sum() for i, part in enumerate(projected)).backward()
        gradients.append([layer.weight.grad for layer in layers])
        for layer in layers:
            layer.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_an_adapter_in_the_place_of_a_projection_is_called() -> None:
    class Adapter(nn.Linear):
        calls = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            Adapter.calls += 1
            return super().forward(input)

    with torch.device("meta"):
        layer = PixelAttention(32, norm_num_groups=8).bfloat16()
        layer.to_q = Adapter(32, 32).bfloat16()
        layer(torch.empty(2, 32, 4, 4, dtype=torch.bfloat16))
    assert Adapter.calls == 1
