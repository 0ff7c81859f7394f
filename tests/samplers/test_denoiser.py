"""D(x, sigma) against closed forms, our own sampler, and azula's."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.noise import Schedule
from azula.sample import DDIMSampler
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

import ddpm_sa
from ddpm_sa import NoiseSchedule, Pipeline, UNet, preset
from ddpm_sa.conditions.format import ConditionFormat
from ddpm_sa.conditions.kinds import Grey
from ddpm_sa.diffusion.prediction import PREDICTIONS, prediction
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.samplers.denoiser import Denoiser
from ddpm_sa.samplers.method import Method
from tests.support.reference import SMALL, error_of_each_image, randomise_, scales_between

MEAN, STD = 0.3, 0.25
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled_linear": {"beta_schedule": "scaled_linear"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "a hundred steps": {"num_train_timesteps": 100, "beta_end": 0.2},
    "betas of its own": {"trained_betas": [0.01, 0.2, 0.5]},
    "no terminal signal": {"rescale_betas_zero_snr": True},
}


class BestNetwork(nn.Module):
    """What the best network predicts of Gaussian data, at whole and fractional timesteps.

    Called as UNet is; E[x_0 | x_t] = m + a c² (x_t - a m) / (a² c² + s²).
    """

    def __init__(self, scheduler: DDPMScheduler, **config: Any) -> None:
        super().__init__()
        self.config = config
        schedule = NoiseSchedule.from_scheduler(scheduler).with_some_terminal_snr()
        self.log_sigma = (schedule.s / schedule.a).log()
        self.kind = prediction(scheduler.config.prediction_type)
        self.seen: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        self.seen.append(t)
        a, s = scales_between(self.log_sigma, t.double())
        x_0 = MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x_t - a * MEAN)
        return SimpleNamespace(sample=self.kind.target(x_0, (x_t - a * x_0) / s, a, s))


def best_denoised(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_0 + sigma eps = x] of pixels from N(MEAN, STD²)."""
    kept = STD**2 / (STD**2 + sigma[:, None, None, None] ** 2)
    return MEAN + kept * (x - MEAN)


def noisy_images(sigma: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, len(sigma), 3, 4, 4, generator=generator, dtype=torch.float64)
    return MEAN + STD * x_0 + sigma[:, None, None, None] * eps


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_denoiser_of_the_best_network_is_the_conditional_mean(kind, schedule):
    scheduler = DDPMScheduler(prediction_type=kind, **SCHEDULES[schedule])
    D = Denoiser(BestNetwork(scheduler), scheduler)
    # From end to end; almost all lie between two timesteps.
    sigma = torch.logspace(
        *torch.tensor([D.sigma_min, D.sigma_max]).log10(), 40, dtype=torch.float64
    )
    x = noisy_images(sigma)
    torch.testing.assert_close(D(x, sigma), best_denoised(x, sigma), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_in_float32_too_where_noise_is_not_far_above_the_images(kind):
    scheduler = DDPMScheduler(prediction_type=kind)
    D = Denoiser(BestNetwork(scheduler), scheduler)
    sigma = torch.logspace(-1.99, 1, 30, dtype=torch.float64)  # eps loses sigma 2^-24 |eps|
    x = noisy_images(sigma)
    made = D(x.float(), sigma.float())
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, best_denoised(x, sigma).float(), atol=1e-5, rtol=0)


def test_timesteps_are_those_of_their_own_noise_levels():
    scheduler = DDPMScheduler()
    D = Denoiser(BestNetwork(scheduler), scheduler)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    sigma = schedule.s / schedule.a
    torch.testing.assert_close(D.timestep(sigma), torch.arange(1000.0, dtype=torch.float64))
    # Halfway in the log of the signal-to-noise ratio lies the geometric mean.
    between = (sigma[:-1] * sigma[1:]).sqrt()
    torch.testing.assert_close(D.timestep(between), torch.arange(999.0, dtype=torch.float64) + 0.5)


