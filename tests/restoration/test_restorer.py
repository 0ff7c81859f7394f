"""What does not change a sample, which networks and schedulers restore, and what is refused."""

import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_sa import Pipeline, UNet
from ddpm_sa.errors import UserError
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.restoration import (
    DDNM,
    DPS,
    BlockMean,
    DiffPIR,
    GaussianBlur,
    LinearOperator,
    Mask,
    PiGDM,
    RePaint,
    Restorer,
)
from ddpm_sa.samplers.method import Method
from tests.support.reference import SMALL, randomise_

SHAPE = (3, 8, 8)
TOP = torch.arange(8)[:, None].expand(8, 8) < 4
MASK, BLUR = Mask(SHAPE, TOP), GaussianBlur(SHAPE, 1.0)
METHODS = [
    DDNM(),
    PiGDM("score"),
    PiGDM(),
    DiffPIR(zeta=None),
    DiffPIR(zeta=0.5),
    DPS(),
    RePaint(2),
]


def pipeline_of(scheduler=None, **config):
    """Ours, with weights that make plausible images."""
    network = randomise_(UNet(**SMALL | {"sample_size": 8} | config))
    network.conv_out.weight.data *= 0.3
    size = network.config["sample_size"]
    size = (size, size) if isinstance(size, int) else size
    base = DDPMScheduler(prediction_type="v_prediction", **scheduler or {})
    pipeline = Pipeline(network, base, ImageFormat(channels=3, size=size))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


PIPELINE = pipeline_of()


def restorer(pipeline=PIPELINE, scheduler="ddpm", steps=4, **settings):
    return Restorer(pipeline=pipeline, method=Method(steps=steps, scheduler=scheduler, **settings))


