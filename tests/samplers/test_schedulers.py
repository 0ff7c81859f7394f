import math
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.models.presets import predicting
from ddpm_sa.randomness import standard_normal
from ddpm_sa.samplers.denoise import denoise
from ddpm_sa.samplers.method import Cost, Method, dry_run
from ddpm_sa.samplers.schedulers import SCHEDULERS, known_options, make_scheduler

MEAN, STD = 0.3, 0.25
LOG_ODDS = 1.4
SHARE = 1 / (1 + math.exp(-LOG_ODDS))
KARRAS = [name for name in SCHEDULERS if "use_karras_sigmas" in known_options(name)]
SPACINGS = [
    pytest.param(name, spacing, marks=pytest.mark.slow if slow else ())
    for spacing, slow in (("use_karras_sigmas", False), ("use_exponential_sigmas", True))
    for name in KARRAS
]


def sample(name, steps, options=None, **config):
    """4,096 pixels from the exact best denoiser of normal data, given the scales of each step."""
    base = DDPMScheduler(**{"clip_sample": False} | config)
    kind = prediction(base.config.prediction_type)

    def best(evaluate, view):
        x_t, a, s = view.x_t.double(), view.a.double(), view.s.double()
        x_0 = MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x_t - a * MEAN)
        return kind.target(x_0, (x_t - a * x_0) / s, a, s).float()

    return sampled(best, base, Method(scheduler=name, steps=steps, scheduler_options=options or {}))


def sampled(best, base, method):
    """4,096 pixels that a guide denoises in place of a network."""

    def noise(step):
        return standard_normal((1, 64, 64), 0, "step", [0], step)

    x_T = standard_normal((1, 64, 64), 0, "x_T", [0])
    predicts = base.config.prediction_type
    made = method.make_scheduler(base)
    *_, last = denoise(lambda *_: None, made, x_T, noise, predicts=predicts, guide=best)
    return last.x_next


def assert_normal(x):
    # Sampling errors are 0.004 and 0.003; solvers of first order add 0.03 and more at 40 steps.
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(STD, abs=0.06)


@pytest.mark.parametrize("beta_schedule", ["squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_is_followed_even_without_signal_at_its_end(name, beta_schedule):
    config = {"beta_schedule": beta_schedule, "prediction_type": "v_prediction"}
    assert_normal(sample(name, 25, rescale_betas_zero_snr=True, **config))


def share_of_ones(name, predicts, error=0.0):
    """Of pixels -1 and 1, how many become 1 in 20 steps on a cosine schedule; SHARE is right.

    The network is the best there is, but for a share of its output that says 1/2.
    """
    kind = prediction(predicts)

    def nearly_best(evaluate, view):
        x_t, a, s = view.x_t.double(), view.a.double(), view.s.double()
        x_0 = torch.tanh(LOG_ODDS / 2 + a * x_t / s**2)
        exact = kind.target(x_0, (x_t - a * x_0) / s, a, s)
        return exact.lerp(torch.full_like(exact, 0.5), error).float()

    # What training saves with such a network
    base = DDPMScheduler(beta_schedule="squaredcos_cap_v2", **predicting(predicts))
    x = sampled(nearly_best, base, Method(scheduler=name, steps=20))
    return (x > 0).double().mean().item()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_default_of_every_solver_follows_a_cosine_schedule_to_the_right_share(name):
    """A solver that takes a second evaluation in the first, endless, step in s/a, as diffusers'
    Heun has it, makes 59 % of the pixels 1, where 80 % is right."""
    # Sampling error 0.006, error of 20 steps up to 0.022
    assert share_of_ones(name, "v_prediction") == pytest.approx(SHARE, abs=0.04)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_small_errors_of_eps_where_no_signal_is_left_do_not_grow_into_images(name):
    """s/a is 20,000 at the end: left as it is, an error of 0.003 makes 39 % of the pixels 1 by
    DPM-Solver++ and by Euler, where 80 % is right."""
    assert share_of_ones(name, "epsilon", 0.003) == pytest.approx(SHARE, abs=0.045)


@pytest.mark.parametrize(("name", "spacing"), SPACINGS)
def test_other_spacings_lead_to_the_same_data(name, spacing):
    # SA-Solver draws in the middle of the timesteps, where Karras' spacing has few
    assert_normal(sample(name, 150 if name == "sasolver" else 40, {spacing: True}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"eta": 0.5}),
        ("dpmsolver++", {"solver_order": 3}),
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++"}),
        ("dpmsolver++", {"use_lu_lambdas": True}),
        ("unipc", {"solver_order": 3}),
        ("sasolver", {"predictor_order": 3}),
        ("lms", {"order": 2}),
        ("pndm", {"skip_prk_steps": False}),
    ],
)
def test_options_change_the_way_and_not_the_data(name, options):
    changed = sample(name, 60, options)
    assert_normal(changed)
    assert not torch.equal(changed, sample(name, 60))


