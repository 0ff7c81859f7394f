import dataclasses
import math

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_sa import Pipeline, UNet, record_attention
from ddpm_sa.condition import Condition
from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.guidance.attention import WithBlurredImage, WithoutAttention, gaussian_blur
from ddpm_sa.guidance.base import Guidance, WithoutLabel
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.interpret.ablation import ablate_attention
from ddpm_sa.samplers.denoise import View, denoise
from ddpm_sa.samplers.method import Method
from ddpm_sa.samplers.schedulers import SCHEDULERS
from tests.support.reference import SMALL, randomise_

KINDS = ("cfg", "pag", "sag", "seg", "auto")
GREY = {"sample_size": 8, "in_channels": 1, "out_channels": 1}


def make(kind="v_prediction", classes=3, **config):
    """Three classes, the last of which stands for "no label"."""
    names = {"labels": ("a", "b")} if classes == 3 else {}
    network = randomise_(UNet(**SMALL | GREY | {"num_class_embeds": classes} | config))
    network.conv_out.weight.data *= 0.3  # so that images are not clipped
    pipeline = Pipeline(
        network,
        DDPMScheduler(prediction_type=kind),
        ImageFormat(channels=1, size=(8, 8), **names),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.eval()
    return pipeline


def guide_of(pipeline, kind, scale=1.0, **more):
    if kind == "auto":
        more["weaker"] = make(classes=pipeline.unet.config.num_class_embeds)
        torch.nn.init.zeros_(more["weaker"].unet.conv_out.weight)
    return pipeline.guidance(kind, scale, **more)


def view_of(pipeline, images=2, t=500):
    schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
    x_t = torch.randn(images, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    classes = pipeline.unet.config.num_class_embeds
    labels = None if classes is None else torch.arange(images) % 2
    a, s = schedule.a[t].float(), schedule.s[t].float()
    return View(x_t, torch.full((images,), t), Condition(class_labels=labels), a, s)


def evaluator(pipeline, calls=None):
    @torch.no_grad()
    def evaluate(x_t, t, condition):
        if calls is not None:
            calls.append(len(x_t))
        return condition.evaluate(pipeline.unet, x_t, t).sample

    return evaluate


def images(pipeline, **arguments):
    arguments = {"num_images": 2, "steps": 4, "output_type": "pt"} | arguments
    return pipeline(**arguments).images


@pytest.mark.parametrize("kind", KINDS)
def test_scale_0_is_no_guidance_bit_for_bit_and_no_second_evaluation(kind):
    pipeline, calls = make(), []
    guide, view = guide_of(pipeline, kind, 0.0), view_of(pipeline)
    evaluate = evaluator(pipeline, calls)
    assert torch.equal(guide(evaluate, view), evaluator(pipeline)(*view[:3]))
    assert calls == [2]
    assert torch.equal(images(pipeline, guide=guide), images(pipeline))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_are_those_of_the_table(kind):
    pipeline, calls = make(), []
    guide = guide_of(pipeline, kind)
    guide(evaluator(pipeline, calls), view_of(pipeline))
    expected = {"sag": [2, 2], "auto": [2]}.get(kind, [4])
    assert calls == expected  # the other evaluation of "auto" is the weaker network's


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_moves_the_image_and_only_within_its_interval(kind):
    pipeline = make()
    plain = images(pipeline)
    assert not torch.allclose(images(pipeline, guide=guide_of(pipeline, kind)), plain, atol=1e-3)
    never = guide_of(pipeline, kind, interval=(2000, 3000))
    assert torch.equal(images(pipeline, guide=never), plain)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_classifier_free_guidance_is_the_formula_of_two_calls(kind):
    pipeline = make(kind)
    view, evaluate = view_of(pipeline), evaluator(pipeline)
    guided = pipeline.guidance("cfg", 2.5)(evaluate, view)
    denoiser = prediction(kind)
    scales = (view.x_t, view.a, view.s)
    conditional = denoiser.eps(evaluate(*view[:3]), *scales)
    unconditional = denoiser.eps(
        evaluate(*view[:2], Condition(class_labels=torch.tensor([2, 2]))), *scales
    )
    expected = conditional + 2.5 * (conditional - unconditional)
    torch.testing.assert_close(denoiser.eps(guided, *scales), expected, atol=1e-4, rtol=1e-5)


def test_guided_gaussians_have_the_mean_that_the_closed_form_says():
    """Two classes N(-m, c²) and N(m, c²) and their mixture, all with exact best denoisers."""
    m, c, w = 0.4, 0.2, 1.5
    base = DDPMScheduler(clip_sample=False)
    schedule = NoiseSchedule.from_scheduler(base)

    def eps_of(x_t, a, s, label):
        variance = a**2 * c**2 + s**2
        # Of both classes together the posterior mean of the sign is a tanh.
        sign = torch.tanh(a * m * x_t / variance) if label == 2 else 2 * label - 1
        mean = m * sign
        return s * (x_t - a * mean) / variance

    def network(x_t, t, class_labels):
        a, s = (schedule.at(table, t, x_t.double()) for table in (schedule.a, schedule.s))
        each = torch.stack([eps_of(x_t.double(), a, s, label) for label in range(3)])
        chosen = class_labels.reshape(1, -1, 1, 1, 1).expand(1, *x_t.shape)
        return UNetLike(each.gather(0, chosen)[0].float())

    guide = Guidance(weaker=WithoutLabel(2), scale=w)
    x_T = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1])
    made = Method(steps=20).make_scheduler(base)
    for step in denoise(
        network, made, x_T, torch.empty, condition=Condition(class_labels=labels), guide=guide
    ):
        t = step.t.reshape(1)
        a, s = (schedule.at(table, t, x_T.double()) for table in (schedule.a, schedule.s))
        x_t = step.x_t.double()
        sign = labels.reshape(-1, 1, 1, 1) * 2 - 1.0
        variance = a**2 * c**2 + s**2
        tilt = m * (sign - torch.tanh(a * m * x_t / variance))  # the classifier's gradient
        eps = s * (x_t - a * m * sign) / variance - w * s * a * tilt / variance
        best = (x_t - s * eps) / a
        # eps in float32 loses a factor s/a, 157 at most, of 2^-24 |x_t|
        torch.testing.assert_close(step.x_0.double(), best, atol=3e-4, rtol=1e-4)


