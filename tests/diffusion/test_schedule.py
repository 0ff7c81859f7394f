import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ddpm_sa.diffusion.schedule import NoiseSchedule
from tests.support.reference import Fixture

PAPER = NoiseSchedule.linear(1000, 1e-4, 0.02)


@pytest.fixture(scope="module")
def original() -> Fixture:
    return Fixture("ddpm_tf_diffusion")


def assert_close_to_largest(ours: Tensor, theirs: Tensor) -> None:
    """5e-5 of the array's largest value: the distance between TF 1.15 and TF 2.21 is 2e-5."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 5e-5 * theirs.abs().max()


# The tables


def test_tables_are_those_of_the_papers_code(original: Fixture) -> None:
    ours = {
        "betas": PAPER.betas,
        "alphas_cumprod": PAPER.alphas_cumprod,
        "alphas_cumprod_prev": PAPER.alphas_cumprod_prev,
        "sqrt_alphas_cumprod": PAPER.a,
        "sqrt_one_minus_alphas_cumprod": PAPER.s,
        "log_one_minus_alphas_cumprod": 2 * PAPER.s.log(),
        "sqrt_recip_alphas_cumprod": 1 / PAPER.a,
        "sqrt_recipm1_alphas_cumprod": 1 / PAPER.snr.sqrt(),
        "posterior_variance": PAPER.posterior_variance,
        "posterior_log_variance_clipped": PAPER.posterior_log_variance_clipped,
        "posterior_mean_coef1": PAPER.posterior_mean_coef1,
        "posterior_mean_coef2": PAPER.posterior_mean_coef2,
    }
    for name, table in ours.items():
        assert table.dtype == torch.float64
        # Both are float64; the products of up to 1000 factors are rounded in another order.
        assert_close(table, original[f"out/v2/{name}"], rtol=1e-12, atol=1e-12, msg=name)
        recorded, first = original[f"out/v1/{name}"], 0
        assert recorded.dtype == torch.float32
        if name == "posterior_log_variance_clipped":
            first = 1  # v1 has log(1e-20) at t = 0
        assert_close(table.float()[first:], recorded[first:], rtol=2e-7, atol=1e-12, msg=name)


def test_linear_and_quadratic_betas_are_those_of_the_papers_code(original: Fixture) -> None:
    linear, quad = (original[f"out/get_beta_schedule/{name}"] for name in ("linear", "quad"))
    ends = (float(linear[0]), float(linear[-1]))
    assert_close(NoiseSchedule.linear(len(linear), *ends).betas, linear, rtol=1e-12, atol=0)
    ends = (float(quad[0]), float(quad[-1]))
    assert_close(NoiseSchedule.quadratic(len(quad), *ends).betas, quad, rtol=1e-12, atol=0)


def test_cosine_follows_its_closed_form() -> None:
    """a² = f(t + 1) / f(0), f(u) = cos²((u/T + 0.008) / 1.008 · π/2)  (Nichol & Dhariwal 2021)."""
    schedule, T = NoiseSchedule.cosine(1000), 1000
    f = [math.cos((u / T + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(T + 1)]
    expected = torch.tensor([value / f[0] for value in f[1:]], dtype=torch.float64)
    assert_close(schedule.alphas_cumprod[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert schedule.betas[-1] == 0.999


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "num_train_timesteps": 37, "beta_end": 0.3},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 0.2, 0.3]},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
        {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_from_scheduler_agrees_with_the_schedulers_own_float32_table(settings: dict) -> None:
    scheduler = DDPMScheduler(**settings)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    # diffusers puts 2^-24 in place of a terminal zero; a product of 1000 float32s errs by 1e-6.
    theirs = scheduler.alphas_cumprod.double()
    assert_close(schedule.alphas_cumprod, theirs, rtol=0, atol=1e-6)
    assert schedule.alphas_cumprod.dtype == torch.float64


def test_zero_terminal_snr_leaves_no_signal_at_the_last_step_and_the_first_as_it_was() -> None:
    schedule = PAPER.with_zero_terminal_snr()
    assert schedule.alphas_cumprod[-1] == 0
    assert_close(schedule.alphas_cumprod[0], PAPER.alphas_cumprod[0], rtol=1e-12, atol=0)


@given(
    T=st.integers(2, 2000),
    beta_start=st.floats(1e-6, 1e-2),
    ratio=st.floats(1, 50),
    kind=st.sampled_from(["linear", "quadratic", "cosine"]),
)
def test_snr_falls_strictly(T: int, beta_start: float, ratio: float, kind: str) -> None:
    if kind == "cosine":
        schedule = NoiseSchedule.cosine(T)
    else:
        schedule = getattr(NoiseSchedule, kind)(T, beta_start, beta_start * ratio)
    assert len(schedule) == T
    assert schedule.snr.isfinite().all()
    assert (schedule.snr.diff() < 0).all()
    assert_close(schedule.a**2 + schedule.s**2, torch.ones(T, dtype=torch.float64))


def test_posterior_is_that_of_a_gaussian_by_bayes() -> None:
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add."""
    t = 600
    before, beta = PAPER.alphas_cumprod[t - 1], PAPER.betas[t]
    precision = (1 - beta) / beta + 1 / (1 - before)
    assert_close(PAPER.posterior_variance[t], 1 / precision, rtol=1e-9, atol=0)
    assert_close(PAPER.posterior_mean_coef1[t], before.sqrt() / (1 - before) / precision)
    assert_close(PAPER.posterior_mean_coef2[t], (1 - beta).sqrt() / beta / precision)


