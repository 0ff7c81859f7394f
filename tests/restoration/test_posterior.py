"""Against the closed form: Gaussian images, whose posterior given a measurement is known.

The distribution of DDIM's samples is computed exactly (`samples_of_ddim`); nothing here is
estimated from samples unless a test says so.
"""

import numpy as np
import pytest
import torch

from benchmarks.oracles.gaussian import (
    Gaussian,
    gaussian_pipeline,
    matrix_of,
    samples_of_ddim,
    smooth_covariance,
)
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.pipeline import INITIAL_NOISE, STEP_NOISE
from ddpm_sa.restoration import (
    DDNM,
    DPS,
    BlockMean,
    DiffPIR,
    FourierMask,
    GaussianBlur,
    Grey,
    Mask,
    PiGDM,
    Restorer,
)
from ddpm_sa.restoration.base import Estimate, Measurement
from ddpm_sa.restoration.steps import LinearStep
from ddpm_sa.samplers.denoise import scales
from ddpm_sa.samplers.method import Method
from ddpm_sa.samplers.schedulers import SCHEDULERS

SHAPE, RGB = (1, 4, 4), (3, 4, 4)
RIGHT = torch.arange(4).expand(4, 4) > 1
OPERATORS = {
    "mask": Mask(SHAPE, RIGHT),
    "mean": BlockMean(SHAPE, 2),
    "blur": GaussianBlur(SHAPE, 0.4),
    "grey": Grey(RGB),
    "fourier": FourierMask(SHAPE, RIGHT),
}


def data(shape, covariance=None, mean=0.0):
    """Gaussian images: white, if no covariance is given."""
    size = int(np.prod(shape))
    covariance = torch.eye(size, dtype=torch.double) if covariance is None else covariance
    return Gaussian(torch.full((size,), mean, dtype=torch.double), covariance)


def pipeline_of(prior, shape):
    return gaussian_pipeline(prior.mean.reshape(shape), prior.covariance)


def errors(found, expected):
    """RMS error of the mean, and the error of the covariance relative to the largest variance."""
    mean = (found.mean - expected.mean).square().mean().sqrt()
    largest = expected.covariance.diagonal().max()
    return mean.item(), ((found.covariance - expected.covariance).abs().max() / largest).item()