class UNetLike:
    def __init__(self, sample):
        self.sample = sample


def test_rescale_1_keeps_the_spread_of_the_conditional_output():
    pipeline = make()
    view, evaluate = view_of(pipeline), evaluator(pipeline)
    plain = evaluate(*view[:3])
    guided = pipeline.guidance("cfg", 4.0, rescale=1.0)(evaluate, view)
    torch.testing.assert_close(guided.std(dim=(1, 2, 3)), plain.std(dim=(1, 2, 3)))
    half = pipeline.guidance("cfg", 4.0, rescale=0.5)(evaluate, view)
    free = pipeline.guidance("cfg", 4.0)(evaluate, view)
    torch.testing.assert_close(half, (guided + free) / 2, atol=1e-5, rtol=1e-5)


def test_the_weak_half_of_pag_is_a_network_whose_maps_are_the_identity():
    pipeline = make(classes=None)
    layers = ["mid_block.attentions.0", "up_blocks.0.attentions.0"]
    view, evaluate = view_of(pipeline), evaluator(pipeline)
    strong, weak = WithoutAttention(pipeline.unet, layers)(evaluate, view)
    torch.testing.assert_close(strong, evaluate(*view[:3]), atol=1e-5, rtol=1e-5)
    with ablate_attention(pipeline.unet, "identity", layers):
        torch.testing.assert_close(weak, evaluate(*view[:3]), atol=1e-5, rtol=1e-5)
        # A network whose attention is the identity already has nothing to be guided by.
        same = WithoutAttention(pipeline.unet, layers)(evaluate, view)
    assert torch.equal(*same)