def test_ddim_with_eta_1_is_ddpm_with_small_variance():
    """Song et al. 2021, section 4.1"""
    torch.testing.assert_close(
        sample("ddim", 60, {"eta": 1.0}), sample("ddpm", 60), atol=1e-5, rtol=0
    )


def test_ddim_with_eta_draws_noise():
    method = Method(scheduler_options={"eta": 0.3})
    assert dry_run(method, DDPMScheduler()) == Cost(50, True)


def test_ipndm_is_nearer_to_the_end_of_many_steps_than_ddim():
    spaced = {"timestep_spacing": "linspace"}
    exact = sample("ddim", 1000, spaced)
    ddim, ipndm = sample("ddim", 40, spaced), sample("ipndm", 40)
    assert (ipndm - exact).square().mean() < (ddim - exact).square().mean() / 9


def test_zero_terminal_snr_is_inherited_where_diffusers_would_drop_it():
    base = DDPMScheduler(rescale_betas_zero_snr=True)
    for name in SCHEDULERS:
        last = make_scheduler(name, base, 10).alphas_cumprod[-1].item()
        assert last <= 2**-24, name
    tables = NoiseSchedule.from_scheduler(base).alphas_cumprod
    lms = make_scheduler("lms", base, 10).alphas_cumprod
    torch.testing.assert_close(lms[:-1].double(), tables[:-1], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"etta": 1.0}, "no option 'etta'; its options are .*clip_sample.*eta"),
        ("ddim", {"beta_end": 0.1}, "no option 'beta_end'"),
        ("ddim", {"eta": "much"}, "eta='much' must be of type float"),
        ("ddim", {"eta": True}, "eta=True must be of type float"),
        ("dpmsolver++", {"solver_order": 2.5}, "solver_order=2.5 must be of type int"),
        ("dpmsolver++", {"use_karras_sigmas": 1}, "use_karras_sigmas=1 must be of type bool"),
        ("euler", {"timestep_spacing": "even"}, "must be one of linspace, leading, trailing"),
        ("ddpm", {"variance_type": "learned"}, "must be one of fixed_small"),
        ("dpmsolver++", {"algorithm_type": "dpmsolver"}, "must be one of dpmsolver\\+\\+"),
        ("dpmsolver++singlestep", {"solver_order": 4}, "Order > 3"),
        ("unipc", {"solver_type": "bh1"}, "not finite at t="),
        (
            "heun",
            {"use_karras_sigmas": True, "use_exponential_sigmas": True},
            "[Oo]nly one of",
        ),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(name, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        dry_run(Method(scheduler=name, scheduler_options=options), DDPMScheduler())
    assert name in str(refusal.value) or next(iter(options)) in str(refusal.value)


def test_the_table_of_the_docs_is_what_the_schedulers_do():
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (yes|no) \| (N|2N - 1|N \+ 1) \|", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(SCHEDULERS)
    steps = {"N": 10, "2N - 1": 19, "N + 1": 11}
    for name, draws, evaluations in rows:
        cost = dry_run(Method(scheduler=name, steps=10), DDPMScheduler())
        assert cost == Cost(steps[evaluations], draws == "yes"), name
