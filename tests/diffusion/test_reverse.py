"""One reverse step is the one that diffusers' schedulers take."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.testing import assert_close

from ddpm_sa.diffusion.prediction import PREDICTIONS
from ddpm_sa.diffusion.reverse import ddim_step, ddpm_step
from ddpm_sa.diffusion.schedule import NoiseSchedule

LINEAR = NoiseSchedule.linear(1000, 1e-4, 0.02)
CONFIG = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    F, x_t, z = torch.randn(3, 2, 3, 4, 4, generator=random).unbind()
    return F, x_t, z


def noise_of(scheduler: DDPMScheduler, F: Tensor, t: int, x_t: Tensor, z: Tensor) -> Tensor:
    """diffusers' step, with z in the place of what it draws."""
    without = DDPMScheduler.from_config(scheduler.config, variance_type="fixed_small")
    mean = without.step(F, t, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
    if t == 0:
        return mean
    drawn = torch.randn(F.shape, generator=torch.Generator().manual_seed(0))
    mean = mean - without._get_variance(t).sqrt() * drawn
    return mean + scheduler._get_variance(t).sqrt() * z


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_ddpm_step_is_diffusers(images, name: str, variance: str, t: int) -> None:
    F, x_t, z = images
    scheduler = DDPMScheduler(**CONFIG, prediction_type=name, variance_type=variance)
    ours = ddpm_step(LINEAR, PREDICTIONS[name], F, x_t, torch.tensor([t, t]), z, variance)
    # diffusers' tables are float32, ours float64: at most 7.4e-5 apart here.
    assert_close(ours, noise_of(scheduler, F, t, x_t, z), atol=1e-4, rtol=1e-5)
    assert ours.isfinite().all()


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("t", [19, 499, 979])
def test_ddim_step_is_diffusers(images, name: str, t: int) -> None:
    F, x_t, _ = images
    scheduler = DDIMScheduler(**CONFIG, prediction_type=name, clip_sample=False)
    scheduler.set_timesteps(50)
    expected = scheduler.step(F, t, x_t).prev_sample
    ours = ddim_step(
        LINEAR, PREDICTIONS[name], F, x_t, torch.tensor([t, t]), torch.tensor([t - 20, t - 20])
    )
    assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_ddim_step_to_the_image_is_x_0(images) -> None:
    F, x_t, _ = images
    t = torch.tensor([3, 800])
    prediction = PREDICTIONS["sample"]
    assert_close(ddim_step(LINEAR, prediction, F, x_t, t, torch.full((2,), -1)), F)


def test_ddpm_step_adds_nothing_at_the_last_step(images) -> None:
    F, x_t, z = images
    t, prediction = torch.zeros(2, dtype=torch.long), PREDICTIONS["epsilon"]
    one = ddpm_step(LINEAR, prediction, F, x_t, t, z, "fixed_large")
    assert one.equal(ddpm_step(LINEAR, prediction, F, x_t, t, 5 * z, "fixed_large"))