def test_slots_are_as_before_after_guidance_even_one_that_fails():
    pipeline = make(classes=None)
    before = [m.attend for m in pipeline.unet.modules() if hasattr(m, "attend")]

    def failing(*_):
        raise RuntimeError("stop")

    for kind in ("pag", "seg", "sag"):
        guide = pipeline.guidance(kind)
        images(pipeline, guide=guide)
        with pytest.raises(RuntimeError, match="stop"):
            guide(failing, view_of(pipeline))
    after = [m.attend for m in pipeline.unet.modules() if hasattr(m, "attend")]
    assert all(x is y for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["sag", "seg"])
def test_blurring_guidance_vanishes_as_its_blur_does(kind):
    pipeline = make(classes=None)
    view, evaluate = view_of(pipeline), evaluator(pipeline)
    plain = evaluate(*view[:3])
    moved = [
        (pipeline.guidance(kind, 1.0, sigma=sigma)(evaluate, view) - plain).abs().max().item()
        for sigma in (0.0, 0.2, 0.5, math.inf if kind == "seg" else 3.0)
    ]
    assert moved[0] < 1e-5  # both halves of a batch may differ in their last bits
    assert moved[0] <= moved[1] < moved[2] < moved[3]


def test_seg_with_endless_blur_gives_every_pixel_the_mean_query():
    pipeline = make(classes=None)
    view, evaluate = view_of(pipeline, images=1), evaluator(pipeline)
    guide = pipeline.guidance("seg")
    with record_attention(pipeline.unet, ["mid_block.attentions.0"]) as maps:
        guide(evaluate, view)
    # The recorder stands in the slot's place: what it sees is each half's own queries.
    strong, weak = maps["mid_block.attentions.0"]
    assert torch.allclose(weak[0, 0, 0], weak[0, 0, -1], atol=1e-6)
    assert not torch.allclose(strong[0, 0, 0], strong[0, 0, -1], atol=1e-3)


def test_sag_blurs_where_the_middle_attends_and_keeps_the_noise():
    pipeline = make(classes=None)
    view, seen = view_of(pipeline, images=1), []
    inner = evaluator(pipeline)

    def evaluate(x_t, t, condition):
        seen.append(x_t)
        return inner(x_t, t, condition)

    kind = prediction("v_prediction")
    with record_attention(pipeline.unet, ["mid_block.attentions.0"]) as maps:
        strong, _ = WithBlurredImage(pipeline.unet, kind)(evaluate, view)
    received = maps["mid_block.attentions.0"][0][0, 0].sum(0)  # 4 x 4
    high = (received > 1).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert 0 < high.sum() < 64
    x_0 = kind.x_0(strong, view.x_t, view.a, view.s)
    eps = (view.x_t - view.a * x_0) / view.s
    mixed = torch.where(high, gaussian_blur(x_0, 3.0), x_0)
    torch.testing.assert_close(seen[1], view.a * mixed + view.s * eps, atol=1e-5, rtol=1e-5)


def test_gaussian_blur_is_the_convolution_away_from_the_edges():
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 16] = 1
    place = torch.arange(33.0) - 16
    weights = torch.exp(-(place**2) / (2 * 1.5**2))
    weights /= weights.sum()
    torch.testing.assert_close(gaussian_blur(image, 1.5)[0, 0], weights.outer(weights))
    ones = torch.ones(1, 2, 5, 7)
    torch.testing.assert_close(gaussian_blur(ones, 2.0), ones)


@pytest.mark.parametrize("name", ["dpmsolver++", "heun", "euler_ancestral", "ddpm", "unipc"])
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_goes_with_every_scheduler(kind, name):
    assert name in SCHEDULERS
    pipeline = make()
    made = images(pipeline, scheduler=name, guide=guide_of(pipeline, kind, 0.5))
    assert made.isfinite().all()
    alone = images(
        pipeline, scheduler=name, guide=guide_of(pipeline, kind, 0.5), indices=[1], num_images=1
    )
    torch.testing.assert_close(alone[0], made[1], atol=1e-4, rtol=0)


def test_classes_cycle_over_those_with_names():
    assert make().condition(range(4)).class_labels.tolist() == [0, 1, 0, 1]


