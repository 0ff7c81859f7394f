"""Beside azula (Rozet et al.), another implementation of these methods, on the same noise."""

import pytest
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance import DiffPIRDenoiser, DPSSampler, PGDMSampler, RePaintSampler
from azula.sample import DDPMSampler
from torch.overrides import TorchFunctionMode

from benchmarks.oracles.gaussian import Gaussian, gaussian_pipeline, smooth_covariance
from ddpm_sa.editing.editor import AGAIN_NOISE, KNOWN_NOISE
from ddpm_sa.pipeline import INITIAL_NOISE, STEP_NOISE
from ddpm_sa.restoration import (
    DPS,
    BlockMean,
    DiffPIR,
    GaussianBlur,
    Mask,
    PiGDM,
    RePaint,
    Restorer,
)
from ddpm_sa.samplers.denoise import scales
from ddpm_sa.samplers.method import Method

SHAPE, STEPS = (1, 4, 4), 50
PRIOR = Gaussian(torch.linspace(-0.2, 0.2, 16).double(), smooth_covariance(1, 4))
PIPELINE = gaussian_pipeline(PRIOR.mean.reshape(SHAPE), PRIOR.covariance)
METHOD = Method(steps=STEPS, scheduler="ddpm")
RESTORER = Restorer(pipeline=PIPELINE, method=METHOD, seed=3)
RIGHT = torch.arange(4).expand(4, 4) > 1
OPERATORS = {
    "mask": Mask(SHAPE, RIGHT),
    "mean": BlockMean(SHAPE, 2),
    "blur": GaussianBlur(SHAPE, 0.6),
}
FLOAT32 = 1e-4  # both step in float32, and the first step amplifies rounding by 157


class Ours(Denoiser):
    """Our network and our timesteps: azula's time t is number (1 - t) STEPS of them."""

    def __init__(self):
        super().__init__()
        scheduler = METHOD.make_scheduler(PIPELINE.scheduler)
        self.timesteps = scheduler.timesteps
        levels = [scales(scheduler, n, t) for n, t in enumerate(self.timesteps)]
        self.levels = [*levels, (torch.ones(()), torch.zeros(()))]

    def number(self, t):
        return round((1 - float(t)) * STEPS)

    def schedule(self, t):
        return self.levels[self.number(t)]

    def forward(self, x_t, t, **_):
        a, s = self.schedule(t)
        images = x_t.reshape(-1, *SHAPE)
        eps = PIPELINE.unet(images, self.timesteps[self.number(t)].expand(len(x_t))).sample
        return DiracPosterior(mean=(x_t - s * eps.reshape(x_t.shape)) / a)


class Served(TorchFunctionMode):
    """Inside, `torch.randn_like` returns these draws, one after the other."""

    def __init__(self, draws):
        super().__init__()
        self.draws = iter(draws)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.randn_like:
            return next(self.draws).reshape(args[0].shape)
        return func(*args, **(kwargs or {}))


def noise(purpose, step=0):
    return PIPELINE.noise(purpose, seed=3, indices=[0], step=step)


def theirs(sampler, draws, shape=(1, *SHAPE)):
    with Served(draws):
        return sampler(noise(INITIAL_NOISE).reshape(shape)).reshape(1, *SHAPE)


def step_noise():
    return (noise(STEP_NOISE, number) for number in range(STEPS))


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]


def measured(operator, sigma_y):
    return RESTORER.degrade(PRIOR.draw(1, SHAPE, seed=5), operator, sigma_y)


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_dps_is_azulas(operator, step_size):
    y = measured(operator, 0.05)
    ours = RESTORER.restore(y, operator, DPS(step_size), 0.05, 1)[0]
    sampler = DPSSampler(Ours(), y, operator, zeta=step_size, steps=STEPS, silent=True)
    torch.testing.assert_close(ours, theirs(sampler, step_noise()), atol=FLOAT32, rtol=0)


def test_published_steps_of_pigdm_are_azulas(operator):
    y = measured(operator, 0.0)
    ours = RESTORER.restore(y, operator, PiGDM(), 0.0, 1)[0]
    sampler = PGDMSampler(
        Ours(), y, operator, operator.pseudo_inverse, eta=1.0, steps=STEPS, silent=True
    )
    torch.testing.assert_close(ours, theirs(sampler, step_noise()), atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("prior_weight", [1.0, 10.0])
def test_diffpir_is_azulas(operator, prior_weight):
    y = measured(operator, 0.1)
    ours = RESTORER.restore(y, operator, DiffPIR(prior_weight, zeta=None), 0.1, 1)[0]
    # azula's solvers are of vectors, (B, D).
    denoiser = DiffPIRDenoiser(
        Ours(),
        y.flatten(1),
        lambda x: operator(x.reshape(-1, *SHAPE)).flatten(1),
        var_y=0.1**2,
        lmbda=prior_weight,
        solver="cg",
        iterations=16,
    )
    sampler = DDPMSampler(denoiser, steps=STEPS, silent=True)
    found = theirs(sampler, step_noise(), shape=(1, 16))
    torch.testing.assert_close(ours, found, atol=FLOAT32, rtol=0)


def test_repaint_is_azulas():
    operator = OPERATORS["mask"]
    image = PRIOR.draw(1, SHAPE, seed=5)
    y, repeats = operator(image), 3
    ours = RESTORER.restore(y, operator, RePaint(repeats), 0.0, 1)[0]
    draws = (
        noise(purpose, moment + later)
        for moment in range(STEPS * repeats)
        for purpose, later in ((STEP_NOISE, 0), (KNOWN_NOISE, 0), (AGAIN_NOISE, 1))
    )
    # azula's DDIM step of eta = 1 is the step of DDPM.
    sampler = RePaintSampler(
        Ours(), image, RIGHT, iterations=repeats, eta=1.0, steps=STEPS, silent=True
    )
    torch.testing.assert_close(ours, theirs(sampler, draws), atol=FLOAT32, rtol=0)
