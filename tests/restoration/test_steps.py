import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.errors import UserError
from ddpm_sa.restoration.steps import linear_steps
from ddpm_sa.samplers.method import Method

KINDS = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [False, True])
def test_steps_of_ddpm_are_the_posterior_of_the_paper(kind, clip):
    base = DDPMScheduler(num_train_timesteps=100, prediction_type=kind, clip_sample=clip)
    schedule = NoiseSchedule.from_scheduler(base)
    found = linear_steps(Method(steps=100, scheduler="ddpm"), base)
    assert list(found) == list(range(99, -1, -1))
    for t, step in found.items():
        t = int(t)
        # diffusers' tables are float32: four digits of 1 - a² are left at the first timesteps
        assert step.weight_0 == pytest.approx(schedule.posterior_mean_coef1[t].item(), rel=1e-3)
        assert step.weight_t == pytest.approx(
            schedule.posterior_mean_coef2[t].item(), rel=1e-3, abs=1e-6
        )
        deviation = schedule.posterior_variance[t].sqrt().item() if t else 0
        assert step.deviation == pytest.approx(deviation, rel=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_of_ddim_are_equation_12_of_its_paper(eta):
    base = DDPMScheduler(prediction_type="v_prediction")
    options = {"eta": eta, "timestep_spacing": "trailing"}
    method = Method(steps=20, scheduler="ddim", scheduler_options=options)
    schedule = NoiseSchedule.from_scheduler(base)
    steps = linear_steps(method, base)
    for t, step in steps.items():
        below = int(t) - 50
        a2, a2_next = schedule.alphas_cumprod[int(t)], schedule.alphas_cumprod[max(below, 0)]
        if below < 0:
            a2_next = torch.ones(())
        sigma = eta * ((1 - a2_next) / (1 - a2)).sqrt() * (1 - a2 / a2_next).sqrt()
        weight_eps = (1 - a2_next - sigma**2).clamp(min=0).sqrt()
        assert step.deviation == pytest.approx(sigma.item(), abs=2e-5)
        assert step.weight_t == pytest.approx((weight_eps / (1 - a2).sqrt()).item(), abs=2e-5)
        weight_0 = a2_next.sqrt() - weight_eps * (a2 / (1 - a2)).sqrt()
        assert step.weight_0 == pytest.approx(weight_0.item(), abs=2e-5)


def test_a_learned_variance_is_refused_and_another_one_named():
    base = DDPMScheduler(variance_type="learned_range")
    with pytest.raises(UserError, match="variance_type fixed_small"):
        linear_steps(Method(steps=5, scheduler="ddpm"), base)
    fixed = Method(steps=5, scheduler="ddpm", scheduler_options={"variance_type": "fixed_small"})
    assert len(linear_steps(fixed, base)) == 5
