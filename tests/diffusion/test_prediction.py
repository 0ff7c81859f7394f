import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ddpm_sa.diffusion.prediction import PREDICTIONS, prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from tests.support.reference import Fixture

SCHEDULE = NoiseSchedule.linear(1000, 1e-4, 0.02)


def images(seed: int, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 4, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", PREDICTIONS)
@given(angle=st.floats(0.01, math.pi / 2 - 0.01), seed=st.integers(0, 1000))
def test_x_0_and_eps_come_back_from_their_target(name: str, angle: float, seed: int) -> None:
    """a = cos, s = sin of any angle: every schedule."""
    a, s = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
    x_0, eps = images(seed), images(seed + 1)
    x_t, row = a * x_0 + s * eps, prediction(name)
    target = row.target(x_0, eps, a, s)
    # The worst case divides by s or a >= 0.01: two digits of float64's sixteen, and some room.
    assert_close(row.x_0(target, x_t, a, s), x_0, rtol=1e-11, atol=1e-11)
    assert_close(row.eps(target, x_t, a, s), eps, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_wrong_outputs_imply_a_consistent_pair(name: str) -> None:
    """a x_0 + s eps = x_t and p x_0 + q eps = F for any F, so all types agree on what F means."""
    a, s = torch.tensor(0.8).double(), torch.tensor(0.6).double()
    x_t, F, row = images(0), images(1), prediction(name)
    x_0, eps = row.x_0(F, x_t, a, s), row.eps(F, x_t, a, s)
    assert_close(a * x_0 + s * eps, x_t)
    assert_close(row.target(x_0, eps, a, s), F)
    for other in PREDICTIONS.values():
        assert_close(other.x_0(other.target(x_0, eps, a, s), x_t, a, s), x_0)


@pytest.mark.parametrize("t", [0, 10, 500, 999])
def test_targets_and_denoisers_are_those_of_diffusers(t: int) -> None:
    x_0, eps, F = images(0).float(), images(1).float(), images(2).float()
    at = torch.full((4,), t)
    a, s = (SCHEDULE.at(table, at, x_0) for table in (SCHEDULE.a, SCHEDULE.s))
    x_t = SCHEDULE.add_noise(x_0, eps, at)
    theirs = {
        "epsilon": eps,
        "sample": x_0,
        "v_prediction": DDPMScheduler().get_velocity(x_0, eps, at),
    }
    assert theirs.keys() == PREDICTIONS.keys()
    for name, target in theirs.items():
        row = prediction(name)
        # diffusers' table is float32: at t = 0, where 1 - a² = 1e-4, s has four digits less.
        assert_close(row.target(x_0, eps, a, s), target, rtol=0, atol=2e-5)
        step = DDPMScheduler(prediction_type=name, clip_sample=False).step(F, t, x_t)
        ours = row.x_0(F, x_t, a, s)
        error = (ours - step.pred_original_sample).abs().max()
        assert error < 2e-4 * step.pred_original_sample.abs().max()


def fake_network(x_t: Tensor, t: Tensor, weights: tuple[float, float]) -> Tensor:
    """The function of x_t and t that the recorded runs took for a network."""
    return weights[0] * x_t + weights[1] * torch.sin(t.float()).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize(
    ("recorded", "name", "weights"),
    [
        ("eps_fixedsmall", "epsilon", (0.3, 0.1)),
        ("eps_fixedlarge", "epsilon", (0.3, 0.1)),
        ("eps_learned", "epsilon", (0.3, 0.1)),
        ("xstart_fixedlarge", "sample", (0.999, 0.002)),
    ],
)
def test_reverse_mean_is_that_of_the_papers_code(
    recorded: str, name: str, weights: tuple[float, float], clip: str
) -> None:
    original = Fixture("ddpm_tf_diffusion")
    t, x_t = original["in/t"].long(), original.image("in/x_t")
    a, s = (SCHEDULE.at(table, t, x_t) for table in (SCHEDULE.a, SCHEDULE.s))
    x_0 = prediction(name).x_0(fake_network(x_t, t, weights), x_t, a, s)
    if clip == "clip":
        x_0 = x_0.clamp(-1, 1)
    results = {"pred_xstart": x_0, "mean": SCHEDULE.posterior_mean(x_0, x_t, t)}
    for what, ours in results.items():
        theirs = original.image(f"out/p_mean_variance/{recorded}/{clip}/{what}")
        # 5e-5 of the largest value: TF 1.15 and 2.21 are 2e-5 apart.
        assert (ours - theirs).abs().max() <= 5e-5 * theirs.abs().max()


def test_start_from_noise_is_that_of_the_papers_code() -> None:
    original = Fixture("ddpm_tf_diffusion")
    t, x_t, eps = (original["in/t"].long(), *(original.image(f"in/{n}") for n in ("x_t", "noise")))
    a, s = (SCHEDULE.at(table, t, x_t) for table in (SCHEDULE.a, SCHEDULE.s))
    ours = prediction("epsilon").x_0(eps, x_t, a, s)
    for name in ("predict_start_from_noise", "predict_xstart_from_eps"):
        theirs = original.image(f"out/{name}")
        assert (ours - theirs).abs().max() <= 5e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", PREDICTIONS)
def test_x_0_error_is_the_square_of_what_an_error_of_the_output_does_to_x_0(name: str) -> None:
    row, a, s = prediction(name), SCHEDULE.a, SCHEDULE.s
    x_t = torch.ones_like(a)
    moved = row.x_0(x_t + 0.5, x_t, a, s) - row.x_0(x_t, x_t, a, s)
    # A difference of numbers up to 1e2 near 1e-2: four of float64's digits go.
    assert_close(row.x_0_error(SCHEDULE), (moved / 0.5) ** 2, rtol=1e-9, atol=0)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'flow'.*epsilon, sample, v_prediction"):
        prediction("flow")
