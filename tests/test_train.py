import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from PIL import Image

from ddpm_sa import Pipeline, UNet
from ddpm_sa.solvers import SCHEDULERS
from tests.runs import (
    ROOT,
    arguments,
    checkpoint,
    environment,
    metrics,
    picture_folder,
    run_here,
    run_there,
    same_bits,
    torchrun,
)
from training.loop import make_batch

STEMS = ("weights", "ema", "ema-0.5", "optimizer")
NETWORK = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


# Every checkpoint and record of a run from saved weights, whose first update is no clipped one.
SAVED = {
    "model__unet": None,
    "log_every": 1,
    "save_every": 1,
    "keep_checkpoints": 9,
    "optim__warmup_steps": 0,
    "optim__grad_clip": 1e6,
}


# A run with dropout, and three of twelve images held out.
WATCHED = {
    "model__dropout": 0.1,
    "data__validation": 0.25,
    "validate_every": 2,
    "num_validation": 5,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def straight(pictures, tmp_path_factory):
    """A run of 6 steps that keeps a checkpoint of each."""
    run = tmp_path_factory.mktemp("straight") / "run"
    run_here(
        arguments(
            pictures,
            run,
            save_every=1,
            keep_checkpoints=9,
            sample_every=3,
            **WATCHED,
            ema__keep_raw="true",
        )
    )
    return run


@pytest.fixture(scope="module")
def saved_network(tmp_path_factory):
    """Weights that are nowhere near zero, as diffusers initialises them."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    UNet(**NETWORK).to_diffusers().save_pretrained(folder / "unet")
    return folder


def assert_same_run(one, other, step):
    for stem in STEMS:
        assert same_bits(checkpoint(one, step, stem), checkpoint(other, step, stem)), stem
    assert metrics(one) == metrics(other)


def gradient(run, step=1):
    """The gradient of the first update: Adam's first mean is (1 - 0.9) of it."""
    moments = checkpoint(run, step, "optimizer").items()
    return {name: value.double() / 0.1 for name, value in moments if name.endswith(":exp_avg")}


def assert_same_gradient(one, other):
    flat = [torch.cat([value.flatten() for value in each.values()]) for each in (one, other)]
    assert (flat[0] - flat[1]).norm() <= 1e-6 * flat[0].norm()
    for name, value in one.items():
        # A constant added to every key leaves the softmax as it is: rounding alone is left.
        if "to_k.bias" not in name:
            assert (value - other[name]).abs().max() <= 5e-5 * value.abs().max(), name


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
    for folder, weights in (("model", "average of decay 0.9 |"), ("model-raw", "not averaged |")):
        card = (straight / folder / "README.md").read_text()
        assert f"9 from {pictures}" in card
        assert "6 of 8 images" in card
        assert weights in card
        last = [row for row in metrics(straight) if "validation_loss" in row][-1]
        assert f"{last['validation_loss']:.5f} at step 6" in card
        settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
        assert settings == yaml.safe_load((straight / "config.yaml").read_text())


def test_losses_are_drawn(straight):
    with Image.open(straight / "losses.png") as picture:
        picture.load()
        assert picture.width > picture.height > 300


def test_recorded_configuration_repeats_the_run(straight, tmp_path):
    config = straight / "config.yaml"
    run_here(["--config", str(config), "--output_dir", str(tmp_path / "again")])
    assert_same_run(straight, tmp_path / "again", 6)
    for name in ("step-00000003.png", "step-00000006.png"):
        one, other = (run / "samples" / name for run in (straight, tmp_path / "again"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("stop", [3, 4])
def test_stopped_and_resumed_is_bit_for_bit_the_run_that_was_not(
    straight, pictures, tmp_path, stop
):
    run = tmp_path / "run"
    argv = arguments(pictures, run, sample_every=3, **WATCHED)
    run_here([*argv, "--steps", str(stop)])
    assert {row["step"] for row in metrics(run)[-2:]} == {stop}
    run_here([*argv, "--resume", "auto"])
    assert_same_run(straight, run, 6)


def test_muon_resumes_bit_for_bit(pictures, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run_here(arguments(pictures, straight, steps=4, optim__optimizer="muon"))
    run_here(arguments(pictures, stopped, steps=2, optim__optimizer="muon"))
    run_here(arguments(pictures, stopped, steps=4, optim__optimizer="muon", resume="auto"))
    assert_same_run(straight, stopped, 4)


def test_accumulation_gives_the_same_losses_and_gradient(pictures, saved_network, tmp_path):
    changes = SAVED | {"model__init_from": saved_network}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_here(arguments(pictures, whole, **changes))
    run_here(arguments(pictures, parts, **changes, micro_batch_size=2))
    assert_same_gradient(gradient(whole), gradient(parts))
    for one, other in zip(metrics(whole), metrics(parts), strict=True):
        assert one["lr"] == other["lr"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_damaged_checkpoint_is_passed_over_on_resume(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    argv = arguments(pictures, run, save_every=2)
    run_here([*argv, "--steps", "4"])
    os.truncate(run / "checkpoints" / "step-00000004" / "ema.safetensors", 10)
    run_here([*argv, "--resume", "auto", "--steps", "5"])
    printed = capsys.readouterr().out
    assert "passed over" in printed
    assert "step-00000004/ema.safetensors has 10 bytes" in printed
    assert "steps       2 to 5" in printed


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


def test_learned_variance_of_floats_is_refused_before_anything_is_written(tmp_path):
    folder, run = tmp_path / "floats", tmp_path / "run"
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"{i}.npy", np.full((8, 8, 3), i / 3, np.float32))
    with pytest.raises(ValueError, match="whole numbers, and these are floats"):
        run_here(arguments(folder, run, objective__learned_variance="true"))
    assert not run.exists()


def test_fine_tuning_starts_from_the_weights_it_is_given(pictures, saved_network, tmp_path):
    run = tmp_path / "run"
    # The first update of a warm-up has a learning rate of 0.
    argv = arguments(pictures, run, steps=1, model__unet=None, model__init_from=saved_network)
    run_here(argv)
    given = dict(UNet.from_pretrained(saved_network).state_dict())
    assert same_bits(checkpoint(run, 1, "weights"), given)


def test_fine_tuning_towards_another_target_is_said(straight, pictures, tmp_path, capsys):
    changes = {"model__unet": None, "model__init_from": straight / "model", "steps": 1}
    run_here(arguments(pictures, tmp_path / "same", **changes))
    assert "was trained with" not in capsys.readouterr().out
    changes["objective__prediction_type"] = "v_prediction"
    run_here(arguments(pictures, tmp_path / "other", **changes))
    assert "was trained with prediction_type=epsilon" in capsys.readouterr().out


def test_gradient_checkpointing_changes_no_gradient(pictures, saved_network, tmp_path):
    changes = SAVED | {"model__init_from": saved_network, "steps": 2}
    plain, lean = tmp_path / "plain", tmp_path / "lean"
    run_here(arguments(pictures, plain, **changes))
    run_here(arguments(pictures, lean, **changes, model__gradient_checkpointing="true"))
    assert_same_gradient(gradient(plain), gradient(lean))


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


def test_time_limit_ends_the_run_with_its_model(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    run_here(arguments(pictures, run, steps=10**6, time_limit=1 / 60))
    assert "by the time limit" in capsys.readouterr().out
    assert (run / "model" / "model_index.json").exists()


BAD_INPUTS = {
    "batch": ({"micro_batch_size": 3}, "batch_size=8 is not divisible by 1 processes x"),
    "blocks": (
        {"model__unet": "{block_out_channels: [8, 16, 16], norm_num_groups: 2}"},
        "block_out_channels",
    ),
    "groups": (
        {"model__unet": "{block_out_channels: [8, 16, 16, 20], norm_num_groups: 8}"},
        "norm_num_groups=8",
    ),
    "size": ({"data__size": "9by8"}, "data.size=9by8 must be a number, or HEIGHTxWIDTH"),
    "unknown argument": ({"model__unet": "{chanels: 3}"}, "chanels"),
    "preset": ({"model__preset": "cifar100"}, "cifar100"),
    "attention": (
        {"model__attention_resolutions": "[7]", "model__unet": None, "data__size": 8},
        "7",
    ),
    "weights": ({"model__init_from": "nowhere/at/all", "model__unet": None}, "nowhere/at/all"),
    "folder": ({"data__source": "./no/such/folder"}, "no/such/folder is neither"),
    "resume": ({"resume": "no/checkpoint"}, "resume=no/checkpoint is no whole checkpoint"),
    "precision": ({"mixed_precision": "fp16"}, "mixed_precision=fp16 needs a GPU"),
    "unknown flag": ({"learning_rate": 1}, "learning_rate"),
    "unlabelled": ({"data__class_conditional": "true"}, "lies in no subfolder"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing(pictures, tmp_path, name):
    changes, message = BAD_INPUTS[name]
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        run_here(arguments(pictures, run, **changes))
    assert not run.exists()


def test_bad_images_leave_nothing(tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    Image.new("L", (8, 8)).save(folder / "grey.png")
    with pytest.raises(ValueError, match=r"mixed: .*grey\.png has 1"):
        run_here(arguments(folder, tmp_path / "run"))
    (folder / "grey.png").write_text("no image")
    with pytest.raises(ValueError, match=r"grey\.png is not an image"):
        run_here(arguments(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_network_that_does_not_fit_the_data_is_refused(pictures, saved_network, tmp_path):
    changes = {"model__init_from": saved_network, "model__unet": None, "data__channels": 1}
    with pytest.raises(ValueError, match="has in_channels=3, these data need 1"):
        run_here(arguments(pictures, tmp_path / "run", **changes))


def test_existing_run_needs_resume(straight, pictures):
    before = (straight / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="already holds a run; add --resume auto"):
        run_here(arguments(pictures, straight))
    assert (straight / "metrics.jsonl").read_text() == before


def test_resume_under_other_settings_is_refused_before_anything_changes(straight, pictures):
    before = (straight / "config.yaml").read_text()
    changes = WATCHED | {"resume": "auto", "optim__lr": 0.5}
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.001 and is now 0\.5"):
        run_here(arguments(pictures, straight, **changes))
    assert (straight / "config.yaml").read_text() == before


def test_resume_under_other_settings_is_said_where_asked_for(straight, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    changes = {"resume": "auto", "steps": 7, "optim__lr": 0.5, "override": "true"}
    run_here(arguments(pictures, run, **(WATCHED | changes)))
    assert "override    optim.lr was 0.001 and is now 0.5" in capsys.readouterr().out
    assert [row["lr"] for row in metrics(run) if "lr" in row][-1] == 0.5
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["optim"]["lr"], config["override"]) == (0.5, False)


def test_resume_on_other_images_of_the_same_name_is_refused(tmp_path):
    folder, run = picture_folder(tmp_path / "pictures"), tmp_path / "run"
    run_here(arguments(folder, run, steps=2))
    (folder / "00.png").unlink()
    with pytest.raises(ValueError, match=r"images\.number was 12 and is now 11"):
        run_here(arguments(folder, run, resume="auto"))


def test_going_back_sets_later_checkpoints_aside(straight, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    point = run / "checkpoints" / "step-00000002"
    # The time limit is over at once: one step more than the point.
    changes = WATCHED | {"resume": point, "time_limit": 0, "keep_checkpoints": 9}
    run_here(arguments(pictures, run, **changes))
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == [
        *(f"step-{step:08d}" for step in (1, 2, 3)),
        *(f"step-{step:08d}.set-aside" for step in (3, 4, 5, 6)),
    ]
    assert "step-00000006.set-aside, which the run has gone back behind" in capsys.readouterr().out


def test_restart_by_torchrun_goes_on_with_its_own_run_alone(
    straight, pictures, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    argv = arguments(pictures, run, **WATCHED, sample_every=3)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    run_here([*argv, "--steps", "3"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ValueError, match="already holds a run"):
        run_here(arguments(pictures, straight))
    run_here(argv)
    assert "restarted by torchrun" in capsys.readouterr().out
    assert_same_run(straight, run, 6)


def spoilt_batch(images, draws, layout, step):
    """The batch of a step; an image of the second and of the fourth is not finite."""
    batch = make_batch(images, draws, layout, step)
    if step in (1, 3):
        batch.micro_batches[-1].x_0[-1, 0, 0, 0] = float("inf")
    return batch


def test_updates_that_are_not_finite_are_left_out_and_counted(
    pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("training.loop.make_batch", spoilt_batch)
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    changes = {"save_every": 1, "keep_checkpoints": 9, "log_every": 1, "optim__warmup_steps": 0}
    with pytest.raises(ValueError, match=r"loss of step 2 is not finite \(timesteps \d+\).*skip"):
        run_here(arguments(pictures, run, **changes))
    argv = arguments(pictures, run, **changes, on_nonfinite="skip", resume="auto")
    run_here(argv)
    assert "6 steps done (2 updates left out: not finite)" in capsys.readouterr().out
    assert [row["skipped"] for row in metrics(run)] == [0, 1, 1, 2, 2, 2]
    assert [row["loss"] is None for row in metrics(run)] == [False, True, False, True, False, False]
    for stem in STEMS:
        states = [checkpoint(run, step, stem) for step in range(1, 7)]
        same = [same_bits(one, other) for one, other in itertools.pairwise(states)]
        assert same == [True, False, True, False, False], stem

    argv = arguments(pictures, stopped, **changes, on_nonfinite="skip", resume="auto")
    for limit in (0, 0, 1):
        run_here([*argv, "--time_limit", str(limit)])
    assert_same_run(run, stopped, 6)


def test_sample_grids_do_not_disturb_the_training(straight, pictures, tmp_path):
    for every in (0, 1):
        run = tmp_path / str(every)
        run_here(arguments(pictures, run, **WATCHED, sample_every=every))
        assert_same_run(straight, run, 6)


def test_run_stopped_twice_leaves_the_samples_of_one_that_was_not(straight, pictures, tmp_path):
    run = tmp_path / "run"
    argv = arguments(pictures, run, **WATCHED, sample_every=3, resume="auto")
    for _ in range(2):
        run_here([*argv, "--time_limit", "0"])  # over at once: one step is done
    assert not (run / "samples").exists()
    run_here(argv)
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == sorted(path.name for path in (straight / "samples").iterdir())
    for name in names:
        assert (run / "samples" / name).read_bytes() == (straight / "samples" / name).read_bytes()
    assert_same_run(straight, run, 6)


def test_resume_past_the_last_step_is_refused(straight, pictures):
    changes = WATCHED | {"resume": "auto", "steps": 5}
    with pytest.raises(ValueError, match=r"steps=5, but .*step-00000006 has 6 behind it"):
        run_here(arguments(pictures, straight, **changes))


def test_finished_run_resumed_says_so_and_changes_nothing(straight, pictures, capsys):
    before = (straight / "metrics.jsonl").read_text()
    changes = WATCHED | {"save_every": 1, "keep_checkpoints": 9, "resume": "auto"}
    run_here(arguments(pictures, straight, **changes))
    assert "6 steps done" in capsys.readouterr().out
    assert (straight / "metrics.jsonl").read_text() == before


def test_program_prints_one_line_and_exits_2(pictures, tmp_path):
    ended = run_there(arguments(pictures, tmp_path / "run", batch_size=7, micro_batch_size=2))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: batch_size=7 is not divisible by 1 processes")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_so_that_it_goes_on_bit_for_bit(pictures, tmp_path, number):
    run = tmp_path / "run"
    argv = arguments(pictures, run, steps=10**6, log_every=1)
    with subprocess.Popen(
        [sys.executable, "training/train.py", *argv],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "go on with --resume auto" in printed
    (folder,) = (run / "checkpoints").iterdir()
    step = json.loads((folder / "state.json").read_text())["step"]
    run_here([*argv, "--resume", "auto", "--steps", str(step + 2)])

    whole = tmp_path / "whole"
    run_here(arguments(pictures, whole, steps=step + 2, log_every=1))
    assert_same_run(run, whole, step + 2)


def launched(processes, argv):
    ended = run_there(argv, *torchrun(processes))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check_processes(processes, pictures, saved_network, folder):
    """Several processes are one process, and resume bit for bit."""
    changes = SAVED | {"model__init_from": saved_network}
    alone, together, resumed = folder / "alone", folder / "together", folder / "resumed"
    run_here(arguments(pictures, alone, **changes))
    printed = launched(processes, arguments(pictures, together, **changes))
    assert f"processes   {processes} on cpu" in printed
    first, *_ = metrics(together)
    assert first["loss"] == pytest.approx(metrics(alone)[0]["loss"], rel=1e-6)
    assert_same_gradient(gradient(alone), gradient(together))
    for one, other in zip(metrics(alone), metrics(together), strict=True):
        assert one["lr"] == other["lr"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)

    point = together / "checkpoints" / "step-00000003"
    launched(processes, arguments(pictures, resumed, **changes, resume=point))
    for stem in STEMS:
        assert same_bits(checkpoint(together, 6, stem), checkpoint(resumed, 6, stem)), stem
    assert metrics(together)[3:] == metrics(resumed)


def test_two_processes_are_one_and_resume_bit_for_bit(pictures, saved_network, tmp_path):
    check_processes(2, pictures, saved_network, tmp_path)


@pytest.mark.slow
def test_four_processes_are_one_and_resume_bit_for_bit(pictures, saved_network, tmp_path):
    check_processes(4, pictures, saved_network, tmp_path)


def test_error_under_torchrun_is_printed_once(tmp_path):
    ended = run_there(arguments(tmp_path / "nothing", tmp_path / "run"), *torchrun(2))
    assert ended.returncode != 0
    assert ended.stderr.count("error: data.source=") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inductor's own
def test_compiled_training_resumes_bit_for_bit(pictures, tmp_path):
    straight, run = tmp_path / "straight", tmp_path / "run"
    run_here(arguments(pictures, straight, compile="true"))
    argv = arguments(pictures, run, compile="true", sample_every=1)
    run_here([*argv, "--steps", "3"])
    run_here([*argv, "--resume", "auto"])
    assert_same_run(straight, run, 6)
