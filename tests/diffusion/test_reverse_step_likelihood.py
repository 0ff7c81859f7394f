import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from ddpm_sa.diffusion.likelihood import learned_log_variance, variational_term
from ddpm_sa.diffusion.loss import denoising_loss
from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.samplers.denoise import denoise
from ddpm_sa.samplers.schedulers import make_scheduler
from tests.support.reference import Fixture

COSINE = NoiseSchedule.cosine(1000)
CASES = [("epsilon_learned_range", "epsilon"), ("start_x_learned_range", "sample")]
NETWORKS = {"epsilon": (0.3, 0.1), "sample": (0.999, 0.002)}


@pytest.fixture(scope="module")
def original() -> Fixture:
    return Fixture("improved_diffusion_gaussian")


def assert_close_to_largest(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 5e-5 * theirs.abs().max()


def stand_in(a: float, b: float):
    """The function of x_t and t that the original's numbers were made with."""

    def network(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        time = t.float().reshape(-1, 1, 1, 1)
        F = a * x_t + b * time.sin()
        return SimpleNamespace(sample=torch.cat([F, (0.7 * x_t).tanh() + 0.2 * time.cos()], 1))

    return network


@pytest.mark.parametrize(("case", "meaning"), CASES)
def test_hybrid_loss_is_that_of_nichol_and_dhariwals_code(
    original: Fixture, case: str, meaning: str
) -> None:
    arguments = (COSINE, prediction(meaning), *(original[f"in/{n}"] for n in ("x_start", "noise")))
    t = original["in/t"]
    assert 0 in t
    losses = f"out/training_losses/{case}/rescaled_mse"
    network = stand_in(*NETWORKS[meaning])
    plain = denoising_loss(network, *arguments, t)
    hybrid = denoising_loss(network, *arguments, t, learned_variance=True)
    assert_close_to_largest(plain, original[f"{losses}/mse"])
    assert_close_to_largest(hybrid - plain, original[f"{losses}/vb"])
    assert_close_to_largest(hybrid, original[f"{losses}/loss"])


@pytest.mark.parametrize(("case", "meaning"), CASES)
@pytest.mark.parametrize("clip", [False, True])
def test_terms_of_the_bound_are_those_of_nichol_and_dhariwals_code(
    original: Fixture, case: str, meaning: str, clip: bool
) -> None:
    x_0, x_t, t = (original[f"in/{name}"] for name in ("x_start", "x_t", "t"))
    F, values = original[f"out/model_output/{case}"].chunk(2, 1)
    a, s = (COSINE.at(table, t, x_0) for table in (COSINE.a, COSINE.s))
    guess = prediction(meaning).x_0(F, x_t, a, s)
    guess = guess.clamp(-1, 1) if clip else guess
    log_variance = learned_log_variance(COSINE, values, t)
    name = "clip" if clip else "noclip"
    path = f"out/p_mean_variance/{case}/{name}"
    assert_close_to_largest(log_variance, original[f"{path}/log_variance"])
    assert_close_to_largest(guess, original[f"{path}/pred_xstart"])
    terms = variational_term(COSINE, x_0, guess, log_variance, t)
    assert_close_to_largest(terms, original[f"out/vb_terms_bpd/{case}/{name}"])


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_terms_with_a_fixed_variance_are_those_of_nichol_and_dhariwals_code(
    original: Fixture, kind: str
) -> None:
    case = f"epsilon_{kind}"
    x_0, x_t, t = (original[f"in/{name}"] for name in ("x_start", "x_t", "t"))
    a, s = (COSINE.at(table, t, x_0) for table in (COSINE.a, COSINE.s))
    guess = prediction("epsilon").x_0(original[f"out/model_output/{case}"], x_t, a, s)
    log_variance = COSINE.at(COSINE.log_variance(kind), t, x_0)  # pyright: ignore
    terms = variational_term(COSINE, x_0, guess, log_variance, t)
    assert_close_to_largest(terms, original[f"out/vb_terms_bpd/{case}/noclip"])


def test_variance_lies_between_diffusers_bounds() -> None:
    """diffusers' DDPMScheduler, from betas of float32."""
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    for t in (1, 10, 500, 998):
        values = torch.linspace(-1, 1, 5).reshape(1, 5, 1, 1)
        ours = learned_log_variance(COSINE, values, torch.tensor([t]))
        expected = theirs._get_variance(t, predicted_variance=values)
        assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [10, 100])
def test_ddpm_steps_have_the_learned_variance(steps: int) -> None:
    """Each step is the clipped posterior's mean plus the learned deviation times its noise."""
    base = DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    schedule, network = NoiseSchedule.from_scheduler(base), stand_in(*NETWORKS["epsilon"])
    noise = torch.randn(steps + 1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = make_scheduler("ddpm", base, steps)
    for step in denoise(network, scheduler, noise[-1], noise.__getitem__):
        t = step.t.expand(2)
        values = network(step.x_t, t).sample[:, 1:]
        mean = schedule.posterior_mean(step.x_0.clamp(-1, 1), step.x_t, t)
        deviation = (0.5 * learned_log_variance(schedule, values, t)).exp()
        expected = mean + deviation * noise[step.number] if step.t else mean
        # diffusers' tables are float32, products of up to 100 factors.
        assert_close(step.x_next, expected, rtol=1e-3, atol=1e-4)


def test_bound_is_none_where_the_model_is_the_posterior() -> None:
    """Terms are 0 for t > 0 if x_0 is known and the variance is the posterior's."""
    x_0 = torch.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)
    t = torch.tensor([1, 700])
    log_variance = COSINE.at(COSINE.posterior_log_variance_clipped, t, x_0)
    terms = variational_term(COSINE, x_0, x_0, log_variance, t)
    assert_close(terms, torch.zeros(2), rtol=0, atol=1e-7)


def test_only_the_variance_learns_from_the_bound() -> None:
    x_0, eps = torch.randn(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    t = torch.tensor([0, 1, 500, 999])
    output = torch.full((4, 2, 4, 4), 0.1, requires_grad=True)

    def network(x_t: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=output)

    arguments = (network, COSINE, prediction("v_prediction"), x_0, eps, t)
    (plain,) = torch.autograd.grad(denoising_loss(*arguments).sum(), output)
    hybrid = denoising_loss(*arguments, learned_variance=True).sum()
    (both,) = torch.autograd.grad(hybrid, output)
    assert both[:, :1].equal(plain[:, :1])
    assert both[:, 1:].isfinite().all()
    assert both[:, 1:].abs().flatten(1).amax(1).gt(0).all()


def test_best_variance_of_a_gaussian_denoiser_is_its_error() -> None:
    """E of a term over N(0, e) errors of the mean is least where v is the posterior's plus e."""
    t = torch.full((1,), 300)
    error = 0.5
    x_0 = torch.zeros(1, 1, 512, 512)
    guess = error * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    coef1 = COSINE.posterior_mean_coef1[300].item()
    best = math.log(COSINE.posterior_variance[300].item() + (coef1 * error) ** 2)
    values = torch.tensor([best - 0.05, best, best + 0.05])
    terms = [variational_term(COSINE, x_0, guess, torch.full_like(x_0, v), t) for v in values]
    assert terms[1] < terms[0]
    assert terms[1] < terms[2]
