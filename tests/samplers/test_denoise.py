from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_sa.diffusion.prediction import PREDICTIONS, prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.randomness import standard_normal
from ddpm_sa.samplers.denoise import denoise
from ddpm_sa.samplers.method import Method, dry_run
from ddpm_sa.samplers.schedulers import SCHEDULERS, make_scheduler
from tests.support.reference import scales_between

STOCHASTIC = ["ddpm", "dpmsolver++sde", "sasolver", "euler_ancestral", "kdpm2_ancestral"]
MEAN, STD = 0.3, 0.25
# 999 is divisible by 111, so that schedulers with evenly spaced real timesteps meet integers.
STEPS = 112


def best_network(base):
    """Gaussian data's exact best prediction:  E[x_0 | x_t] = m + a c² (x_t - a m) / (a² c² + s²)"""
    schedule, kind = NoiseSchedule.from_scheduler(base), prediction(base.config.prediction_type)
    log_sigma = (schedule.s / schedule.a).log()

    def network(x_t, t):
        a, s = scales_between(log_sigma, t.double())
        x_0 = best_x_0(x_t.double(), a, s)
        return SimpleNamespace(sample=kind.target(x_0, (x_t - a * x_0) / s, a, s).float())

    return network


def best_x_0(x_t, a, s):
    return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x_t - a * MEAN)


def run(name, steps, prediction_type="epsilon", shape=(1, 64, 64), images=16, **config):
    base = DDPMScheduler(clip_sample=False, prediction_type=prediction_type, **config)
    return list(
        denoise(
            best_network(base),
            make_scheduler(name, base, steps),
            standard_normal(shape, 0, "x_T", range(images)),
            lambda step: standard_normal(shape, 0, "step", range(images), step),
            predicts=prediction_type,
        )
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_gaussian_data_is_sampled_with_its_mean_and_deviation(name):
    # Euler's error is of first order in its step, and largest: 334 steps bring it below 0.01.
    steps = {"ddpm": 1000, "euler": 334, "euler_ancestral": 334}.get(name, STEPS)
    x = run(name, steps)[-1].x_next
    # 65,536 values: sampling errors are 0.001 and 0.0007.
    tolerance = 0.005 if name == "ddpm" else 0.01
    assert x.mean().item() == pytest.approx(MEAN, abs=tolerance)
    assert x.std().item() == pytest.approx(STD, abs=tolerance)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_predicted_image_is_the_conditional_mean(name):
    schedule = NoiseSchedule.linear()
    log_sigma = (schedule.s / schedule.a).log()
    for step in run(name, STEPS, shape=(1, 4, 4), images=2):
        a, s = scales_between(log_sigma, step.t.double().reshape(1))
        # eps in float32 loses a factor s/a (157 at most) of 2^-24 |x_t|
        best = best_x_0(step.x_t, a, s).float()
        torch.testing.assert_close(step.x_0, best, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_prediction_types_lead_to_the_same_image(name):
    images = [run(name, 28, kind, shape=(1, 8, 8), images=2)[-1].x_next for kind in PREDICTIONS]
    for image in images[1:]:
        torch.testing.assert_close(image, images[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_give_finite_images_or_are_refused(name, steps):
    if (name, steps) == ("kdpm2_ancestral", 2):
        with pytest.raises(ValueError, match=r"kdpm2_ancestral.*steps=2.*not finite.*ddim"):
            dry_run(Method(scheduler=name, steps=steps), DDPMScheduler())
        return
    walk = run(name, steps, shape=(1, 4, 4), images=2)
    assert [step.number for step in walk] == list(range(len(walk)))
    assert walk[-1].x_next.isfinite().all()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_that_is_added_is_the_noise_that_was_given(name):
    base = DDPMScheduler(clip_sample=False)
    x_T, noise = torch.randn(2, 3, 1, 8, 8).unbind()

    def image(served):
        scheduler = make_scheduler(name, base, 10)
        *_, last = denoise(best_network(base), scheduler, x_T, lambda _: served)
        return last.x_next

    # Each step is affine in its noise, and the best network in x_t, with factors of all pixels.
    effect = (image(noise) - image(torch.zeros_like(noise))) / noise
    torch.testing.assert_close(effect, effect.mean().expand_as(effect), rtol=1e-3, atol=1e-3)
    assert effect.mean() > 0


def test_deterministic_schedulers_draw_nothing_and_stochastic_ones_each_step_its_own():
    base = DDPMScheduler()
    for name in SCHEDULERS:
        asked = []

        def noise(step, asked=asked):
            asked.append(step)
            return torch.zeros(1, 1, 4, 4)

        before = torch.get_rng_state()
        scheduler = make_scheduler(name, base, 6)
        for _ in denoise(best_network(base), scheduler, torch.ones(1, 1, 4, 4), noise):
            pass
        assert asked == sorted(set(asked))
        assert bool(asked) == (name in STOCHASTIC)
        assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"variance_type": "fixed_large", "beta_schedule": "squaredcos_cap_v2"},
        {"clip_sample": False, "timestep_spacing": "trailing"},
        {"variance_type": "fixed_small_log", "clip_sample_range": 0.5},
    ],
)
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_images_equal_diffusers_pipelines_fed_the_same_noise(network, name, config):
    # v_prediction keeps an untrained network's images within the range, where nothing is clipped.
    base = DDPMScheduler(prediction_type="v_prediction", **config)
    if name == "ddpm":
        theirs = DDPMPipeline(network, base)
    else:
        theirs = DDIMPipeline(network, DDIMScheduler.from_config(base.config))
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        batch_size=2,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=20,
        output_type="np",
    ).images
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 1, 8, 8, generator=generator) for _ in range(21)]
    *_, last = denoise(network, make_scheduler(name, base, 20), draws[0], lambda i: draws[1 + i])
    image = (last.x_next / 2 + 0.5).clamp(0, 1)
    assert ((image > 0) & (image < 1)).float().mean() > 0.5
    torch.testing.assert_close(
        image, torch.tensor(expected.transpose(0, 3, 1, 2)), atol=1e-5, rtol=0
    )


