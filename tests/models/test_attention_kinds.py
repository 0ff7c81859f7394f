"""A new kind of attention is one class and one row of a registry; everything else finds it."""

from pathlib import Path
from typing import Self

import pytest
import torch
from diffusers import DDPMScheduler
from einops import rearrange
from torch import Tensor, nn
from torch.testing import assert_close

from ddpm_sa import Pipeline, UNet, ablate_attention, preset, record_attention
from ddpm_sa.models import attention
from ddpm_sa.models.attention import AttentionSpec, SelfAttention, scaled_dot_product
from ddpm_sa.models.attention_slots import attention_layers
from ddpm_sa.models.config import check_config

KIND = "cosine"


class CosineAttention(SelfAttention):
    """Queries and keys of length 1: the logits are 10 times cosines."""

    not_in_diffusers = "diffusers has no cosine attention"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.attend = scaled_dot_product

    @classmethod
    def build(cls, channels: int, spec: AttentionSpec) -> Self:
        return cls(channels)

    @property
    def last_projection(self) -> nn.Module:
        return self.out

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        q, k, v = rearrange(
            self.qkv(rearrange(x, "b c h w -> b (h w) c")), "b n (t c) -> t b 1 n c", t=3
        )
        q, k = (z / z.norm(dim=-1, keepdim=True) for z in (q, k))
        mixed = self.out(self.attend(q, k, v, scale=10.0, grid=grid)[:, 0])
        return x + rearrange(mixed, "b (h w) c -> b c h w", h=grid[0])


@pytest.fixture
def unet(monkeypatch: pytest.MonkeyPatch) -> UNet:
    monkeypatch.setitem(attention.ATTENTION_KINDS, KIND, CosineAttention)
    torch.manual_seed(0)
    return UNet(**preset("tiny").unet, attention_kind=KIND).eval()


def test_a_third_kind_is_in_every_place_of_the_paper(unet: UNet) -> None:
    layers = attention_layers(unet)
    paper = attention_layers(UNet(**preset("tiny").unet))
    assert list(layers) == list(paper)
    assert all(isinstance(layer.module, CosineAttention) for layer in layers.values())


def test_a_third_kind_starts_near_the_identity(unet: UNet) -> None:
    unet.paper_init_()
    x = torch.randn(1, 32, 8, 8)
    for layer in attention_layers(unet).values():
        assert_close(layer.module(x), x, atol=1e-3, rtol=0)


def test_a_third_kind_is_recorded_and_ablated(unet: UNet) -> None:
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    with torch.no_grad(), record_attention(unet, queries=[(4, 6)]) as maps:
        plain = unet(x, t).sample
    for layer, (rows,) in maps.items():
        assert_close(rows.sum((-2, -1)), torch.ones(2, 1, 1), msg=layer)
    # Logits of 10 cos lie between -10 and 10: weights differ by a factor of exp(20) at most.
    assert all(float(rows.max() / rows.min()) <= 4.86e8 for (rows,) in maps.values())
    with torch.no_grad(), ablate_attention(unet, "uniform"), record_attention(unet) as even:
        assert (unet(x, t).sample - plain).abs().max() > 1e-3
    assert all(float(rows.std()) < 1e-7 for (rows,) in even.values())


@pytest.mark.parametrize("kind", ["pag", "seg", "sag"])
def test_a_third_kind_guides(unet: UNet, kind: str) -> None:
    pipeline = Pipeline(unet, DDPMScheduler(**preset("tiny").scheduler))
    pipeline.set_progress_bar_config(disable=True)
    plain = pipeline(num_images=1, steps=2, output_type="pt").images
    guided = pipeline(
        num_images=1, steps=2, output_type="pt", guide=pipeline.guidance(kind, 2.0)
    ).images
    assert torch.isfinite(guided).all()
    assert not torch.equal(plain, guided)


def test_a_third_kind_is_saved_and_loaded(unet: UNet, tmp_path: Path) -> None:
    pipeline = Pipeline(unet, DDPMScheduler(**preset("tiny").scheduler))
    pipeline.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model").unet
    assert again.config["attention_kind"] == KIND
    x, t = torch.randn(1, 3, 16, 16), torch.tensor(5)
    with torch.no_grad():
        assert again(x, t).sample.equal(unet(x, t).sample)
    with pytest.raises(ValueError, match="diffusers has no cosine attention"):
        unet.to_diffusers()


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"attention_kind='cosine' .*'pixel', 'sagan'"):
        check_config({**UNet(**preset("tiny").unet).config, "attention_kind": KIND})
