"""Steps and chains against the numbers that the original programs gave."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_sa.samplers.denoise import denoise
from ddpm_sa.samplers.method import Method
from tests.support.reference import Fixture

TOLERANCE = 5e-5  # of each array's largest value, as the fixtures' own account says


@pytest.fixture(scope="module")
def paper():
    return Fixture("ddpm_tf_diffusion")


@pytest.fixture(scope="module")
def improved():
    return Fixture("improved_diffusion_gaussian")


def fake(a, b):
    """The networks that the fixtures were made with: a x + b sin(t)."""

    def network(x_t, t, class_labels=None):
        return SimpleNamespace(sample=a * x_t + b * t.float().sin().reshape(-1, 1, 1, 1))

    return network


def assert_near(found, expected):
    assert expected.isfinite().all()
    worst = (found.double() - expected.double()).abs().max() / expected.abs().max()
    assert worst <= TOLERANCE


def one_step(x_t, t, noise, network, name, options, **config):
    """Each image from its own timestep to the one before."""
    base = DDPMScheduler(**config)
    method = Method(scheduler=name, steps=1000, scheduler_options=options)
    steps = []
    for image, moment, drawn in zip(x_t.split(1), t.tolist(), noise.split(1), strict=True):
        made = method.make_scheduler(base)
        number = made.timesteps.tolist().index(moment)
        walk = denoise(network, made, image, lambda _, drawn=drawn: drawn, start=number)
        steps.append(next(walk))
    return torch.cat([s.x_next for s in steps]), torch.cat([s.x_0 for s in steps])


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_one_ddpm_step_is_the_papers(paper, variance, clip):
    config = {"variance_type": variance, "clip_sample": clip}
    inputs = (paper.image("in/x_t"), paper["in/t"].long())
    zeros, ones = torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])
    mean, x_0 = one_step(*inputs, zeros, fake(0.3, 0.1), "ddpm", {}, **config)
    name = f"out/p_mean_variance/eps_{variance.replace('_', '')}/{'clip' if clip else 'noclip'}"
    assert_near(mean, paper.image(f"{name}/mean"))
    predicted = x_0.clamp(-1, 1) if clip else x_0
    assert_near(predicted, paper.image(f"{name}/pred_xstart"))
    spread, _ = one_step(*inputs, ones, fake(0.3, 0.1), "ddpm", {}, **config)
    noisy = paper["in/t"] > 0  # at t = 0 nothing is drawn
    # A deviation read off a difference of two images of about 1: 2^-23 of them, squared.
    torch.testing.assert_close(
        (spread - mean)[noisy],
        paper.image(f"{name}/log_variance")[noisy].div(2).exp(),
        atol=2e-5 if clip else 2e-3,
        rtol=1e-4,
    )
    if clip:
        drawn, _ = one_step(*inputs, paper.image("in/noise"), fake(0.3, 0.1), "ddpm", {}, **config)
        assert_near(drawn, paper.image(f"out/p_sample/eps_{variance.replace('_', '')}"))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_whole_chain_is_the_papers(paper, variance):
    betas, noise = paper["out/chain/betas"], paper["in/chain_noise"].permute(0, 1, 4, 2, 3)
    T = len(betas)
    base = DDPMScheduler(T, trained_betas=betas.tolist(), variance_type=variance)
    made = Method(scheduler="ddpm", steps=T).make_scheduler(base)
    walk = denoise(fake(0.3, 0.1), made, noise[T].contiguous(), lambda i: noise[T - 1 - i])
    *_, last = walk
    expected = paper.image(f"out/chain/p_sample_loop/{variance.replace('_', '')}")
    assert_near(last.x_next, expected)


@pytest.mark.parametrize("eta", [0, 0.5, 1])
@pytest.mark.parametrize("clip", [True, False])
def test_one_ddim_step_is_improved_diffusions(improved, eta, clip):
    options = {"eta": float(eta), "use_clipped_model_output": clip}
    found, _ = one_step(
        improved["in/x_t"],
        improved["in/t"],
        improved["in/noise"],
        fake(0.3, 0.1),
        "ddim",
        options,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=clip,
    )
    name = f"out/ddim_sample/epsilon_fixed_small/{'clip' if clip else 'noclip'}/eta{eta}"
    assert_near(found, improved[name])


@pytest.mark.parametrize("eta", [0, 1])
def test_fifty_ddim_steps_are_improved_diffusions(improved, eta):
    noise = improved["in/loop_noise"]
    base = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    options = {"eta": float(eta), "use_clipped_model_output": True}
    made = Method(steps=50, scheduler_options=options).make_scheduler(base)
    assert made.timesteps.tolist()[::-1] == improved["out/spaced/ddim50/timestep_map"].tolist()
    *_, last = denoise(fake(0.3, 0.1), made, noise[50], lambda i: noise[49 - i])
    assert_near(last.x_next, improved[f"out/spaced/ddim50/ddim_sample_loop_eta{eta}"])