def test_settings_are_the_models_own_before_and_after_it_is_saved(tmp_path):
    base = DDPMScheduler(beta_end=0.03, clip_sample_range=2.0)
    base.save_pretrained(tmp_path)
    loaded = DDPMScheduler.from_pretrained(tmp_path)
    for name in SCHEDULERS:
        ours, again = (make_scheduler(name, scheduler, 10) for scheduler in (base, loaded))
        assert ours.config.get("clip_sample_range", 2.0) == 2.0
        assert torch.equal(ours.timesteps, again.timesteps)
        assert torch.equal(ours.alphas_cumprod, again.alphas_cumprod)
        # 1000 float32 products, whose factors each are rounded by up to 2^-24
        torch.testing.assert_close(ours.alphas_cumprod, base.alphas_cumprod, rtol=6e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ddpm"])
def test_learned_variance_is_left_aside_by_all_but_ddpm(name):
    base = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    best, x_T = best_network(base), standard_normal((1, 8, 8), 0, "x_T", [0])

    def image(*more):
        def network(*inputs):
            return SimpleNamespace(sample=torch.cat([best(*inputs).sample, *more], dim=1))

        walk = denoise(network, make_scheduler(name, base, 9), x_T, lambda _: torch.ones_like(x_T))
        return list(walk)[-1].x_next

    assert torch.equal(image(torch.ones_like(x_T)), image())


@pytest.mark.parametrize(("output", "kind"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_variance_lies_between_small_and_large(output, kind):
    """Nichol & Dhariwal 2021, eq. 15: -1 says the posterior's variance, 1 says beta."""
    x_T, ones = (
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.ones(1, 1, 8, 8),
    )

    def first(variance_type, *more):
        base = DDPMScheduler(variance_type=variance_type, clip_sample=False)
        best = best_network(base)

        def network(*inputs):
            return SimpleNamespace(sample=torch.cat([best(*inputs).sample, *more], dim=1))

        return next(denoise(network, make_scheduler("ddpm", base, 9), x_T, lambda _: ones))

    learned, fixed = first("learned_range", output * ones), first(kind)
    torch.testing.assert_close(learned.x_next, fixed.x_next, atol=1e-5, rtol=0)
    assert torch.equal(learned.x_0, fixed.x_0)


@pytest.mark.parametrize(
    ("name", "steps", "config", "message"),
    [
        ("dpm", 10, {}, "ddpm, ddim, dpmsolver"),
        ("ddim", 1001, {}, "steps=1001 .* 1000"),
        ("ddim", 0, {}, "steps=0"),
        ("ddpm", 10, {"variance_type": "fixed_large_log"}, "fixed_large_log.*ddim"),
        ("ddpm", 10, {"variance_type": "learned"}, "learned.*ddim"),
    ],
)
def test_what_cannot_be_is_refused_in_words(name, steps, config, message):
    with pytest.raises(ValueError, match=message):
        make_scheduler(name, DDPMScheduler(**config), steps)
