import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_sa import UNet
from ddpm_sa.data.load import open_images
from ddpm_sa.diffusion.loss import denoising_loss
from ddpm_sa.diffusion.prediction import prediction
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.image_format import to_tensor
from tests.support.runs import arguments, checkpoint, metrics, run_here
from tests.support.workers import Workers
from training.config import DataConfig
from training.draws import validation_draw

CHANGES = {
    "data__validation": 0.25,
    "validate_every": 4,
    "num_validation": 7,
    "save_every": 1,
    "keep_checkpoints": 9,
}


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """Validated at step 4, and at 6, its last."""
    run = tmp_path_factory.mktemp("validated") / "run"
    run_here(arguments(pictures, run, **CHANGES))
    return run


def validations(run):
    return [row for row in metrics(run) if "validation_loss" in row]


def test_validation_is_the_loss_of_the_averaged_weights_on_held_out_images(run, pictures):
    images = open_images(DataConfig(source=str(pictures), size=8, validation=0.25)).validation
    assert images is not None
    draw = validation_draw(0, images.length, 7, 1000)
    network = UNet.from_pretrained(run / "model")
    for row in validations(run):
        network.load_state_dict(checkpoint(run, int(row["step"]), "ema"))
        losses = [
            denoising_loss(
                network.eval(),
                NoiseSchedule.linear(),
                prediction("epsilon"),
                to_tensor(images.read(draw.indices[[i]])),
                draw.noise((3, 8, 8))[[i]],
                torch.from_numpy(draw.t[[i]]),
            ).item()
            for i in range(7)
        ]
        # Seven at once rather than one at a time: float32's rounding.
        assert row["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        parts = row["validation_loss_by_timestep"]
        for bucket, part in enumerate(parts):
            inside = [loss for loss, t in zip(losses, draw.t, strict=True) if t // 100 == bucket]
            assert part == (pytest.approx(np.mean(inside), rel=1e-5) if inside else None)


def test_validation_has_its_turns_and_the_last_step(run):
    assert [row["step"] for row in validations(run)] == [4, 6]


def test_going_on_drops_the_last_validation_where_it_was_out_of_turn(run, pictures, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    run_here(arguments(pictures, short, **CHANGES))
    assert metrics(short) == metrics(run)
    run_here(arguments(pictures, short, **CHANGES, resume="auto", steps=9))
    assert [row["step"] for row in validations(short)] == [4, 8, 9]
    run_here(arguments(pictures, long, **CHANGES, steps=9))
    assert metrics(short) == metrics(long)


def test_two_processes_validate_and_sample_as_one(run, pictures, tmp_path):
    other, grids = tmp_path / "run", []
    argv = arguments(pictures, other, **CHANGES, resume=run / "checkpoints" / "step-00000003")
    with Workers(argv, 2, tmp_path / "log") as workers:
        assert workers.wait() == [0, 0], workers.printed()
    for one, two in zip(validations(run), validations(other), strict=True):
        assert one["step"] == two["step"]
        assert one["validation_loss"] == pytest.approx(two["validation_loss"], rel=1e-4)
    for folder in (run, other):
        with Image.open(folder / "samples" / "step-00000006.png") as grid:
            grids.append(np.asarray(grid, dtype=int))
    # Values to 1e-4 before they are rounded to whole ones.
    assert np.abs(grids[0] - grids[1]).max() <= 1


def test_validation_draws_no_number_from_training(run, pictures, tmp_path):
    """The same weights with and without it."""
    without = tmp_path / "run"
    run_here(
        arguments(pictures, without, **(CHANGES | {"validate_every": 0, "num_validation": None}))
    )
    assert validations(without) == []
    one, other = (checkpoint(folder, 6, "weights") for folder in (run, without))
    assert all(one[name].equal(other[name]) for name in one)
