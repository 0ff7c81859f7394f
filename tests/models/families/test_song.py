"""DDPM++ with EDM's preconditioning as a network of this package."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_sa.checkpoints import edm_scheduler
from ddpm_sa.models.attention_slots import attention_layers
from ddpm_sa.models.families.preconditioning import EDM, VP, geometric_sigma
from ddpm_sa.models.families.song import SongUNet
from ddpm_sa.pipeline import Pipeline
from ddpm_sa.samplers.method import Method
from tests.support.reference import randomise_

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "conv_in_channels": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (False, True),
}


def network(**more: Any) -> SongUNet:
    unet = SongUNet(**SMALL | more).eval()
    randomise_(unet)
    return unet


def images(count: int = 2, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# Closed forms


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0])
def test_the_velocity_is_that_of_edms_denoiser(sigma_data: float) -> None:
    """v = a (x - D) / sigma - s D with D of Karras et al. 2022, table 1, over all noise levels."""
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    x, raw = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = (sigma**2 + sigma_data**2).sqrt()
    denoised = (sigma_data / norm) ** 2 * x + sigma * sigma_data / norm * raw
    a = (1 + sigma**2) ** -0.5
    expected = a * (x - denoised) / sigma - a * sigma * denoised
    found = EDM(sigma_data).prediction(a * x, raw, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(EDM(sigma_data).c_in(sigma) * a * x, x / norm)


def test_the_timesteps_of_vp_are_those_of_its_process() -> None:
    """c_noise / (M - 1) solves sigma² + 1 = exp(beta_d t² / 2 + beta_min t)."""
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    t = VP(0.5).c_noise(sigma) / 999
    torch.testing.assert_close((19.9 * t**2 / 2 + 0.1 * t).exp() - 1, sigma**2)


def test_noise_levels_are_evenly_spaced_in_their_logarithm() -> None:
    t = torch.tensor([0, 333, 666, 999])
    found = geometric_sigma(t, 0.01, 10.0, 1000)
    torch.testing.assert_close(found, torch.tensor([0.01, 0.1, 1.0, 10.0]))


# The network


def test_layers_are_named_with_their_reductions() -> None:
    found = attention_layers(network())
    assert {name: layer.reduction for name, layer in found.items()} == {
        "down_blocks.1.attentions.0": 2,
        "mid_block.attentions.0": 2,
        "up_blocks.0.attentions.0": 2,
    }


def test_gradients_are_finite_and_somewhere_not_zero_with_checkpointing_too() -> None:
    gradients = []
    for checkpointing in (False, True):
        unet = network(num_class_embeds=3)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        labels = torch.tensor([0, 1, 2])
        out = unet.train()(images(3), torch.tensor([3, 500, 990]), labels).sample
        out.square().sum().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
        for name, gradient in gradients[-1].items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert gradient.any(), name
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("preconditioning", ["edm", "vp"])
def test_it_is_one_graph_for_the_compiler(preconditioning: str) -> None:
    unet, x, t = network(preconditioning=preconditioning), images(), torch.tensor([3, 741])
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t).sample, unet(x, t).sample)


def test_half_precision_stays_near_float32() -> None:
    x, t = images(), torch.tensor([3, 741])
    with torch.no_grad():
        expected = network()(x, t).sample
        found = network().bfloat16()(x.bfloat16(), t).sample
    assert found.dtype == torch.bfloat16
    # bfloat16 has 8 bits; the noise level itself is computed in float32.
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_levels": (True,)}, "attention_levels names 1 levels and block_out_channels"),
        ({"attention_levels": (True, "no")}, r"attention_levels\[1\]='no' is unknown"),
        ({"preconditioning": "ve"}, "preconditioning='ve' is unknown; known are edm, vp"),
        ({"sigma_min": 0}, "sigma_min=0 must be a finite number between 0 and"),
        ({"sigma_min": 90.0}, "sigma_min=90.0 must be below sigma_max=80.0"),
        ({"num_train_timesteps": 1}, "num_train_timesteps=1 must be at least 2"),
        ({"num_train_timesteps": None}, "num_train_timesteps=None must be at least 2"),
        ({"timestep_input_dim": 2}, "timestep_input_dim=2 must be at least 4"),
        ({"block_out_channels": (8, 18)}, "groups of GroupNorm do not divide"),
        ({"layers_per_block": 0}, "layers_per_block=0 must be a whole number from 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SongUNet(**SMALL | change)


# Sampling


def denoiser(unet: SongUNet, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x, sigma) as EDM writes it, around the network inside of the preconditioning."""
    sigma = sigma.float().expand(len(x))
    of_images = sigma[:, None, None, None]
    if unet.config["preconditioning"] == "vp":
        a = (1 + of_images**2) ** -0.5
        time = ((0.1**2 + 2 * 19.9 * (1 + sigma.double() ** 2).log()).sqrt() - 0.1) / 19.9
        return x - of_images * unet.raw(a * x, (999 * time).float())
    norm = (of_images**2 + 0.25).sqrt()
    raw = unet.raw(x / norm, sigma.log() / 4)
    return 0.25 / norm**2 * x + 0.5 * of_images / norm * raw


def edm_sampler(unet: SongUNet, noise: Tensor, steps: int) -> Tensor:
    """Karras et al. 2022, algorithm 1: Heun's method, with rho = 7."""
    sigmas = torch.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), steps, dtype=torch.float64) ** 7
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    x = noise.double() * sigmas[0]
    for now, following in itertools.pairwise(sigmas):
        slope = (x - denoiser(unet, x.float(), now)) / now
        x_next = x + (following - now) * slope
        if following > 0:
            other = (x_next - denoiser(unet, x_next.float(), following)) / following
            x_next = x + (following - now) * (slope + other) / 2
        x = x_next
    return x.float()


@pytest.mark.parametrize("preconditioning", ["edm", "vp"])
def test_heun_on_karras_sigmas_gives_the_images_of_edms_own_sampler(preconditioning: str) -> None:
    unet = network(preconditioning=preconditioning)
    # A denoiser that differs little from a linear one, so that errors do not grow with the steps.
    unet.conv_out.weight.data *= 0.1
    pipeline = Pipeline(unet, edm_scheduler(unet))
    pipeline.set_progress_bar_config(disable=True)
    noise = pipeline.noise("sampling: x_T", seed=0, indices=[0, 1])
    with torch.no_grad():
        expected = edm_sampler(unet, noise, 18)
    method = Method(steps=18, scheduler="heun", scheduler_options={"use_karras_sigmas": True})
    steps = list(pipeline.denoise([0, 1], method, 0))
    found = steps[-1].x_next
    assert len(steps) == 35  # 18 steps, all but the last with two evaluations
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("preconditioning", ["edm", "vp"])
@pytest.mark.parametrize(
    "scheduler", ["ddpm", "ddim", "dpmsolver++", "unipc", "euler", "heun", "kdpm2", "lms", "pndm"]
)
def test_every_kind_of_scheduler_samples_it(preconditioning: str, scheduler: str) -> None:
    unet = network(preconditioning=preconditioning)
    pipeline = Pipeline(unet, edm_scheduler(unet))
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(num_images=2, steps=6, scheduler=scheduler, output_type="pt").images
    assert found.shape == (2, 3, 8, 8)
    assert found.isfinite().all()
