from types import SimpleNamespace

import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config

from ddpm_sa import Pipeline, UNet
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.editing.editor import Editor
from ddpm_sa.samplers.method import Method
from ddpm_sa.samplers.schedulers import SCHEDULERS
from tests.support.reference import SMALL, randomise_, scales_between

BASE = DDPMScheduler(clip_sample=False)


class Oracle(ModelMixin, ConfigMixin):
    """The exact best network for N(0, Σ), whose pixels are alike where they are near."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 8,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (1,),
        num_class_embeds: int | None = None,
        class_embed_type: str | None = None,
    ) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.covariance = covariance(sample_size)
        schedule = NoiseSchedule.from_scheduler(BASE)
        self.log_sigma = (schedule.s / schedule.a).log()

    def forward(self, x_t, t, class_labels=None):
        a, s = (scale.squeeze() for scale in scales_between(self.log_sigma, t[:1].double()))
        whole = a**2 * self.covariance + s**2 * torch.eye(len(self.covariance))
        flat = x_t.double().flatten(1)
        eps = s * torch.linalg.solve(whole, flat.mT).mT
        return SimpleNamespace(sample=eps.reshape(x_t.shape).float())


def tables(schedule):
    return schedule.a, schedule.s


def covariance(size):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    place = torch.stack([y, x], -1).reshape(-1, 2).double()
    return 0.09 * torch.exp(-(torch.cdist(place, place) ** 2) / 8) + 1e-3 * torch.eye(size**2)


def editor(steps=50, scheduler="ddim", seed=0, options=None):
    pipeline = Pipeline(Oracle(), BASE)
    pipeline.set_progress_bar_config(disable=True)
    method = Method(steps=steps, scheduler=scheduler, scheduler_options=options or {})
    return Editor(pipeline=pipeline, method=method, seed=seed)


def draw(count, seed=0):
    """Images of the data."""
    noise = torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)).double()
    root = torch.linalg.cholesky(covariance(8))
    return (noise @ root.mT).reshape(count, 1, 8, 8).float()


LEFT = torch.zeros(8, 8, dtype=torch.bool)
LEFT[:, :4] = True  # unknown


def test_inpainting_keeps_known_pixels_exactly():
    known = draw(3)
    made = editor(10, "ddpm").inpaint(known, LEFT, repeats=2)
    assert torch.equal(made[..., 4:], known[..., 4:])
    assert (made[..., :4] - known[..., :4]).abs().max() > 0.1


def test_inpainting_nears_the_closed_form_posterior_as_steps_are_repeated():
    known = draw(1).expand(64, 1, 8, 8)
    hidden, seen = LEFT.flatten(), ~LEFT.flatten()
    sigma = covariance(8)
    gain = sigma[hidden][:, seen] @ torch.linalg.inv(sigma[seen][:, seen])
    mean = gain @ known[0].flatten()[seen].double()
    rest = sigma[hidden][:, hidden] - gain @ sigma[seen][:, hidden]

    def errors(repeats):
        made = editor(100, "ddpm").inpaint(known, LEFT, repeats).double().flatten(1)[:, hidden]
        # beside the seam, where the posterior says most
        seam = torch.arange(32) % 4 == 3
        spread = (made.var(0) / rest.diagonal())[seam].mean()
        return (made.mean(0) - mean)[seam].abs().mean().item(), spread.item()

    (once, _), (often, spread) = errors(1), errors(12)
    prior = mean.reshape(8, 4)[:, 3].abs().mean().item()
    assert often < once / 2
    assert often < 0.25 * prior
    assert 0.4 < spread < 1.6


def test_sdedit_of_strength_0_returns_the_images_and_of_strength_1_forgets_them():
    images = draw(64)
    made = editor()
    assert torch.equal(made.sdedit(images, 0.0), images)
    correlations = []
    for strength in (0.1, 0.5, 1.0):
        edited = made.sdedit(images, strength)
        both = torch.stack([images.flatten(), edited.flatten()])
        correlations.append(torch.corrcoef(both)[0, 1].item())
        # whatever the strength, the result is of the data
        assert edited.var().item() == pytest.approx(images.var().item(), rel=0.25)
    assert correlations[0] > 0.8
    assert correlations[0] > correlations[1] > correlations[2]
    assert abs(correlations[2]) < 0.1


@pytest.mark.slow
def test_sdedit_with_posterior_noise_has_the_closed_forms_correlation():
    """x_t = a x_0 + s eps, then x_0' from the exact posterior: Cov(x_0, x_0') = Σ a² (...)^-1 Σ."""
    images, level = draw(4096), 400
    edited = editor(250, "ddpm").sdedit(images, level / 999)
    a, s = (v[level] for v in tables(NoiseSchedule.from_scheduler(BASE)))
    sigma = covariance(8)
    whole = a**2 * sigma + s**2 * torch.eye(64)
    expected = (a**2 * sigma @ torch.linalg.solve(whole, sigma)).diagonal().mean()
    found = (images * edited).flatten(1).mean(0).double().mean()
    assert found.item() == pytest.approx(expected.item(), rel=0.1)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "pndm"])
def test_every_scheduler_begins_within(name):
    images = draw(8)
    edited = editor(50, name).sdedit(images, 0.02)  # little noise, little change
    assert (edited - images).abs().mean() < 0.06
    half = editor(50, name).sdedit(images, 0.5)
    assert half.std().item() == pytest.approx(images.std().item(), rel=0.35)


def test_interpolation_ends_at_its_images_and_is_smooth():
    one, other = draw(2).split(1)
    weights = [0.0, 0.25, 0.5, 0.75, 1.0]
    near = editor(100).interpolate(one, other, 20, weights)
    assert (near[0] - one[0]).abs().mean() < 0.06
    assert (near[-1] - other[0]).abs().mean() < 0.06
    far = editor(100).interpolate(one, other, 500, weights)
    steps = (far[1:] - far[:-1]).abs().mean(dim=(1, 2, 3))
    assert steps.max() < 2 * steps.min()
    # The ends are the edits of either image alone.
    assert (far[0] - editor(100).interpolate(one, one, 500, [0.0])[0]).abs().max() < 1e-4


def test_variations_share_more_the_lower_their_level():
    spread = []
    for level in (900, 500, 100):
        made = editor(50, "ddpm").variations(3, 16, level)
        assert (made[0] - made[1]).abs().max() > 1e-3
        spread.append(made.var(0).mean().item())
    assert spread[0] > spread[1] > spread[2]
    at_the_end = editor(50, "ddpm").variations(3, 2, 0)
    alone = editor(50, "ddpm").pipeline([3][0] + 1, 50, scheduler="ddpm", output_type="pt").images
    torch.testing.assert_close(at_the_end[0] / 2 + 0.5, alone[3], atol=1e-4, rtol=0)


def test_progressive_images_begin_blurred_and_end_as_the_image():
    made = editor(50)
    walk = made.progressive([0, 1], 6)
    assert walk.shape == (2, 6, 1, 8, 8)
    final = made.pipeline(2, 50, output_type="pt").images * 2 - 1
    torch.testing.assert_close(walk[:, -1], final, atol=1e-5, rtol=0)
    errors = (walk - final[:, None]).square().mean(dim=(0, 2, 3, 4))
    assert (errors[1:] <= errors[:-1]).all()
    assert made.progressive([0], 500).shape[1] == 50


def test_inversions_round_trip_error_falls_with_the_steps():
    images, errors = draw(4), []
    for steps in (10, 40, 160):
        made = editor(steps)
        x_T = made.invert(images)
        errors.append((made.reconstruct(x_T) - images).abs().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.01
    # The latents are noise: the forward process leaves a² Σ + s² of the data, 1 within sampling.
    x_T = editor(500).invert(draw(200))
    assert x_T.std().item() == pytest.approx(1.0, abs=0.05)


def test_images_that_cannot_be_halved_are_edited_in_their_own_size():
    network = randomise_(UNet(**SMALL | {"sample_size": (7, 8), "in_channels": 3}))
    from ddpm_sa.image_format import ImageFormat

    pipeline = Pipeline(
        network, DDPMScheduler(prediction_type="v_prediction"), ImageFormat(channels=3, size=(7, 8))
    )
    made = Editor(pipeline=pipeline, method=Method(steps=4, scheduler="ddpm"))
    images = torch.rand(1, 3, 7, 8) * 2 - 1
    assert made.sdedit(images, 0.5).shape == images.shape
    unknown = torch.zeros(7, 8, dtype=torch.bool)
    unknown[:3] = True
    assert torch.equal(made.inpaint(images, unknown, 1)[..., 3:, :], images[..., 3:, :])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda e: e.sdedit(draw(1), 1.5), "strength=1.5 must lie between 0 and 1"),
        (lambda e: e.sdedit(torch.zeros(1, 3, 8, 8), 0.5), "have 1 channels and 8 x 8 pixels"),
        (lambda e: e.interpolate(draw(1), draw(1), 1000, [0.5]), "level=1000 must be a timestep"),
        (lambda e: e.inpaint(draw(1), LEFT[:7]), r"\(7, 8\) is of another size .* 8 x 8"),
        (lambda e: e.inpaint(draw(1), LEFT | True), "must leave some pixels"),
        (lambda e: e.inpaint(draw(1), LEFT, repeats=0), "repeats=0 must be at least 1"),
        (lambda e: e.variations(0, 2, 500), "draws no noise.*use ddpm"),
        (lambda e: editor(10, "heun").inpaint(draw(1), LEFT), "'heun' cannot go back a step"),
        (lambda e: editor(10, "pndm").sdedit(draw(1), 0.5), "'pndm' cannot begin within"),
    ],
)
def test_edits_that_cannot_be_are_refused_in_words(edit, message):
    with pytest.raises(ValueError, match=message):
        edit(editor(10))


TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize("level", [0, 50, 98])
def test_levels_below_the_lowest_timestep_are_refused_and_the_lowest_is_named(level):
    trailing = editor(10, "ddim", options=TRAILING)  # timesteps 999, 899, ... 99
    for edit in (
        lambda: trailing.interpolate(draw(1), draw(1), level, [0.5]),
        lambda: trailing.sdedit(draw(1), (level + 0.5) / 999),
    ):
        with pytest.raises(ValueError, match=f"level={level} lies below .* 99"):
            edit()
    assert trailing.interpolate(draw(1), draw(1), 99, [0.5]).isfinite().all()


def test_a_level_starts_at_the_nearest_timestep_at_or_below():
    trailing = editor(10, "ddim", options=TRAILING)
    assert [int(trailing.start(level).t) for level in (99, 198, 199, 999)] == [99, 99, 199, 999]


def test_inpainting_reuses_deep_features_where_it_is_told_to():
    torch.manual_seed(0)
    unet = randomise_(UNet(**SMALL, sample_size=(8, 16)))
    pipeline = Pipeline(unet, BASE)
    pipeline.set_progress_bar_config(disable=True)
    calls = {"conv_in": 0, "mid_block": 0}
    for name in calls:
        getattr(unet, name).register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
    size = pipeline.image_format.size
    images, unknown = torch.zeros(1, 3, *size), torch.zeros(size, dtype=torch.bool)
    unknown[:, :3] = True
    for interval, deep in ((1, 8), (4, 2)):
        calls.update(conv_in=0, mid_block=0)
        method = Method(steps=4, scheduler="ddpm", cache_interval=interval)
        Editor(pipeline=pipeline, method=method).inpaint(images, unknown, repeats=2)
        assert calls == {"conv_in": 8, "mid_block": deep}
