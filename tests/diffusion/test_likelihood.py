"""Bits a dimension: the original programs' numbers, and Gaussian data, whose are known exactly."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ddpm_sa.diffusion.likelihood import Bound, variational_bound
from ddpm_sa.diffusion.prediction import PREDICTIONS, Prediction, prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from tests.support.reference import Fixture

LINEAR = NoiseSchedule.linear()
SPREAD = 0.4  # standard deviation of the Gaussian data, within [-1, 1] but for 1.2 % of it


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 5e-5) -> None:
    assert ours.shape == theirs.shape
    assert theirs.isfinite().all()
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def fake(learned: bool):
    """The function of x_t and t that the fixtures were made with."""

    def network(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        time = t.float().reshape(-1, 1, 1, 1)
        F = 0.3 * x_t + 0.1 * time.sin()
        values = (0.7 * x_t).tanh() + 0.2 * time.cos()
        return SimpleNamespace(sample=torch.cat([F, values], 1) if learned else F)

    return network


def bound_of(original: Fixture, schedule: NoiseSchedule, kind: str, clip: bool) -> Bound:
    x_0 = original.image("in/bpd_x_start")
    pool, shape = original["in/noise_pool"], original["in/bpd_x_start"].shape

    def noise_at(t: int) -> Tensor:
        noise = pool[t : t + x_0.numel()].reshape(shape)
        return noise.permute(0, 3, 1, 2) if original.channels_last else noise

    network = fake(kind == "learned_range")
    return variational_bound(
        network, schedule, prediction("epsilon"), kind, x_0, noise_at, clip=clip
    )


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [True, False])
def test_bound_is_that_of_the_papers_code(kind: str, clip: bool) -> None:
    original = Fixture("ddpm_tf_diffusion")
    found = bound_of(original, LINEAR, kind, clip)
    name = f"out/calc_bpd_loop/{kind.replace('_', '')}/{'clip' if clip else 'noclip'}"
    assert_near(found.terms, original[f"{name}/terms_bpd"])
    assert_near(found.mse, original[f"{name}/mse"])
    assert_near(found.total, original[f"{name}/total_bpd"])
    assert_near(found.prior, original[f"{name}/prior_bpd"], 2e-4)


@pytest.mark.parametrize("kind", ["learned_range", "fixed_large"])
def test_bound_is_that_of_nichol_and_dhariwals_code(kind: str) -> None:
    original = Fixture("improved_diffusion_gaussian")
    found = bound_of(original, NoiseSchedule.cosine(), kind, True)
    name = f"out/calc_bpd_loop/{kind}"
    assert_near(found.terms, original[f"{name}/vb"].flip(1))
    assert_near(found.mse, original[f"{name}/xstart_mse"].flip(1))
    assert_near(found.total, original[f"{name}/total_bpd"])
    assert_near(found.prior, original[f"{name}/prior_bpd"], 2e-4)


def best_network(schedule: NoiseSchedule, predicts: Prediction, learned: bool):
    """What knows that x_0 ~ N(0, SPREAD²): E[x_0 | x_t], and the variance of x_{t-1} given x_t."""
    a2, s2 = schedule.alphas_cumprod, 1 - schedule.alphas_cumprod
    left = SPREAD**2 * s2 / (a2 * SPREAD**2 + s2)  # the variance of x_0 given x_t
    log_best = (schedule.posterior_variance + schedule.posterior_mean_coef1**2 * left).log()
    low = schedule.posterior_log_variance_clipped
    values = 2 * (log_best - low) / (schedule.betas.log() - low) - 1

    def network(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        a, s = schedule.at(schedule.a, t, x_t), schedule.at(schedule.s, t, x_t)
        x_0 = a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * x_t
        F = predicts.target(x_0, (x_t - a * x_0) / s, a, s)
        if not learned:
            return SimpleNamespace(sample=F)
        rest = schedule.at(values, t, x_t).expand_as(x_t)
        return SimpleNamespace(sample=torch.cat([F, rest], 1))

    return network, left


def gaussian_images(count: int) -> Tensor:
    """Pixels of N(0, SPREAD²), on the centres of 256 bins: their own bits are those of the bins."""
    noise = torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    return ((noise * SPREAD * 127.5 + 127.5).round().clamp(0, 255)) / 127.5 - 1


def noise_at(x_0: Tensor):
    def noise(t: int) -> Tensor:
        generator = torch.Generator().manual_seed(t + 1)
        return torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)

    return noise


@pytest.mark.parametrize("name", PREDICTIONS)
def test_bound_of_gaussian_data_is_their_exact_likelihood(name: str) -> None:
    """With the best mean and variance the reverse process is exact, and so is the bound."""
    schedule, predicts = NoiseSchedule.linear(250, 4e-4, 0.08), prediction(name)
    x_0 = gaussian_images(8)
    network, _ = best_network(schedule, predicts, learned=True)
    found = variational_bound(
        network, schedule, predicts, "learned_range", x_0, noise_at(x_0), clip=False
    )
    normal = torch.distributions.Normal(0.0, SPREAD)
    edges = normal.cdf(torch.stack([x_0 - 1 / 255, x_0 + 1 / 255]))
    upto, below = edges[1].where(x_0 < 1, 1.0), edges[0].where(x_0 > -1, 0.0)
    exact = -float((upto - below).log2().mean())
    # Not tighter: noise drawn once for each of 8,192 pixels, and within a bin the pixels are one.
    assert float(found.total.mean()) == pytest.approx(exact, abs=0.02)
    assert float(found.total.mean()) > exact - 0.01


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_terms_of_gaussian_data_are_the_closed_form(name: str, kind: str) -> None:
    schedule, predicts = NoiseSchedule.linear(100, 1e-3, 0.2), prediction(name)
    x_0 = gaussian_images(64)
    network, left = best_network(schedule, predicts, learned=False)
    found = variational_bound(network, schedule, predicts, kind, x_0, noise_at(x_0), clip=False)
    posterior = schedule.posterior_log_variance_clipped
    variance = schedule.log_variance(kind)  # type: ignore[arg-type]
    ratio = posterior - variance
    error = schedule.posterior_mean_coef1**2 * left
    nats = 0.5 * (ratio.exp() - ratio - 1 + error / variance.exp())
    expected = nats / math.log(2)
    # The mean over 65,536 pixels of a squared normal: its standard error is 0.6 %.
    torch.testing.assert_close(found.mse.mean(0), left, rtol=0.03, atol=1e-5)
    torch.testing.assert_close(found.terms.mean(0)[1:], expected[1:], rtol=0.03, atol=1e-6)
    a2, power = schedule.alphas_cumprod[-1], x_0.square().mean()
    prior = 0.5 * (a2 * power - a2 - torch.log1p(-a2)) / math.log(2)
    torch.testing.assert_close(found.prior.mean(), prior, rtol=1e-6, atol=0)


def test_rate_and_distortion_are_those_of_the_papers_table() -> None:
    """x_T costs the prior; each x_{t-1} costs L_t more, and the decoder's L_0 is no rate."""
    terms = torch.tensor([[1.0, 2, 4], [3, 4, 6]])
    found = Bound(terms, torch.tensor([[0.01, 0.25, 1], [0.03, 0.25, 1]]), torch.tensor([0.5, 1.5]))
    assert found.total.tolist() == [7.5, 14.5]
    assert found.rate.tolist() == [1 + 5 + 3, 1 + 5, 1]
    torch.testing.assert_close(found.distortion / 127.5, torch.tensor([0.02**0.5, 0.5, 1]))


def test_what_has_no_bound_is_refused() -> None:
    x_0 = torch.zeros(1, 1, 2, 2)
    arguments = (fake(False), LINEAR, prediction("epsilon"))
    with pytest.raises(ValueError, match="'learned' has no known bound; known are fixed_small"):
        variational_bound(*arguments, "learned", x_0, lambda t: x_0)
    schedule = LINEAR.with_zero_terminal_snr()
    with pytest.raises(ValueError, match="not finite at t=999: epsilon says nothing"):
        variational_bound(
            fake(False),
            schedule,
            prediction("epsilon"),
            "fixed_small",
            x_0,
            lambda t: x_0,
            clip=False,
        )
