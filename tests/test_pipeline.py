import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm_sa import Pipeline, UNet
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.samplers.schedulers import SCHEDULERS

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TWO_CHANNELS = {"in_channels": 2, "out_channels": 2}


def make(network=UNet, image_format=None, timesteps=1000, **config):
    torch.manual_seed(0)
    # With v an untrained network's images stay within [-1, 1], where clipping hides nothing.
    scheduler = DDPMScheduler(timesteps, prediction_type="v_prediction")
    pipeline = Pipeline(network(**SMALL | config), scheduler, image_format)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tensors(pipeline, **arguments):
    images = pipeline(**{"num_images": 2, "steps": 5, "output_type": "pt"} | arguments).images
    assert images.isfinite().all()
    return images


def assert_same_weights(ours, theirs):
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("network", [UNet, UNet2DModel])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "ddpm", "euler_ancestral"])
def test_an_image_is_the_same_in_any_batch_and_company(scheduler, network):
    pipeline = make(network)
    whole = tensors(pipeline, num_images=9, batch_size=8, scheduler=scheduler)
    assert ((whole > 0) & (whole < 1)).float().mean() > 0.5
    for batch_size in (1, 3):
        again = tensors(pipeline, num_images=9, batch_size=batch_size, scheduler=scheduler)
        torch.testing.assert_close(again, whole, atol=1e-4, rtol=0)
    others = tensors(pipeline, indices=[7, 100, 2], scheduler=scheduler)
    torch.testing.assert_close(others[[0, 2]], whole[[7, 2]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "ddpm", "euler_ancestral"])
def test_noise_has_the_same_bits_in_any_batch(scheduler):
    # A network that says 0 leaves nothing but elementwise arithmetic with the noise.
    pipeline = make()
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
    whole = tensors(pipeline, num_images=9, scheduler=scheduler)
    alone = [tensors(pipeline, indices=[index], scheduler=scheduler) for index in range(9)]
    assert torch.equal(torch.cat(alone), whole)


def test_seeds_and_images_do_not_share_noise():
    pipeline = make()
    images = [tensors(pipeline, indices=[index], seed=seed) for seed, index in [(0, 5), (5, 0)]]
    assert not torch.allclose(*images, atol=1e-2)


def test_output_types_are_of_the_same_images():
    pipeline = make()
    pt = pipeline(3, steps=2, output_type="pt").images
    array = pipeline(3, steps=2, output_type="np").images
    pictures = pipeline(3, steps=2).images
    assert pt.shape == (3, 1, 8, 8)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    for picture, image in zip(pictures, array, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), (image[..., 0] * 255).round())


def test_sampling_is_without_dropout_and_leaves_training_on():
    pipeline = make(dropout=0.5)
    pipeline.unet.train()
    first, second = tensors(pipeline), tensors(pipeline)
    assert torch.equal(first, second)
    assert pipeline.unet.training


def test_a_bfloat16_network_makes_nearly_the_same_float32_images():
    pipeline = make()
    exact = tensors(pipeline)
    pipeline.unet.bfloat16()
    rough = tensors(pipeline)
    assert rough.dtype == torch.float32
    # bfloat16 keeps 8 bits
    torch.testing.assert_close(rough, exact, atol=2**-5, rtol=0)


def test_classes_cycle_over_the_images_unless_they_are_given():
    pipeline = make(num_class_embeds=3)
    cycled = tensors(pipeline, num_images=4)
    given = tensors(pipeline, num_images=4, class_labels=[0, 1, 2, 0])
    assert torch.equal(cycled, given)
    ones = tensors(pipeline, num_images=4, class_labels=1, batch_size=3)
    torch.testing.assert_close(ones[1], cycled[1], atol=1e-4, rtol=0)
    assert (ones - cycled).abs().amax(dim=(1, 2, 3))[[0, 2, 3]].min() > 1e-3


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, {"num_images": 0}, "at least one"),
        ({}, {"indices": [-1]}, "each 0 or greater"),
        ({"num_class_embeds": 3}, {"indices": []}, "at least one number"),
        ({}, {"batch_size": 0}, "batch_size=0"),
        ({}, {"steps": 1001}, "1000"),
        ({}, {"scheduler": "none"}, "known are ddpm, ddim, dpmsolver"),
        ({}, {"output_type": "png"}, "pil, np, pt"),
        ({}, {"class_labels": 0}, "this network is unconditional"),
        ({"num_class_embeds": 3}, {"class_labels": 3}, r"3 is not among 0 \.\.\. 2"),
        ({"num_class_embeds": 3}, {"class_labels": [0] * 3}, "3 class_labels for 16 images"),
        (TWO_CHANNELS, {}, "output_type='values'"),
    ],
)
def test_calls_that_cannot_be_are_refused_in_words(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**config)(**arguments)