def test_a_learned_embedding_gets_the_nearest_timestep():
    scheduler = DDPMScheduler()
    network = BestNetwork(scheduler, time_embedding_type="learned")
    sigma = network.log_sigma[500] + (network.log_sigma[501] - network.log_sigma[500]) * 0.7
    Denoiser(network, scheduler)(torch.zeros(1, 3, 4, 4), sigma.exp())
    assert torch.equal(network.seen[0], torch.tensor([501]))


@pytest.fixture(scope="module", params=list(PREDICTIONS))
def pipeline(request) -> Pipeline:
    """A network whose branches all matter, that nothing is clipped for."""
    unet = randomise_(UNet(**SMALL, sample_size=8))
    return Pipeline(unet, DDPMScheduler(prediction_type=request.param, clip_sample=False))


def test_prediction_is_the_sampler_s_own(pipeline):
    D = ddpm_sa.denoiser(pipeline)
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    for step in pipeline.denoise([0, 1], Method(steps=8), seed=0):
        t = int(step.t)
        x, sigma = step.x_t / schedule.a[t].item(), (schedule.s[t] / schedule.a[t]).item()
        with torch.no_grad():
            error = error_of_each_image(D(x, sigma), step.x_0)
        assert (error < 1e-5).all()


class ModelSchedule(Schedule):
    """The levels of a model's timesteps from 1 (the noisiest) to 0 (no noise), for azula."""

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        kept = schedule.alphas_cumprod[len(schedule) // steps - 1 :: len(schedule) // steps]
        self.kept = torch.cat([torch.ones(1, dtype=torch.float64), kept])

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.kept[(t * (len(self.kept) - 1)).round().long()]
        return kept.sqrt().float(), (1 - kept).sqrt().float()


class ForAzula(AzulaDenoiser):
    def __init__(self, D: Denoiser, schedule: Schedule) -> None:
        super().__init__()
        self.D, self.schedule = D, schedule

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        a, s = self.schedule(t)
        return DiracPosterior(mean=self.D(x_t / a, s / a, **kwargs))


@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
def test_azula_samples_the_images_of_our_ddim(pipeline, schedule):
    scheduler = DDPMScheduler(
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type=pipeline.scheduler.config.prediction_type,
        **SCHEDULES[schedule],
    )
    pipeline = Pipeline(pipeline.unet, scheduler)
    steps = list(pipeline.denoise([0, 1, 2], Method(steps=50), seed=0))
    D = ForAzula(
        ddpm_sa.denoiser(pipeline), ModelSchedule(NoiseSchedule.from_scheduler(scheduler), 50)
    )
    made = DDIMSampler(D, steps=50, silent=True)(steps[0].x_t)
    assert (error_of_each_image(made, steps[-1].x_next) < 1e-4).all()


@pytest.mark.parametrize("sigma", [0.02, 1.7, 100.0])
def test_gradient_is_the_derivative(pipeline, sigma):
    D = copy.deepcopy(ddpm_sa.denoiser(pipeline)).double()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    levels = torch.tensor([sigma, sigma / 2 + 0.01])
    # Of one channel's gradients in all inputs: enough to find a detached branch, and quick.
    assert torch.autograd.gradcheck(lambda x: D(x * sigma, levels)[:, :1], (x,), fast_mode=True)
    (gradient,) = torch.autograd.grad(D(x * sigma, levels).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_gradient_of_gaussian_data_is_the_share_of_signal():
    """dD/dx = c² / (c² + sigma²), Tweedie's formula for the posterior variance over sigma²."""
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    D = Denoiser(BestNetwork(scheduler), scheduler)
    sigma = torch.tensor([0.05, 0.5, 5.0], dtype=torch.float64)
    x = noisy_images(sigma).requires_grad_()
    (gradient,) = torch.autograd.grad(D(x, sigma).sum(), x)
    expected = (STD**2 / (STD**2 + sigma**2))[:, None, None, None].expand_as(x)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=0)


def test_one_sigma_is_that_sigma_for_every_image_and_images_do_not_meet(pipeline):
    D = ddpm_sa.denoiser(pipeline)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.1, 3.0, 90.0])
    with torch.no_grad():
        together = D(x, levels)
        for sigma in (3.0, torch.tensor(3.0), torch.full((3,), 3.0), torch.full((3, 1, 1, 1), 3.0)):
            assert torch.equal(D(x, sigma), D(x, 3.0))
        for i in range(3):
            alone = D(x[i : i + 1], levels[i])
            assert (error_of_each_image(alone, together[i : i + 1]) < 1e-5).all()


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (160.0, r"sigma=160 must be above 0 and at most 157.4, .* start the sampler at sigma_max"),
        (0.0, "sigma=0 must be above 0"),
        (-1.0, "sigma=-1 must be above 0"),
        (float("nan"), "sigma=nan must be above 0"),
        (torch.tensor([1.0, 1000.0, 1.0]), "sigma=1000 must be"),
        (torch.ones(2), "sigma has 2 values for 3 images"),
    ],
    ids=str,
)
def test_a_noise_level_out_of_range_is_refused_in_one_line(sigma, message):
    scheduler = DDPMScheduler()
    D = Denoiser(BestNetwork(scheduler), scheduler)
    with pytest.raises(ValueError, match=message) as refusal:
        D(torch.zeros(3, 3, 4, 4), sigma)
    assert "\n" not in str(refusal.value)