@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("name", OPERATORS)
def test_pigdm_predicts_the_posterior_mean_exactly_for_white_data(name, sigma_y):
    operator = OPERATORS[name]
    prior, A = data(operator.image_shape, mean=0.1), matrix_of(operator)
    pipeline = pipeline_of(prior, operator.image_shape)
    images, noise = (prior.draw(4, operator.image_shape, seed) for seed in (1, 2))
    y = Restorer(pipeline=pipeline, method=Method()).degrade(images, operator, sigma_y)
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    for t in (10, 300, 700):
        a, s = schedule.a[t].float(), schedule.s[t].float()
        x_t = (a * images + s * noise).requires_grad_()
        x_0 = (x_t - s * pipeline.unet(x_t, torch.full((4,), t)).sample) / a
        estimate = Estimate(x_t, x_0, a, s, None)
        found = PiGDM("score").x_0(Measurement(operator, y, sigma_y), estimate).detach()
        # x_0 given x_t is N(x_0, s² I); y is a second, independent measurement of it.
        variance = s.double() ** 2
        middle = variance * A @ A.mT + sigma_y**2 * torch.eye(len(A), dtype=torch.double)
        gain = variance * A.mT @ torch.linalg.pinv(middle, hermitian=True, rtol=1e-6)
        before = x_0.detach().double().flatten(1)
        expected = before + (y.double().flatten(1) - before @ A.mT) @ gain.mT
        torch.testing.assert_close(found.double().flatten(1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma_y", [0.05, 0.5])
@pytest.mark.parametrize("name", OPERATORS)
def test_pigdm_nears_the_posterior_of_white_data_as_its_steps_grow(name, sigma_y):
    operator = OPERATORS[name]
    prior = data(operator.image_shape, mean=0.1)
    pipeline = pipeline_of(prior, operator.image_shape)
    x = prior.draw(1, operator.image_shape, seed=1)
    y = Restorer(pipeline=pipeline, method=Method()).degrade(x, operator, sigma_y)
    posterior = prior.given(operator, y[0], sigma_y)
    few, many = (
        errors(
            samples_of_ddim(pipeline, PiGDM("score"), Measurement(operator, y, sigma_y), steps),
            posterior,
        )
        for steps in (50, 1000)
    )
    # The mean lacks what x_T, taken to be noise alone, knows of it: a_T = 0.006 of its size.
    assert max(few[0], many[0]) < 0.004
    # DDIM is of first order: 20 times the steps, a twentieth of the error.
    assert many[1] < few[1] / 8
    assert many[1] < 0.07


def test_pigdm_is_biased_where_pixels_are_alike():
    prior, operator = data(SHAPE, smooth_covariance(1, 4)), OPERATORS["mask"]
    pipeline = pipeline_of(prior, SHAPE)
    y = operator(prior.draw(1, SHAPE, seed=1))
    found = samples_of_ddim(pipeline, PiGDM("score"), Measurement(operator, y), 1000)
    assert errors(found, prior.given(operator, y[0], 0.0))[0] > 0.02


def independent_data(name):
    """Correlated data whose measured part is independent of the rest."""
    smooth = smooth_covariance(1, 4)
    if name == "fourier":  # stationary: the covariance is diagonal in Fourier space
        distance = torch.minimum(torch.arange(4), 4 - torch.arange(4)).double()
        row = torch.exp(-distance / 1.5)
        circulant = torch.stack([row.roll(shift) for shift in range(4)])
        covariance = 0.09 * torch.kron(circulant, circulant) + 1e-3 * torch.eye(16).double()
        return data(SHAPE, covariance, mean=0.1)
    A = matrix_of(OPERATORS[name])
    seen = torch.linalg.pinv(A) @ A
    rest = torch.eye(16, dtype=torch.double) - seen
    return data(SHAPE, seen @ smooth @ seen + rest @ smooth @ rest, mean=0.1)


@pytest.mark.parametrize("name", ["mask", "mean", "fourier"])
def test_ddnm_nears_the_posterior_if_what_is_measured_is_independent_of_the_rest(name):
    prior, operator = independent_data(name), OPERATORS[name]
    assert (prior.covariance - prior.covariance.diagonal().diag()).abs().max() > 0.02
    pipeline = pipeline_of(prior, SHAPE)
    y = operator(prior.draw(1, SHAPE, seed=1))
    posterior = prior.given(operator, y[0], 0.0)
    few, many = (
        errors(samples_of_ddim(pipeline, DDNM(), Measurement(operator, y), steps), posterior)
        for steps in (50, 1000)
    )
    assert max(few[0], many[0]) < 0.001
    assert many[1] < few[1] / 8
    assert many[1] < 0.03


def test_ddnm_is_biased_where_the_measured_says_something_of_the_rest():
    prior, operator = data(SHAPE, smooth_covariance(1, 4)), OPERATORS["mask"]
    y = operator(prior.draw(1, SHAPE, seed=1))
    found = samples_of_ddim(pipeline_of(prior, SHAPE), DDNM(), Measurement(operator, y), 1000)
    assert errors(found, prior.given(operator, y[0], 0.0))[0] > 0.02


@pytest.mark.parametrize("name", ["mask", "mean", "grey", "fourier"])
@pytest.mark.parametrize("restoration", [DDNM(), DiffPIR(zeta=None), PiGDM("score")])
def test_samples_fit_a_measurement_without_noise(name, restoration):
    operator = OPERATORS[name]
    channels = operator.image_shape[0]
    prior = data(operator.image_shape, smooth_covariance(channels, 4))
    pipeline = pipeline_of(prior, operator.image_shape)
    y = operator(prior.draw(1, operator.image_shape, seed=1))
    restorer = Restorer(pipeline=pipeline, method=Method(steps=100, scheduler="ddpm"))
    (samples,) = restorer.restore(y, operator, restoration, num_samples=4)
    # PiGDM's r² and the variance of x_0 given x_t agree only in the limit t = 0.
    tolerance = 5e-3 if isinstance(restoration, PiGDM) else 1e-4
    assert (operator(samples) - y).abs().max() < tolerance
    assert samples.std(0).max() > 0.01


def step_of_the_paper(s, weight_0, deviation, sigma_y):
    """lambda and gamma of one singular value (Wang et al. 2023, eq. 19)."""
    if s == 0:
        return 1.0, deviation**2
    if deviation >= weight_0 * sigma_y / s:
        return 1.0, deviation**2 - (weight_0 * sigma_y / s) ** 2
    return deviation * s / (weight_0 * sigma_y), 0.0


@pytest.mark.parametrize("sigma_y", [0.01, 0.3])
@pytest.mark.parametrize("name", OPERATORS)
def test_ddnm_plus_is_equation_17_and_19_in_singular_vectors(name, sigma_y):
    operator = OPERATORS[name]
    A = matrix_of(operator)
    _, S, Vh = torch.linalg.svd(A)
    s = torch.zeros(len(Vh), dtype=torch.double)
    s[: len(S)] = S.where(S > 1e-6, 0)
    x_0, y = torch.randn(2, *operator.image_shape), torch.randn(2, *operator.measurement_shape())
    measured, eye = Measurement(operator, y, sigma_y), torch.eye(len(Vh))
    for step in (LinearStep(0.02, 0.97, 0.1), LinearStep(0.5, 0.4, 0.1), LinearStep(1.0, 0.0, 0.0)):
        pairs = [step_of_the_paper(v, step.weight_0, step.deviation, sigma_y) for v in s.tolist()]
        share, gamma = torch.tensor(pairs, dtype=torch.double).mT
        a, one = torch.tensor(0.8), torch.tensor(0.6)
        found = DDNM().x_0(measured, Estimate(x_0, x_0, a, one, step)).double().flatten(1)
        residual = x_0.double().flatten(1) @ A.mT - y.double().flatten(1)
        back = residual @ torch.linalg.pinv(A, rtol=1e-6).mT
        expected = x_0.double().flatten(1) - back @ Vh.mT @ torch.diag(share) @ Vh
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        if step.deviation:
            shaped = DDNM().noise(measured, step, eye.reshape(-1, *operator.image_shape))
            root = step.deviation * shaped.double().flatten(1)
            expected = Vh.mT @ torch.diag(gamma) @ Vh
            torch.testing.assert_close(root.mT @ root, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("zeta", [0.0, 0.4, 1.0])
def test_diffpir_is_the_published_loop(zeta):
    """As its code for inpainting has it, main_ddpir_inpainting.py."""
    prior, operator, sigma_y, weight = (
        data(SHAPE, smooth_covariance(1, 4)),
        OPERATORS["mask"],
        0.1,
        7,
    )
    pipeline = pipeline_of(prior, SHAPE)
    method = Method(steps=20, scheduler="ddim")
    restorer = Restorer(pipeline=pipeline, method=method, seed=4)
    y = restorer.degrade(prior.draw(1, SHAPE, seed=1), operator, sigma_y)
    ours = restorer.restore(y, operator, DiffPIR(weight, zeta), sigma_y, 1)[0]

    scheduler = method.make_scheduler(pipeline.scheduler)
    levels = [scales(scheduler, n, t) for n, t in enumerate(scheduler.timesteps)]
    levels.append((torch.ones(()), torch.zeros(())))
    mask, full = RIGHT.float(), operator.adjoint(y)
    x = pipeline.noise(INITIAL_NOISE, seed=4, indices=[0])
    for number, t in enumerate(scheduler.timesteps):
        (a, s), (a_next, s_next) = levels[number], levels[number + 1]
        x_0 = (x - s * pipeline.unet(x, t[None]).sample) / a
        rho = weight * sigma_y**2 / (s / a) ** 2
        x_0 = (mask * full + rho * x_0) / (mask + rho)
        eps = (x - a * x_0) / s
        fresh = pipeline.noise(STEP_NOISE, seed=4, indices=[0], step=number)
        x = a_next * x_0 + s_next * ((1 - zeta) ** 0.5 * eps + zeta**0.5 * fresh)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("restoration", [DDNM(), PiGDM("score"), DiffPIR(zeta=None)])
def test_every_scheduler_restores_with_methods_that_change_x_0_alone(restoration, scheduler):
    prior, operator, count = data(SHAPE, mean=0.1), OPERATORS["mask"], 64
    restorer = Restorer(
        pipeline=pipeline_of(prior, SHAPE), method=Method(steps=30, scheduler=scheduler)
    )
    y = operator(prior.draw(1, SHAPE, seed=1))
    (samples,) = restorer.restore(y, operator, restoration, num_samples=count, batch_size=count)
    # Some schedulers end with the noise of the first timestep, 0.01.
    assert (operator(samples) - y).abs().max() < 0.06
    hidden = samples[..., ~RIGHT]  # 512 values of N(0.1, 1): 5 standard errors
    assert hidden.mean().item() == pytest.approx(0.1, abs=0.22)
    assert hidden.std().item() == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("restoration", [PiGDM(), PiGDM("score"), DPS(0.3), DDNM(), DiffPIR()])
def test_restored_images_are_near_the_posterior_and_say_how_unsure_they_are(restoration):
    """Samples, as users draw them; docs/restoration.md has the table of all."""
    prior, operator, sigma = data(SHAPE, smooth_covariance(1, 4), mean=0.2), OPERATORS["mask"], 0.1
    restorer = Restorer(
        pipeline=pipeline_of(prior, SHAPE), method=Method(steps=100, scheduler="ddpm")
    )
    y = restorer.degrade(prior.draw(8, SHAPE, seed=1), operator, sigma)
    samples = restorer.restore(y, operator, restoration, sigma, 100, batch_size=800)
    exact = torch.stack([prior.given(operator, row, sigma).mean for row in y])
    error = (samples.mean(1).double().flatten(1) - exact).square().mean().sqrt()
    unknown = (prior.mean - exact).square().mean().sqrt()
    assert error < 0.5 * unknown
    deviation = samples.std(1).mean((0, 1))
    assert deviation[~RIGHT].min() > 1.5 * deviation[RIGHT].max()


def test_ddnm_plus_follows_a_noisy_measurement_too_closely_the_more_steps_it_takes():
    """As docs/restoration.md says: it takes the noise of y for new noise at every step."""
    prior, operator, sigma = data(SHAPE, smooth_covariance(1, 4)), OPERATORS["mean"], 0.2
    pipeline, residuals = pipeline_of(prior, SHAPE), []
    for steps in (20, 200):
        restorer = Restorer(pipeline=pipeline, method=Method(steps=steps, scheduler="ddpm"))
        y = restorer.degrade(prior.draw(1, SHAPE, seed=1), operator, sigma)
        (samples,) = restorer.restore(y, operator, DDNM(), sigma, 64, batch_size=64)
        residuals.append((operator(samples) - y).square().mean().sqrt().item())
    exact = prior.given(operator, y[0], sigma).draw(4096, SHAPE)
    expected = (operator(exact) - y).square().mean().sqrt().item()
    assert residuals[1] < residuals[0] / 2
    assert residuals[0] < 0.9 * expected