def test_a_learned_variance_is_that_of_the_strong_evaluation():
    def evaluate(x_t, t, condition):
        return torch.cat(
            [x_t, condition.class_labels.reshape(-1, 1, 1, 1) + torch.zeros_like(x_t)], dim=1
        )

    pipeline = make()
    out = Guidance(weaker=WithoutLabel(2), scale=3.0)(evaluate, view_of(pipeline))
    assert torch.equal(out[:, 1].amax(dim=(1, 2)), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"classes": None}, ("cfg",), "unconditional; pag, sag, seg and auto need none"),
        ({"classes": 4}, ("cfg",), "null_class"),
        ({}, ("cfg", 1.0, {"null_class": 3}), "null_class=3 is not among the classes 0 ... 2"),
        ({}, ("apg",), "known are cfg, condition, pag, sag"),
        ({}, ("cfg", -1.0), "scale=-1.0 must be 0"),
        ({}, ("cfg", math.nan), "scale=nan"),
        ({}, ("cfg", 1.0, {"rescale": 1.5}), "rescale=1.5 must lie between 0 and 1"),
        ({}, ("cfg", 1.0, {"interval": (5, 5)}), "the lower one first"),
        ({}, ("cfg", 1.0, {"sigma": 1.0}), "no use for sigma; sag, seg has"),
        ({}, ("seg", 1.0, {"sigma": -1.0}), "sigma=-1.0 must be 0"),
        ({}, ("pag", 1.0, {"layers": ["mid"]}), "known are down_blocks"),
        ({}, ("sag", 1.0, {"layers": ["mid", "up"]}), "one layer, not at 2"),
        ({}, ("auto",), "needs a weaker model"),
    ],
)
def test_guidance_that_cannot_be_is_refused_in_words(config, arguments, message):
    *positional, more = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ValueError, match=message):
        make(**config).guidance(*positional, **more)


def test_networks_without_slots_are_refused_in_words():
    theirs = Pipeline(UNet2DModel(**SMALL | GREY), DDPMScheduler())
    with pytest.raises(ValueError, match=r"UNet\.from_pretrained"):
        theirs.guidance("pag")
    other = make(classes=None)
    with pytest.raises(ValueError, match="num_class_embeds=None, the model 3"):
        make().guidance("auto", weaker=other)
    with pytest.raises(ValueError, match="predicts 'epsilon', the model 'v_prediction'"):
        make().guidance("auto", weaker=make("epsilon"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (8, 16)}, r"images with size=\(8, 16\), the model \(8, 8\)"),
        ({"bit_depth": 16}, "images with bit_depth=16, the model 8"),
        ({"value_range": (0, 100)}, r"images with value_range=\(0, 100\), the model \(0, 255\)"),
        ({"labels": ("b", "a")}, r"images with labels=\('b', 'a'\), the model \('a', 'b'\)"),
    ],
    ids=str,
)
def test_a_weaker_model_of_other_images_is_refused(change, message):
    pipeline, weaker = make(), make()
    weaker.image_format = dataclasses.replace(weaker.image_format, **change)
    with pytest.raises(ValueError, match=message):
        pipeline.guidance("auto", weaker=weaker)


def test_a_weaker_model_goes_to_the_device_of_the_model():
    pipeline, weaker = make(), make()
    pipeline.unet.to("meta")
    pipeline.guidance("auto", weaker=weaker)
    assert {parameter.device.type for parameter in weaker.unet.parameters()} == {"meta"}


def test_a_weaker_model_without_names_of_its_classes_is_accepted():
    pipeline, weaker = make(), make()
    weaker.image_format = dataclasses.replace(weaker.image_format, labels=None)
    pipeline.guidance("auto", weaker=weaker)


def test_a_weaker_model_of_another_noise_schedule_is_refused():
    """Its t would be another amount of noise, in silence."""
    pipeline = make()
    for change in ({"beta_end": 0.03}, {"num_train_timesteps": 500}):
        weaker = make()
        weaker.scheduler = DDPMScheduler(prediction_type="v_prediction", **change)
        with pytest.raises(ValueError, match="trained with another noise schedule"):
            pipeline.guidance("auto", weaker=weaker)
