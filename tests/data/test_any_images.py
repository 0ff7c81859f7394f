"""Training and sampling on images that are neither square nor of 8 bits, from end to end."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_sa import Pipeline
from ddpm_sa.samplers.method import Method
from tests.support.runs import arguments, metrics, run_here

SIZE = (45, 61)
DEEP = np.random.default_rng(0).integers(0, 2**16, (6, *SIZE), dtype=np.uint16)
# Three levels: sizes must be multiples of 4.
UNET = (
    "{block_out_channels: [8, 8, 16], norm_num_groups: 2, layers_per_block: 1, "
    "down_block_types: [DownBlock2D, DownBlock2D, AttnDownBlock2D], "
    "up_block_types: [AttnUpBlock2D, UpBlock2D, UpBlock2D]}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on grey images of 45 x 61 and 16 bits, one of which is broken."""
    folder = tmp_path_factory.mktemp("deep")
    for i, image in enumerate(DEEP):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / "6.png").write_bytes(b"no image")
    run = tmp_path_factory.mktemp("runs") / "run"
    changes = {
        "steps": 2,
        "data__size": "45x61",
        "data__flip": "false",
        "data__on_error": "skip",
        "data__validation": 0.2,
        "model__unet": UNET,
    }
    run_here(arguments(folder, run, **changes))
    return run


def test_the_format_is_kept_and_the_network_sees_what_it_can_halve(run):
    kept = json.loads((run / "model" / "images.json").read_text())
    assert (kept["size"], kept["bit_depth"], kept["value_range"]) == ([45, 61], 16, [0, 65535])
    assert json.loads((run / "model" / "unet" / "config.json").read_text())["sample_size"] == [
        48,
        64,
    ]
    losses = [row[name] for row in metrics(run) for name in row if name.endswith("loss")]
    assert len(losses) > 1
    assert np.isfinite(losses).all()


def test_what_was_left_out_is_listed(run):
    (line,) = (run / "skipped.txt").read_text().splitlines()
    assert "6.png is not an image" in line


def test_samples_have_the_size_and_depth_of_the_data(run):
    pipeline = Pipeline.from_pretrained(run / "model")
    values = pipeline(num_images=2, steps=2, output_type="values").images
    assert isinstance(values, np.ndarray)
    assert (values.shape, values.dtype) == ((2, *SIZE, 1), np.uint16)
    assert np.unique(values % 256).size > 1  # not 8 bits in the guise of 16
    (picture,) = pipeline(num_images=1, steps=2).images
    assert (picture.mode, picture.size) == ("I;16", (61, 45))


def test_diffusers_loads_and_samples_it_at_the_networks_size(run):
    pipeline = diffusers.DDPMPipeline.from_pretrained(run / "model")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 48, 64, 1)
    assert np.isfinite(images).all()
    assert (
        "crop each to its first 45 rows and 61 columns" in (run / "model" / "README.md").read_text()
    )


def test_image_i_is_the_padded_networks_image_cropped(run):
    pipeline = Pipeline.from_pretrained(run / "model")
    method = Method(steps=2)
    (batch,) = pipeline.batches([3], method)
    *_, last = pipeline.denoise([3], method, 0)
    assert last.x_next.shape == (1, 1, 48, 64)
    torch.testing.assert_close(batch.images, last.x_next[..., :45, :61].clamp(-1, 1))