def test_variances_are_those_of_the_papers_code(original: Fixture) -> None:
    t = original["in/t"].long()
    for kind in ("fixed_small", "fixed_large"):
        recorded = f"out/p_mean_variance/eps_{kind.replace('_', '')}/clip"
        for table, name in [
            (PAPER.variance(kind), "variance"),
            (PAPER.log_variance(kind), "log_variance"),
        ]:
            theirs = original[f"{recorded}/{name}"]
            assert_close_to_largest(table[t][:, None, None, None].expand_as(theirs), theirs)


def test_log_variance_is_finite_for_a_schedule_of_one_step() -> None:
    schedule = NoiseSchedule.linear(1, 0.1, 0.1)
    for kind in ("fixed_small", "fixed_large"):
        assert_close(schedule.log_variance(kind).exp(), schedule.betas)


# Images


def test_noisy_images_and_posterior_means_are_those_of_the_papers_code(original: Fixture) -> None:
    t = original["in/t"].long()
    x_0, x_t, eps = (original.image(f"in/{name}") for name in ("x_start", "x_t", "noise"))
    assert_close_to_largest(PAPER.add_noise(x_0, eps, t), original.image("out/q_sample"))
    mean = PAPER.posterior_mean(x_0, x_t, t)
    assert_close_to_largest(mean, original.image("out/q_posterior/mean"))
    # x_0 from x_{t-1}, which asks for both coefficients at every t.
    coef1, coef2 = (
        PAPER.at(table, t, x_t)
        for table in (PAPER.posterior_mean_coef1, PAPER.posterior_mean_coef2)
    )
    from_previous = (eps - coef2 * x_t) / coef1
    assert_close_to_largest(from_previous, original.image("out/predict_xstart_from_xprev"))


def assert_noise_has_its_std(x_t: Tensor, x_0: Tensor) -> None:
    """The standard deviation of x_t - a x_0 is s at every timestep, within its sampling error."""
    residual = x_t.double() - PAPER.a.reshape(-1, 1, 1, 1) * x_0.double()
    measured = residual.flatten(1).std(dim=1)
    # The estimate's own standard deviation is s / sqrt(2 n); the largest of 1000 stays below 5.
    tolerance = 5 / math.sqrt(2 * x_0[0].numel())
    assert ((measured / PAPER.s - 1).abs() < tolerance).all()


def test_bfloat16_images_get_all_their_noise_at_every_timestep() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(1000, 1, 64, 64, generator=generator).mul(2).sub(1).bfloat16()
    eps = torch.randn(x_0.shape, generator=generator).bfloat16()
    t = torch.arange(1000)
    x_t = PAPER.add_noise(x_0, eps, t)
    assert x_t.dtype == torch.float32
    assert_noise_has_its_std(x_t, x_0)
    # The check can fail: diffusers computes in the images' dtype, where a and s round to 1 and 0.
    theirs = DDPMScheduler().add_noise(x_0, eps, t)
    with pytest.raises(AssertionError):
        assert_noise_has_its_std(theirs, x_0)
    assert torch.equal(theirs[:10], x_0[:10])


def test_add_noise_keeps_float64() -> None:
    x_0 = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    x_t = PAPER.add_noise(x_0, torch.zeros_like(x_0), torch.tensor([10, 999]))
    expected = torch.tensor([0.997806572508, 4.03582976538e-05], dtype=torch.float64).sqrt()
    assert_close(x_t[:, 0, 0, 0], expected, rtol=1e-11, atol=0)  # the digits that are written here


# Mistakes


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (
            torch.tensor([0.1, 0.0], dtype=torch.float64),
            r"betas\[1\]=0\.0 must lie between 0 and 1",
        ),
        (
            torch.tensor([1.0, 0.1], dtype=torch.float64),
            r"betas\[0\]=1\.0 must lie between 0 and 1",
        ),
        (torch.tensor([0.1, 1.5], dtype=torch.float64), r"betas\[1\]=1\.5"),
        (torch.tensor([0.1]), "float64 vector, not .*float32"),
        (torch.zeros(0, dtype=torch.float64), r"float64 vector, not \(0,\)"),
    ],
)
def test_impossible_betas_are_refused(betas: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(betas)


def test_an_unknown_beta_schedule_is_refused_with_the_known_ones() -> None:
    class Scheduler:
        config = {**DDPMScheduler().config, "beta_schedule": "exotic"}  # noqa: RUF012

    with pytest.raises(ValueError, match=r"beta_schedule='exotic'.*linear.*squaredcos_cap_v2"):
        NoiseSchedule.from_scheduler(Scheduler())


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps \(1, 1, 4, 4\) and x_0 \(2, 1, 4, 4\)"):
        PAPER.add_noise(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(2).long())


def test_some_terminal_signal_is_that_of_diffusers_schedulers_and_nothing_else_changes():
    ordinary = NoiseSchedule.linear()
    assert ordinary.with_some_terminal_snr() is ordinary
    dark = ordinary.with_zero_terminal_snr()
    some = dark.with_some_terminal_snr()
    assert torch.equal(some.betas[:-1], dark.betas[:-1])
    # Its a² are so small near the end that half of the one before the last is the lesser.
    assert (some.alphas_cumprod[-1] * 2).item() == pytest.approx(dark.alphas_cumprod[-2].item())
    short = NoiseSchedule(torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert short.with_some_terminal_snr().alphas_cumprod[-1].item() == pytest.approx(2**-24)
    single = NoiseSchedule(torch.ones(1, dtype=torch.float64))
    assert single.with_some_terminal_snr().alphas_cumprod.tolist() == pytest.approx([2**-24])
