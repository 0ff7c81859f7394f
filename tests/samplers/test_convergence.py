"""Orders of schedulers, by the exact best network of normal data; and a mixture's two halves."""

import pytest
import torch
from diffusers import DDPMScheduler

from benchmarks.convergence import EVEN, STEPS, WAYS, errors, slope
from ddpm_sa.randomness import standard_normal
from ddpm_sa.samplers.denoise import denoise
from ddpm_sa.samplers.method import Method
from ddpm_sa.samplers.schedulers import SCHEDULERS


@pytest.mark.parametrize(
    ("label", "order"),
    [
        ("ddim", 1),
        ("euler", 1),
        ("dpmsolver++, order 1, even", 1),
        ("dpmsolver++, even", 2),
        ("dpmsolver++singlestep, even", 2),
        ("heun", 2),
    ],
)
def test_errors_fall_with_the_order_of_the_scheduler(label, order):
    found = errors(*WAYS[label], STEPS)
    assert slope(STEPS, found) == pytest.approx(order, abs=0.15)


def test_even_steps_and_higher_orders_are_nearer():
    (ddim,), (even,) = errors("ddim", {}, [40]), errors("dpmsolver++", EVEN, [40])
    (plain,) = errors("dpmsolver++", {}, [40])
    assert even < plain / 5 < ddim / 5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_mixtures_halves_are_met_in_their_shares_and_widths(name):
    """A quarter of the pixels around -0.6, the others around 0.4, each with deviation 0.1."""
    means, shares, c = torch.tensor([-0.6, 0.4]).double(), torch.tensor([0.25, 0.75]).double(), 0.1

    def best(evaluate, view):
        x_t, a, s = view.x_t.double(), view.a.double(), view.s.double()
        variance = a**2 * c**2 + s**2
        off = x_t[..., None] - a * means
        weights = (shares.log() - off**2 / (2 * variance)).softmax(-1)
        x_0 = (weights * (means + a * c**2 / variance * off)).sum(-1)
        return ((x_t - a * x_0) / s).float()

    base = DDPMScheduler(clip_sample=False)
    # first-order ones need more steps to part the halves as sharply
    steps = {"ddpm": 500, "lms": 50}.get(name, 150)
    made = Method(scheduler=name, steps=steps).make_scheduler(base)
    x_T = standard_normal((1, 64, 64), 0, "x_T", [0])

    def noise(step):
        return standard_normal((1, 64, 64), 0, "step", [0], step)

    *_, last = denoise(lambda *_: None, made, x_T, noise, guide=best)
    x = last.x_next
    left = x < -0.1
    # 4,096 pixels: the share's sampling error is 0.007, the means' 0.003, the deviations' 0.002
    assert left.float().mean().item() == pytest.approx(0.25, abs=0.025)
    for half, mean in ((x[left], -0.6), (x[~left], 0.4)):
        assert half.mean().item() == pytest.approx(mean, abs=0.02)
        assert half.std().item() == pytest.approx(c, abs=0.025)