def test_diffusers_call_names_work():
    pipeline, steps = make(), []

    def see(ours, number, t, tensors):
        assert ours is pipeline
        assert tensors["latents"].shape == tensors["x_0"].shape == (2, 1, 8, 8)
        steps.append((number, int(t)))

    named = tensors(pipeline, num_inference_steps=3, callback_on_step_end=see)
    assert torch.equal(named, tensors(pipeline, steps=3))
    assert steps == [(0, 666), (1, 333), (2, 0)]


def test_a_callbacks_latents_take_the_place_of_the_state():
    pipeline = make()
    black = tensors(pipeline, callback_on_step_end=lambda *a: {"latents": -torch.ones(2, 1, 8, 8)})
    assert not black.any()
    last = tensors(
        pipeline,
        steps=4,
        callback_on_step_end=lambda _, n, __, now: {"latents": now["latents"] / (1 + (n == 3))},
    )
    torch.testing.assert_close(last, tensors(pipeline, steps=4) / 2 + 0.25, atol=1e-6, rtol=0)


def test_images_that_are_not_finite_are_an_error():
    pipeline = make()
    torch.nn.init.constant_(pipeline.unet.conv_out.bias, torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        pipeline(1, steps=2)


# Folders

CHECK_WITHOUT_US = """
import sys
sys.modules["ddpm_sa"] = None
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file

for folder in sys.argv[1:]:
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert type(pipeline.unet) is UNet2DModel
    weights, facts = load_file(f"{folder}.weights"), load_file(f"{folder}.facts")
    assert list(pipeline.unet.state_dict()) == [*pipeline.unet.state_dict()]
    assert weights.keys() == pipeline.unet.state_dict().keys()
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    with torch.no_grad():
        theirs = pipeline.unet(facts["x"], facts["t"], facts.get("labels")).sample
    scale = facts["output"].abs().amax(dim=(1, 2, 3), keepdim=True)
    assert ((theirs - facts["output"]).abs() <= 1e-5 * scale).all()
    if "labels" not in facts:
        images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
        assert images.shape == (2, 8, 8, facts["x"].shape[1])
    lines = open(f"{folder}/README.md").read().split("```python")[2].split("```")[0]
    exec(lines.replace("path/to/this/folder", folder), {})
print("opened", len(sys.argv) - 1)
"""


def test_diffusers_alone_opens_and_samples_what_we_save(tmp_path):
    kinds = {"grey": {}, "two": TWO_CHANNELS, "classes": {"num_class_embeds": 3}}
    for name, config in kinds.items():
        pipeline = make(timesteps=6, **config)
        pipeline.save_pretrained(tmp_path / name)
        unet, count = pipeline.unet.eval(), 4
        facts = {"x": torch.randn(count, unet.config.in_channels, 8, 8), "t": torch.arange(count)}
        labels = torch.arange(count) % 3 if name == "classes" else None
        with torch.no_grad():
            facts["output"] = unet(facts["x"], facts["t"], labels).sample
        save_file(
            facts | ({} if labels is None else {"labels": labels}), tmp_path / f"{name}.facts"
        )
        save_file(unet.state_dict(), tmp_path / f"{name}.weights")
    done = subprocess.run(
        [sys.executable, "-c", CHECK_WITHOUT_US, *(str(tmp_path / name) for name in kinds)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "opened 3"


def test_a_saved_folder_opens_as_it_was(tmp_path):
    image_format = ImageFormat(channels=1, size=(8, 16), labels=("cat", "dog"))
    pipeline = make(image_format=image_format, num_class_embeds=2, sample_size=(8, 16))
    pipeline.save_pretrained(tmp_path / "runs" / "model", grid=Image.new("L", (8, 8)))
    again = Pipeline.from_pretrained(tmp_path / "runs" / "model")
    again.set_progress_bar_config(disable=True)
    assert_same_weights(again.unet, pipeline.unet)
    assert again.image_format == image_format
    for scheduler in SCHEDULERS.keys() - {"pndm"}:
        arguments = {"steps": 4, "scheduler": scheduler}
        torch.testing.assert_close(
            tensors(again, **arguments), tensors(pipeline, **arguments), atol=1e-6, rtol=0
        )
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["model"]
    card = (tmp_path / "runs" / "model" / "README.md").read_text()
    assert "samples.png" in card
    assert "cat, dog" in card


def test_the_cards_lines_for_this_package_run(tmp_path):
    make().save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    lines = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    names = {}
    exec(lines.replace("path/to/this/folder", str(tmp_path / "model")).replace("50", "2"), names)
    assert len(names["images"]) == 16


@pytest.mark.parametrize("config", [{}, {"num_class_embeds": 3}, {"sample_size": (8, 16)}])
def test_folders_saved_by_diffusers_open(config, tmp_path):
    theirs = UNet2DModel(**SMALL | config)
    DDPMPipeline(theirs, DDPMScheduler(beta_end=0.03)).save_pretrained(tmp_path / "model")
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    assert_same_weights(pipeline.unet, theirs)
    assert pipeline.scheduler.config.beta_end == 0.03
    assert pipeline.image_format.size == (8, 16 if "sample_size" in config else 8)


def test_a_repository_with_its_files_at_the_root_opens(tmp_path):
    theirs = UNet2DModel(**SMALL)
    theirs.save_pretrained(tmp_path)
    DDPMScheduler(variance_type="fixed_large").save_pretrained(tmp_path)
    pipeline = Pipeline.from_pretrained(tmp_path)
    assert_same_weights(pipeline.unet, theirs)
    assert pipeline.scheduler.config.variance_type == "fixed_large"


@pytest.mark.parametrize("config", [{"attention_kind": "sagan"}, {"num_attention_heads": 2}])
def test_what_diffusers_has_not_is_saved_as_ours(config, tmp_path):
    pipeline = make(**config)
    pipeline.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model").unet
    assert_same_weights(again, pipeline.unet)
    assert {name: again.config[name] for name in config} == config
    assert "diffusers alone cannot open it" in (tmp_path / "model" / "README.md").read_text()


def test_saving_replaces_a_model_and_nothing_else(tmp_path):
    folder = tmp_path / "model"
    make().save_pretrained(folder)
    changed = make(num_class_embeds=3)
    changed.save_pretrained(folder)
    assert_same_weights(Pipeline.from_pretrained(folder).unet, changed.unet)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        make().save_pretrained(folder)
    assert (folder / "thesis.tex").exists()


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    class Failing(Image.Image):
        def save(self, *_):
            raise OSError("the disk is full")

    folder, first = tmp_path / "model", make()
    first.save_pretrained(folder)
    with pytest.raises(OSError, match="disk"):
        make(num_class_embeds=3).save_pretrained(folder, grid=Failing())
    assert_same_weights(Pipeline.from_pretrained(folder).unet, first.unet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def break_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "is not a local folder"),
        (lambda folder: shutil.rmtree(folder / "unet"), r"unet/config\.json nor config\.json"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), r"scheduler_config\.json"),
        (
            lambda folder: (folder / "scheduler/scheduler_config.json").write_text(
                '{"_class_name": "Mine"}'
            ),
            "'Mine', which is not a scheduler",
        ),
        (lambda folder: (folder / "images.json").write_text("{"), r"images\.json"),
        (break_weights, r"missing.*conv_in\.weight"),
    ],
)
def test_what_is_no_whole_model_is_refused_by_what_it_lacks(harm, message, tmp_path):
    make().save_pretrained(tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(tmp_path / "model")


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="sample_size"):
        make(sample_size=None)
    with pytest.raises(ValueError, match="3 channels, the network 1"):
        make(image_format=ImageFormat(channels=3, size=(8, 8)))


@pytest.mark.parametrize(("in_channels", "out_channels"), [(3, 1), (1, 3), (3, 5), (1, 2)])
def test_outputs_that_are_no_image_are_refused(in_channels, out_channels):
    unet = UNet(**SMALL | {"in_channels": in_channels, "out_channels": out_channels})
    with pytest.raises(ValueError, match=f"out_channels={out_channels}.*{in_channels}"):
        Pipeline(unet, DDPMScheduler())


def test_outputs_twice_as_wide_are_those_of_a_learned_variance():
    unet = UNet(**SMALL | {"in_channels": 3, "out_channels": 6})
    assert Pipeline(unet, DDPMScheduler(variance_type="learned_range"))