def test_sigma_max_may_be_rounded():
    scheduler = DDPMScheduler()
    network = BestNetwork(scheduler)
    D = Denoiser(network, scheduler)
    assert D(torch.zeros(1, 3, 4, 4), D.sigma_max * 1.0005).isfinite().all()
    assert network.seen[-1].tolist() == [999.0]


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_below_the_least_noise_of_the_training_little_is_removed(kind):
    scheduler = DDPMScheduler(prediction_type=kind)
    D = Denoiser(BestNetwork(scheduler), scheduler)
    sigma = torch.tensor([1.0, 0.5, 0.1, 1e-4], dtype=torch.float64) * D.sigma_min
    x = noisy_images(sigma)
    # Too much by sigma_min² |x - m| / c² at most, with |x - m| up to 1 here; a grey level of 8 bits
    # is 8e-3.
    bound = D.sigma_min**2 / STD**2
    torch.testing.assert_close(D(x, sigma), best_denoised(x, sigma), atol=bound, rtol=0)
    torch.testing.assert_close(D(x, sigma)[0], best_denoised(x, sigma)[0], atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def animals() -> Pipeline:
    """A class-conditional network."""
    unet = randomise_(UNet(**SMALL, sample_size=8, num_class_embeds=3))
    images = ImageFormat(channels=3, size=(8, 8), labels=("cat", "dog", "7"))
    return Pipeline(unet, DDPMScheduler(prediction_type="v_prediction"), images)


@torch.no_grad()
def test_classes_are_given_by_name_number_or_tensor(animals):
    D = ddpm_sa.denoiser(animals)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = D(x, 1.0, class_labels=torch.tensor([1, 0, 2]))
    assert torch.equal(D(x, 1.0, class_labels=["dog", "cat", "7"]), expected)
    for i, label in enumerate([1, 0, 2]):
        torch.testing.assert_close(D(x[i : i + 1], 1.0, class_labels=label), expected[i : i + 1])
    assert not torch.allclose(D(x, 1.0, class_labels="cat")[0], expected[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "class-conditional: give class_labels"),
        (3, "class label 3 is not among 0 ... 2"),
        ("cow", "no class is called 'cow'; there are cat, dog, 7"),
        ([0, 1], "2 class_labels for 1 images"),
    ],
    ids=str,
)
def test_classes_that_cannot_be_are_refused(animals, labels, message):
    with pytest.raises(ValueError, match=message):
        ddpm_sa.denoiser(animals)(torch.zeros(1, 3, 8, 8), 1.0, class_labels=labels)


