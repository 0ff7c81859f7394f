"""What the page shows, against the library."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_sa import Pipeline, UNet, ablate_attention, record_attention
from sampling.common.trajectory import SampleSpec, Trajectory
from sampling.page.explorer import (
    Choice,
    Explorer,
    GeneratedImage,
    enlargement_factor,
    measure_maps,
    render_image,
    rms_difference,
)
from tests.support.reference import SMALL, randomise_

MID = "mid_block.attentions.0"


@pytest.fixture(scope="module")
def explorer():
    pipelines = {}
    for name, more in (("grey", {}), ("classes", {"num_class_embeds": 3})):
        config = {"sample_size": (8, 12), "in_channels": 1, "out_channels": 1}
        unet = randomise_(UNet(**SMALL | config | more)).eval()
        pipelines[name] = Pipeline(unet, DDPMScheduler())
        pipelines[name].set_progress_bar_config(disable=True)
    return Explorer(pipelines)


def made(explorer, choice):
    return GeneratedImage(choice, Trajectory.from_steps(list(explorer.generate(choice))))


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "heun", "euler"])
@pytest.mark.parametrize("model", ["grey", "classes"])
def test_a_look_back_is_what_was_recorded_while_the_image_was_made(explorer, model, scheduler):
    """euler and heun tell the network times between two of the training's."""
    spec = SampleSpec(seed=3, steps=4, scheduler=scheduler)
    pipeline, queries = explorer.pipelines[model], [(2, 11), (7, 0)]
    here = made(explorer, Choice(model, spec))
    with record_attention(pipeline.unet, queries=queries, heads="all") as maps:
        images = pipeline(num_images=1, steps=4, seed=3, scheduler=scheduler, output_type="pt")
    np.testing.assert_array_equal(here.trajectory.image / 2 + 0.5, images.images[0].numpy())
    for moment in range(len(here.trajectory.timesteps)):
        for layer, looks in explorer.attention_maps(here, moment, queries).items():
            assert looks.shape == (4, 2, 4, 6)
            np.testing.assert_array_equal(looks, maps[layer][moment][0].numpy())


def test_replaced_attention_is_of_its_own_image_alone(explorer):
    """Two people at once: one looks at attention as it is, one has switched it off."""
    spec = SampleSpec(steps=4)
    choices = [Choice("grey", spec), Choice("grey", spec, (MID,), "uniform")]
    walks = [explorer.generate(choice) for choice in choices]
    plain, other = (
        Trajectory.from_steps(steps) for steps in zip(*zip(*walks, strict=True), strict=True)
    )
    pipeline = explorer.pipelines["grey"]
    expected = pipeline(num_images=1, steps=4, output_type="pt").images[0].numpy() * 2 - 1
    with ablate_attention(pipeline.unet, "uniform", [MID]):
        replaced = pipeline(num_images=1, steps=4, output_type="pt").images[0].numpy() * 2 - 1
    np.testing.assert_allclose(plain.image, expected, atol=1e-6)
    np.testing.assert_allclose(other.image, replaced, atol=1e-6)
    assert rms_difference(plain.image, other.image) > 0.01
    looks = explorer.attention_maps(GeneratedImage(choices[1], other), 0, [(0, 0)])[MID]
    np.testing.assert_allclose(looks, np.full((4, 1, 4, 6), 1 / 24), rtol=1e-6)


def test_numbers_of_a_known_map():
    """Query A looks at itself alone; B half at A's place, 5 pixels of the grid away, half there."""
    maps = np.zeros((2, 4, 6), np.float32)
    maps[0, 0, 0] = 1
    maps[1, 0, 0] = maps[1, 3, 4] = 0.5
    rows = {name: values for name, *values in measure_maps(maps, [(0, 1), (7, 9)], (8, 12))}
    assert rows["entropy, nats"] == ["0.000", f"{np.log(2):.3f}"]
    assert rows["mean distance, pixels"] == ["0.000", "5.000"]
    assert rows["share on the 3 × 3 around"] == ["100.0%", "50.0%"]
    assert rows["attends most to (y, x)"] == ["0-1, 0-1", "0-1, 0-1"]
    assert rows["share there"] == ["100.0%", "50.0%"]
    assert rows["the two overlap by"] == ["50.0%", ""]


def test_a_pixel_is_enlarged_to_a_square_of_its_value():
    image = np.linspace(-1, 1, 96, dtype=np.float32).reshape(1, 8, 12)
    large = np.asarray(render_image(image, []))
    factor = enlargement_factor((8, 12))
    assert large.shape == (8 * factor, 12 * factor, 3)
    blocks = large.reshape(8, factor, 12, factor, 3)
    assert (blocks == blocks[:, :1, :, :1, :1]).all()
    np.testing.assert_allclose(blocks[:, 0, :, 0, 0], image[0] * 127.5 + 127.5, atol=0.51)


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ("/etc/passwd", SampleSpec(), "the model must be one of grey, classes"),
        ("grey", SampleSpec(steps=100_000), "must lie between 1 and 250 on this page"),
        ("grey", SampleSpec(steps=0), "must lie between 1 and 250 on this page"),
        ("grey", SampleSpec(seed=-1), "0 or greater"),
        ("grey", SampleSpec(scheduler="rm"), "unknown"),
        ("classes", SampleSpec(class_label=3), "class label 3 is not among 0 ... 2"),
        ("grey", SampleSpec(class_label=0), "this network is unconditional"),
    ],
)
def test_what_cannot_be_made_is_refused(explorer, model, spec, message):
    with pytest.raises(ValueError, match=message):
        next(explorer.generate(Choice(model, spec)))


def test_large_images_have_fewer_steps_so_that_memory_holds_them():
    config = {"sample_size": 512, "in_channels": 3, "out_channels": 3}
    pipeline = Pipeline(UNet(**SMALL | config), DDPMScheduler())
    steps = Explorer({"large": pipeline}).max_steps("large")
    assert 2 * steps * 3 * 512 * 512 * 4 <= 64 * 2**20
    assert steps >= 1


@torch.no_grad()
def test_a_pixel_outside_is_refused(explorer):
    here = made(explorer, Choice("grey", SampleSpec(steps=1)))
    with pytest.raises(ValueError, match="outside the image of 8 x 12"):
        explorer.attention_maps(here, 0, [(8, 0)])