def images(count, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def operator_for(restoration):
    return (MASK, 0.0) if isinstance(restoration, RePaint) else (BLUR, 0.1)


@pytest.mark.parametrize("restoration", METHODS, ids=str)
def test_a_sample_depends_on_neither_the_batch_nor_the_others(restoration):
    operator, sigma = operator_for(restoration)
    made = restorer()
    y = made.degrade(images(3), operator, sigma)
    together = made.restore(y, operator, restoration, sigma, 2, batch_size=6)
    assert together.shape == (3, 2, *SHAPE)
    assert together.isfinite().all()
    assert (together[0, 0] - together[0, 1]).abs().max() > 1e-3
    one_by_one = made.restore(y, operator, restoration, sigma, 2, batch_size=1)
    uneven = made.restore(y, operator, restoration, sigma, 3, batch_size=4)[:, :2]
    alone = made.restore(y[1:2], operator, restoration, sigma, 2, indices=[1])
    for other in (one_by_one, uneven):
        torch.testing.assert_close(together, other, atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    again = made.restore(y, operator, restoration, sigma, 2, batch_size=6)
    assert torch.equal(together, again)
    other_seed = Restorer(pipeline=PIPELINE, method=made.method, seed=1)
    assert not torch.equal(together, other_seed.restore(y, operator, restoration, sigma, 2))


def test_noise_of_a_measurement_is_each_images_own():
    made = restorer()
    clean, noisy = made.degrade(images(3), BLUR), made.degrade(images(3), BLUR, 0.5)
    added = noisy - clean
    assert added.std().item() == pytest.approx(0.5, rel=0.1)
    assert (added[0] - added[1]).abs().max() > 0.1
    alone = made.degrade(images(3)[2:], BLUR, 0.5, indices=[2])
    torch.testing.assert_close(alone, noisy[2:], atol=1e-6, rtol=0)


def test_classes_restore_by_class():
    pipeline = pipeline_of(num_class_embeds=3)
    made = restorer(pipeline)
    y = made.degrade(images(2), BLUR, 0.1)

    def restored_as(classes, **settings):
        condition = None if classes is None else pipeline.condition([0, 1], classes)
        return made.restore(y, BLUR, PiGDM(), 0.1, 2, condition=condition, **settings)

    by_default, swapped = restored_as(None), restored_as([0, 2], batch_size=3)
    torch.testing.assert_close(by_default, restored_as([0, 1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(by_default[0], swapped[0], atol=1e-4, rtol=0)
    assert (by_default[1] - swapped[1]).abs().max() > 1e-3


def test_guidance_and_reused_features_apply_to_restoration():
    guided = Method(steps=4, scheduler="ddpm", guide=PIPELINE.guidance("pag", 3.0))
    y = restorer().degrade(images(1), BLUR, 0.1)
    plain = restorer().restore(y, BLUR, PiGDM("score"), 0.1, 1)
    other = Restorer(pipeline=PIPELINE, method=guided).restore(y, BLUR, PiGDM("score"), 0.1, 1)
    reused = restorer(cache_interval=2).restore(y, BLUR, DiffPIR(zeta=None), 0.1, 1)
    assert (plain - other).abs().max() > 1e-3
    assert (reused - restorer().restore(y, BLUR, DiffPIR(zeta=None), 0.1, 1)).abs().max() > 1e-5


@pytest.mark.parametrize("restoration", [*METHODS[:-1], RePaint(1)], ids=str)
def test_images_that_cannot_be_halved_are_restored_in_their_own_size(restoration):
    shape = (3, 7, 8)
    made = restorer(pipeline_of(sample_size=shape[1:]))
    operator, sigma = Mask(shape, TOP[:7]), 0.0
    y = made.degrade(images(1, shape), operator, sigma)
    samples = made.restore(y, operator, restoration, sigma, 2)
    assert samples.shape == (1, 2, *shape)
    if isinstance(restoration, DDNM | RePaint):
        assert (operator(samples[0]) - y).abs().max() < 1e-4


def test_a_network_that_learned_its_variance_restores():
    pipeline = pipeline_of({"variance_type": "learned_range"}, out_channels=6)
    made = restorer(pipeline, scheduler="ddpm")
    y = made.degrade(images(1), BLUR, 0.1)
    assert made.restore(y, BLUR, PiGDM("score"), 0.1, 1).isfinite().all()
    with pytest.raises(UserError, match="variance_type fixed_small"):
        made.restore(y, BLUR, DDNM(), 0.1, 1)
    fixed = restorer(pipeline, scheduler_options={"variance_type": "fixed_small"})
    assert fixed.restore(y, BLUR, DDNM(), 0.1, 1).isfinite().all()


class Crooked(LinearOperator):
    def forward(self, x):
        return x.mean(3)

    def adjoint(self, y):
        return 2 * super().adjoint(y)


class Own(LinearOperator):
    def forward(self, x):
        return x.mean(3)


def restored(operator, restoration, sigma=0.0, scheduler="ddpm", y=None, **settings):
    made = restorer(scheduler=scheduler, **settings)
    y = operator(images(1, operator.image_shape)) if y is None else y
    return made.restore(y, operator, restoration, sigma, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: restored(BLUR, PiGDM("score"), -0.1), "sigma=-0.1 must be 0 or greater"),
        (lambda: restored(BLUR, PiGDM("score"), float("nan")), "sigma=nan must be 0 or greater"),
        (lambda: restored(Crooked(SHAPE), DDNM()), "the adjoint of Crooked is none: <A x, y> = "),
        (lambda: restored(BLUR, RePaint()), "the measurement is no mask of pixels; use another"),
        (lambda: restored(MASK, RePaint(), 0.1), "with sigma=0.1 their noise too"),
        (lambda: restored(MASK, RePaint(0)), "repeats=0 must be at least 1"),
        (
            lambda: restored(BLUR, DPS(), 0.1, "heun"),
            "method=dps changes single steps, which scheduler='heun' does not allow; use ddpm or "
            "ddim",
        ),
        (lambda: restored(BLUR, DDNM(), 0.1, "euler"), "method=ddnm changes single steps"),
        (lambda: restored(BLUR, DDNM(), 0.1, "ddim"), "draws none; use ddpm, or ddim with eta"),
        (lambda: restored(Own(SHAPE), DDNM(), 0.1), "the singular values of Own are not known"),
        (lambda: restored(BLUR, PiGDM("score"), cache_interval=2), "cache_interval=2 must be 1"),
        (
            lambda: restored(GaussianBlur((1, 8, 8), 1.0), PiGDM("score")),
            r"images of shape \(1, 8, 8\) does not fit the model, whose images are of \(3, 8, 8\)",
        ),
        (
            lambda: restored(BlockMean(SHAPE, 2), PiGDM("score"), y=images(1)),
            r"measurements of shape \(3, 8, 8\) do not fit: the operator's are \(3, 4, 4\)",
        ),
        (
            lambda: restorer().degrade(images(1, (1, 8, 8)), BLUR),
            r"images of shape \(1, 8, 8\) do not fit",
        ),
        (lambda: DiffPIR(0), "prior_weight=0 must be above 0"),
        (lambda: DiffPIR(zeta=2), "zeta=2 must lie between 0 and 1"),
        (lambda: DPS(-1), "step_size=-1 must be above 0"),
        (lambda: PiGDM("both"), "step='both' must be published, score"),
        (lambda: restored(BLUR, PiGDM(), 0.1, "heun"), "method=pigdm changes single steps"),
    ],
)
def test_what_cannot_be_restored_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