def test_a_network_without_classes_refuses_them(pipeline):
    with pytest.raises(ValueError, match="class_labels need a network with num_class_embeds"):
        ddpm_sa.denoiser(pipeline)(torch.zeros(1, 3, 8, 8), 1.0, class_labels=0)


def test_learned_variance_is_left_aside():
    scheduler = DDPMScheduler(variance_type="learned_range")
    best = BestNetwork(scheduler)

    class WithVariance(nn.Module):
        config: Any = {}  # noqa: RUF012

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            F = best(x_t, t).sample
            return SimpleNamespace(sample=torch.cat([F, torch.full_like(F, 9.0)], dim=1))

    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    x = noisy_images(sigma)
    D = Denoiser(WithVariance(), scheduler)
    torch.testing.assert_close(D(x, sigma), best_denoised(x, sigma), atol=1e-5, rtol=0)


def test_an_amplified_error_is_clamped_as_in_sampling():
    """Noise prediction on a cosine schedule: x_0 = x - sigma F, with sigma in the thousands."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")

    class Off(BestNetwork):
        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            return SimpleNamespace(sample=super().forward(x_t, t).sample + 0.01)

    D = Denoiser(Off(scheduler), scheduler)
    for sigma in (1000.0, 10_000.0):
        made = D(noisy_images(torch.tensor([sigma])), sigma)
        assert (made == -1).all()  # unclamped, 0.3 - 0.01 sigma
    made = D(noisy_images(torch.tensor([150.0])), 150.0)
    torch.testing.assert_close(made, torch.full_like(made, MEAN - 1.5), atol=0.05, rtol=0)


@torch.no_grad()
def test_half_precision_networks_get_float32_around_them():
    unet = randomise_(UNet(**SMALL, sample_size=8))
    whole = Pipeline(unet, DDPMScheduler(prediction_type="v_prediction"))
    half = Pipeline(copy.deepcopy(unet).bfloat16(), whole.scheduler)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, made = ddpm_sa.denoiser(whole)(x, 0.5), ddpm_sa.denoiser(half)(x, 0.5)
    assert made.dtype == torch.float32
    # bfloat16 has 8 bits; its roundings in a row, over each image's largest value
    assert (error_of_each_image(made, expected) < 0.1).all()
    assert ddpm_sa.denoiser(half)(x.bfloat16(), 0.5).dtype == torch.bfloat16


@torch.no_grad()
def test_networks_of_diffusers_are_denoisers_too():
    theirs = UNet2DModel(**SMALL, sample_size=8)
    randomise_(theirs)
    ours = UNet(**SMALL, sample_size=8)
    ours.load_state_dict(theirs.state_dict())
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 7.7])
    expected, made = (
        ddpm_sa.denoiser(Pipeline(unet, DDPMScheduler()))(x, sigma) for unet in (theirs, ours)
    )
    assert (error_of_each_image(made, expected) < 1e-5).all()


def test_it_is_a_module_in_eval_mode_that_shares_the_network():
    unet = UNet(**preset("tiny").unet | {"dropout": 0.5}).train()
    D = ddpm_sa.denoiser(Pipeline(unet, DDPMScheduler()))
    assert D.network is unet
    assert not unet.training
    assert {id(p) for p in D.parameters()} == {id(p) for p in unet.parameters()}
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(D(x, 1.0), D(x, 1.0))


def test_a_network_that_is_conditioned_on_images_is_none():
    condition = ConditionFormat(kinds=(Grey(),))
    image_format = ImageFormat(channels=3, size=(8, 8), condition=condition)
    network = UNet(**SMALL | {"sample_size": 8, "in_channels": 4})
    with pytest.raises(UserError, match="conditioned on images is no denoiser of x alone"):
        ddpm_sa.denoiser(Pipeline(network, DDPMScheduler(), image_format))
