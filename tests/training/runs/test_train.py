"""What a run of the training program learns, and leaves behind."""

import io

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from matplotlib.figure import Figure
from PIL import Image

from ddpm_sa import Pipeline, UNet
from ddpm_sa.diffusion.loss_by_timestep import Buckets
from ddpm_sa.samplers.schedulers import SCHEDULERS
from tests.support.runs import (
    arguments,
    assert_same_gradient,
    checkpoint,
    metrics,
    picture_folder,
    run_here,
    same_bits,
)
from training.reporting.loss_figure import draw_losses

# Every checkpoint and record of a run from saved weights, whose first update is no clipped one.
SAVED = {
    "model__unet": None,
    "log_every": 1,
    "save_every": 1,
    "keep_checkpoints": 9,
    "optim__warmup_steps": 0,
    "optim__grad_clip": 1e6,
}


def test_run_leaves_what_it_promises(straight, pictures):
    trained = [row for row in metrics(straight) if "loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6]
    assert [row["lr"] for row in trained] == pytest.approx([5e-4, 1e-3, 1e-3])
    validated = [row for row in metrics(straight) if "validation_loss" in row]
    assert [row["step"] for row in validated] == [2, 4, 6]
    samples = sorted(path.name for path in (straight / "samples").iterdir())
    assert samples == ["step-00000003.png", "step-00000006.png"]
    config = yaml.safe_load((straight / "config.yaml").read_text())
    assert config["data"]["source"] == str(pictures)
    assert config["mixed_precision"] == "no"


def test_model_is_the_averaged_weights_and_opens_in_diffusers(straight):
    average = checkpoint(straight, 6, "ema")
    theirs = DDPMPipeline.from_pretrained(straight / "model")
    assert same_bits(dict(theirs.unet.state_dict()), average)
    ours = Pipeline.from_pretrained(straight / "model")
    assert same_bits(dict(ours.unet.state_dict()), average)
    assert ours.image_format.shape == (3, 8, 8)
    assert theirs.scheduler.config["prediction_type"] == "epsilon"
    # run_cifar.py's "fixedlarge", which the cifar10 preset asks for.
    assert theirs.scheduler.config["variance_type"] == "fixed_large"


@pytest.mark.parametrize(("stem", "decay"), [("ema", 0.9), ("ema-0.5", 0.5)])
def test_average_follows_the_weights(straight, stem, decay):
    average = checkpoint(straight, 1, stem)
    for step in range(2, 7):
        for name, weight in checkpoint(straight, step, "weights").items():
            average[name] = decay * average[name] + (1 - decay) * weight
    for name, value in checkpoint(straight, 6, stem).items():
        torch.testing.assert_close(value, average[name])


@pytest.mark.parametrize(
    ("folder", "stem"), [("model-ema-0.5", "ema-0.5"), ("model-raw", "weights")]
)
def test_further_averages_and_raw_weights_are_models_too(straight, folder, stem):
    theirs = DDPMPipeline.from_pretrained(straight / folder)
    assert same_bits(dict(theirs.unet.state_dict()), checkpoint(straight, 6, stem))


def test_raw_weights_are_kept_only_when_asked_for(pictures, tmp_path):
    run = tmp_path / "run"
    run_here(arguments(pictures, run, steps=1, ema__more="[]"))
    assert [path.name for path in run.glob("model*")] == ["model"]


def test_model_card_says_how_it_was_trained(straight, pictures):
    for folder, weights in (
        ("model", "average with decay 0.9 |"),
        ("model-raw", "without averaging |"),
    ):
        card = (straight / folder / "README.md").read_text()
        assert f"9 from {pictures}" in card
        assert "6 of 8 images" in card
        assert weights in card
        last = [row for row in metrics(straight) if "validation_loss" in row][-1]
        assert f"{last['validation_loss']:.5f} at step 6" in card
        settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
        assert settings == yaml.safe_load((straight / "config.yaml").read_text())


def test_losses_are_drawn(straight):
    """The curves are those of metrics.jsonl, and the picture is not blank."""
    rows = metrics(straight)
    names = Buckets(1000).names
    figure = draw_losses(straight / "metrics.jsonl", names)
    assert isinstance(figure, Figure)
    over_steps, by_timestep = figure.axes
    for number, name in enumerate(("loss", "validation_loss")):
        recorded = [row for row in rows if name in row]
        line = over_steps.lines[number]
        assert list(line.get_xdata()) == [row["step"] for row in recorded] == [2, 4, 6]
        assert list(line.get_ydata()) == [row[name] for row in recorded]
        parts = [np.nan if part is None else part for part in recorded[-1][f"{name}_by_timestep"]]
        np.testing.assert_array_equal(by_timestep.lines[number].get_ydata(), parts)
        assert "step 6" in by_timestep.lines[number].get_label()
    with Image.open(straight / "losses.png") as picture:
        drawn = np.asarray(picture.convert("RGB"))
    figure.savefig(expected := io.BytesIO(), format="png", dpi=100)
    np.testing.assert_array_equal(drawn, np.asarray(Image.open(expected).convert("RGB")))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50


def test_class_conditional_run_samples_its_classes(tmp_path):
    pictures = picture_folder(tmp_path / "pictures", ("cat", "dog"), each=4)
    run = tmp_path / "run"
    run_here(
        arguments(
            pictures,
            run,
            steps=2,
            data__class_conditional="true",
            data__label_dropout=0.2,
        )
    )
    pipeline = Pipeline.from_pretrained(run / "model")
    assert list(pipeline.image_format.labels or []) == ["cat", "dog"]
    assert pipeline.unet.config["num_class_embeds"] == 3


def test_learned_variance_is_sampled_by_diffusers_and_by_every_scheduler(pictures, tmp_path):
    run = tmp_path / "run"
    changes = {"objective__learned_variance": "true", "schedule__num_timesteps": 20}
    run_here(arguments(pictures, run, steps=2, **changes))
    theirs = DDPMPipeline.from_pretrained(run / "model")
    assert theirs.scheduler.config["variance_type"] == "learned_range"
    assert theirs.unet.config["out_channels"] == 6
    theirs.set_progress_bar_config(disable=True)
    made = theirs(batch_size=2, num_inference_steps=20, output_type="np").images
    assert made.shape == (2, 8, 8, 3)
    assert np.isfinite(made).all()
    ours = Pipeline.from_pretrained(run / "model")
    ours.set_progress_bar_config(disable=True)
    for name in SCHEDULERS:
        images = ours(num_images=2, steps=5, scheduler=name, output_type="pt").images
        assert images.shape == (2, 3, 8, 8)


def test_fine_tuning_starts_from_the_weights_it_is_given(pictures, saved_network, tmp_path):
    run = tmp_path / "run"
    # The first update of a warm-up has a learning rate of 0.
    argv = arguments(pictures, run, steps=1, model__unet=None, model__init_from=saved_network)
    run_here(argv)
    given = dict(UNet.from_pretrained(saved_network).state_dict())
    assert same_bits(checkpoint(run, 1, "weights"), given)


def test_gradient_checkpointing_changes_no_gradient(pictures, saved_network, tmp_path):
    changes = SAVED | {"model__init_from": saved_network, "steps": 2}
    plain, lean = tmp_path / "plain", tmp_path / "lean"
    run_here(arguments(pictures, plain, **changes))
    run_here(arguments(pictures, lean, **changes, model__gradient_checkpointing="true"))
    assert_same_gradient(plain, lean)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_lowers_the_loss_on_one_image(tmp_path, precision):
    folder = picture_folder(tmp_path / "pictures", each=1)
    run = tmp_path / "run"
    changes = {"steps": 60, "log_every": 20, "batch_size": 16, "optim__lr": 5e-3}
    run_here(arguments(folder, run, mixed_precision=precision, tracker="tensorboard", **changes))
    first, *_, last = metrics(run)
    # One image, known by heart, leaves eps determined by x_t; the untrained network has loss 1.
    assert last["loss"] < 0.7 * first["loss"]
    assert checkpoint(run, 60, "weights")["conv_in.weight"].dtype == torch.float32
    assert list((run / "logs").iterdir())
