import pytest
import torch
from torch import Tensor

from ddpm_sa.models.attention import scaled_dot_product
from ddpm_sa.models.unet import UNet
from tests.support.reference import SMALL, randomise_


class Counting:
    """An `attend` that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, grid: tuple[int, int]
    ) -> Tensor:
        self.calls += 1
        return scaled_dot_product(q, k, v, scale=scale, grid=grid)


def gradients(config: dict, *, checkpointing: bool) -> tuple[dict[str, Tensor], int]:
    """Every gradient of one training step, and how often attention was computed for it."""
    unet = UNet(**config)
    randomise_(unet)
    unet.train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    counting = Counting()
    for module in unet.modules():
        if hasattr(module, "attend"):
            module.attend = counting
    torch.manual_seed(0)  # for dropout
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    unet(x, torch.tensor([3, 700])).sample.square().mean().backward()
    named = {"sample": x, **dict(unet.named_parameters())}
    return {name: p.grad for name, p in named.items() if p.grad is not None}, counting.calls


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("attention_kind", ["pixel", "sagan"])
def test_gradient_checkpointing_changes_no_bit_and_recomputes_attention(
    dropout: float, attention_kind: str
) -> None:
    config = {**SMALL, "dropout": dropout, "attention_kind": attention_kind}
    plain, calls = gradients(config, checkpointing=False)
    recomputed, calls_with = gradients(config, checkpointing=True)
    assert calls == 4  # one on the way down, one in the middle, two on the way up
    assert calls_with == 2 * calls
    assert plain.keys() == recomputed.keys()
    assert len(plain) == 1 + len(list(UNet(**config).parameters()))
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_gradient_checkpointing_rests_where_no_gradient_is_asked_for() -> None:
    unet = UNet(**SMALL)
    unet.enable_gradient_checkpointing()
    counting = Counting()
    unet.mid_block.attentions[0].attend = counting
    with torch.no_grad():
        unet(torch.zeros(1, 3, 8, 8), 0)
    assert counting.calls == 1
    unet.disable_gradient_checkpointing()
    unet(torch.zeros(1, 3, 8, 8), 0).sample.sum().backward()
    assert counting.calls == 2
