"""Fine-tuning has the prediction type and the noise schedule of the model it starts from."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_sa.cli import parse
from ddpm_sa.diffusion.schedule import NoiseSchedule
from ddpm_sa.model_folder import load_scheduler
from ddpm_sa.settings.words import given_flags
from tests.support.pages import commands_of, split_command
from tests.support.runs import (
    NETWORK,
    ROOT,
    arguments,
    checkpoint,
    metrics,
    picture_folder,
    run_here,
    same_bits,
)
from training.config import TrainConfig
from training.fine_tuning import follow_saved_model
from training.scheduler import make_scheduler

FOLDER_CONFIG = str(ROOT / "training" / "configs" / "folder.yaml")
SCHEDULERS = {
    "linear eps": DDPMScheduler(),
    "trained betas": DDPMScheduler(
        num_train_timesteps=50,
        trained_betas=np.linspace(1e-3, 0.1, 50).tolist(),
        variance_type="fixed_large",
        timestep_spacing="linspace",
    ),
    "sigmoid": DDPMScheduler(beta_schedule="sigmoid", beta_start=1e-3, beta_end=0.01),
    "zero terminal snr": DDPMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    ),
    "quadratic x_0": DDPMScheduler(
        num_train_timesteps=200,
        beta_schedule="scaled_linear",
        beta_end=0.05,
        prediction_type="sample",
        thresholding=True,
        dynamic_thresholding_ratio=0.9,
        sample_max_value=2.0,
        clip_sample=False,
        clip_sample_range=2.0,
        steps_offset=1,
    ),
    "cosine v": DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    ),
}


def save(folder, scheduler=None, **network):
    """A model folder of plain diffusers; a network alone without a scheduler."""
    torch.manual_seed(0)
    unet = UNet2DModel(**NETWORK | network)
    if scheduler is None:
        unet.save_pretrained(folder)
    else:
        DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


def resolve(model, *words):
    """The settings of folder.yaml for fine-tuning a model, and the report's lines."""
    argv = ["--config", FOLDER_CONFIG, "--data.source", "images", "--model.init_from", str(model)]
    argv += words
    config, notes = follow_saved_model(parse(TrainConfig, argv), given_flags(argv))
    return config, "\n".join(notes)


def tune(model, pictures, run, *words, **changes):
    """Fine-tune with folder.yaml, as the README says, for a few updates."""
    tiny = {"model__unet": None, "model__dropout": None, "optim__warmup_steps": 0}
    tiny |= {"model__init_from": model, "steps": 2, "optim__lr": 1e-6}
    run_here(["--config", FOLDER_CONFIG, *arguments(pictures, run, **tiny | changes), *words])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_of_the_model_is_kept_in_full(name, pictures, tmp_path):
    theirs = SCHEDULERS[name]
    model = save(tmp_path / "model", theirs)
    tune(model, pictures, tmp_path / "run")
    kept = DDPMScheduler.from_pretrained(tmp_path / "run" / "model" / "scheduler")
    # Outside truth: the tables of diffusers' own scheduler, made from its own arguments.
    assert kept.alphas_cumprod.equal(theirs.alphas_cumprod)
    schedule = NoiseSchedule.from_scheduler(kept)
    torch.testing.assert_close(
        schedule.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6
    )
    ours = {key: value for key, value in kept.config.items() if not key.startswith("_")}
    assert ours == {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["objective"]["prediction_type"] == theirs.config["prediction_type"]
    assert saved["schedule"]["num_timesteps"] == theirs.config["num_train_timesteps"]


def test_a_run_stands_for_its_model_as_in_sampling(pictures, tmp_path):
    run = tmp_path / "run"
    run_here(arguments(pictures, run, steps=1))
    config, notes = resolve(run)
    assert config.model.init_from == str(run / "model")
    assert f"fine-tuning {run / 'model'}: " in notes
    tune(run, pictures, tmp_path / "tuned")
    saved = yaml.safe_load((tmp_path / "tuned" / "config.yaml").read_text())
    assert saved["model"]["init_from"] == str(run / "model")
    shutil.rmtree(run / "model")
    with pytest.raises(ValueError, match=rf"init_from={run} is a run that has no model/ yet"):
        resolve(run)


def test_loss_stays_at_the_level_of_the_network(tmp_path):
    """A network trained to predict eps; trained for v its loss would be many times as large."""
    pictures, run = picture_folder(tmp_path / "pictures", each=1), tmp_path / "run"
    learned = {"steps": 60, "log_every": 20, "batch_size": 32, "optim__lr": 5e-3}
    run_here(arguments(pictures, run, **learned, model__dropout=0.0))
    before = metrics(run)[-1]["loss"]
    changes = {"batch_size": 256, "micro_batch_size": 256, "log_every": 2}
    plain = ["--objective.weighting", "uniform", "--data.flip", "false", "--model.dropout", "0"]
    tune(run / "model", pictures, tmp_path / "tuned", *plain, **changes)
    after = metrics(tmp_path / "tuned")[-1]["loss"]
    forced = ["--override", "true", "--objective.prediction_type", "v_prediction"]
    tune(run / "model", pictures, tmp_path / "forced", *plain, *forced, **changes)
    confused = metrics(tmp_path / "forced")[-1]["loss"]
    assert 0.6 * before < after < 1.5 * before
    assert confused > 2 * after


COMMANDS = [
    words
    for name, words in map(split_command, commands_of(ROOT / "docs" / "training.md"))
    if name == "training/train.py" and "--model.init_from" in words
]


@pytest.mark.parametrize("words", COMMANDS, ids=["as it was trained", "another objective"])
def test_commands_of_the_page_fine_tune(words, pictures, tmp_path):
    run, model = tmp_path / "run", save(tmp_path / "model", SCHEDULERS["cosine v"])
    flags = dict(zip(words[::2], words[1::2], strict=True))
    flags |= {"--model.init_from": str(model), "--data.source": str(pictures)}
    flags |= {"--data.size": "8", "--output_dir": str(run), "--steps": "2", "--batch_size": "2"}
    flags |= {"--tracker": "none", "--num_samples": "2", "--sample_steps": "2"}
    run_here([word for flag in flags.items() for word in flag])
    kept = DDPMScheduler.from_pretrained(run / "model" / "scheduler")
    assert kept.config["prediction_type"] == flags.get(
        "--objective.prediction_type", "v_prediction"
    )
    assert kept.config["beta_schedule"] == "squaredcos_cap_v2"


def test_settings_of_a_file_give_way_and_the_report_says_so(tmp_path):
    config, said = resolve(save(tmp_path / "model", DDPMScheduler()))
    assert (config.objective.prediction_type, config.schedule.kind) == ("epsilon", "linear")
    assert "epsilon, linear schedule of 1000 timesteps" in said
    assert "objective.prediction_type=epsilon (not v_prediction)" in said
    assert "schedule.kind=linear (not cosine)" in said
    _, said = resolve(save(tmp_path / "v", SCHEDULERS["cosine v"]))
    assert "not" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--objective.prediction_type", "v_prediction"],
            "--objective.prediction_type v_prediction, but it has epsilon",
        ),
        (["--objective.prediction_type=sample"], "sample, but it has epsilon"),
        (["--objective", "{prediction_type: sample}"], "sample, but it has epsilon"),
        (["--schedule.kind", "cosine"], "--schedule.kind cosine, but it has linear"),
        (["--schedule.num_timesteps", "10"], "--schedule.num_timesteps 10, but it has 1000"),
        (
            ["--schedule.kind", "linear", "--schedule.beta_end", "0.5"],
            "--schedule.beta_end 0.5, but it has 0.02",
        ),
        (["--objective.learned_variance", "true"], "learned_variance True, but it has False"),
        (
            ["--model.preset", "tiny"],
            "--model.preset has no effect: the network is that of",
        ),
    ],
)
def test_a_flag_that_contradicts_the_model_names_both_values(tmp_path, words, message):
    model = save(tmp_path / "model", DDPMScheduler())
    with pytest.raises(ValueError, match=message) as error:
        resolve(model, *words)
    assert str(model) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flag_that_agrees_with_the_model_is_none_to_mention(tmp_path):
    model = save(tmp_path / "model", DDPMScheduler())
    words = ["--objective.prediction_type", "epsilon", "--schedule.kind", "linear"]
    config, said = resolve(model, *words)
    assert config.schedule.kind == "linear"
    assert "not" not in said


def test_contradiction_is_refused_before_anything_is_written(pictures, tmp_path):
    model = save(tmp_path / "model", DDPMScheduler())
    with pytest.raises(ValueError, match=r"contradicts --schedule\.kind cosine"):
        tune(model, pictures, tmp_path / "run", "--schedule.kind", "cosine")
    assert not (tmp_path / "run").exists()


def test_override_trains_for_what_the_flags_say_and_can_be_repeated(pictures, tmp_path, capsys):
    model = save(tmp_path / "model", SCHEDULERS["trained betas"])
    words = ["--override", "true", "--schedule.kind", "cosine", "--schedule.num_timesteps", "30"]
    tune(model, pictures, tmp_path / "run", *words, "--objective.prediction_type", "sample")
    assert "schedule.kind=cosine (it was trained with saved)" in capsys.readouterr().out
    made = DDPMScheduler.from_pretrained(tmp_path / "run" / "model" / "scheduler")
    wanted = DDPMScheduler(num_train_timesteps=30, beta_schedule="squaredcos_cap_v2")
    assert made.alphas_cumprod.equal(wanted.alphas_cumprod)
    assert made.config["prediction_type"] == "sample"
    # variance_type is none of those flags.
    assert made.config["variance_type"] == "fixed_large"
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--output_dir"]
    run_here([*again, str(tmp_path / "again")])
    for stem in ("weights", "ema", "optimizer"):
        one, other = (checkpoint(tmp_path / name, 2, stem) for name in ("run", "again"))
        assert same_bits(one, other)
    repeated = DDPMScheduler.from_pretrained(tmp_path / "again" / "model" / "scheduler")
    assert repeated.config == made.config


def test_betas_of_its_own_are_not_changed_in_part(tmp_path):
    model = save(tmp_path / "model", SCHEDULERS["trained betas"])
    words = ["--override", "true", "--schedule.num_timesteps", "30"]
    config, _ = resolve(model, *words)
    with pytest.raises(ValueError, match="num_timesteps cannot be changed alone"):
        make_scheduler(config)


def test_network_alone_is_trained_with_the_schedule_of_the_settings(tmp_path):
    config, said = resolve(save(tmp_path / "unet"))
    assert "no scheduler, so as the settings say: v_prediction, cosine schedule of 1000" in said
    scheduler = make_scheduler(config)
    assert scheduler.config["beta_schedule"] == "squaredcos_cap_v2"
    assert scheduler.config["prediction_type"] == "v_prediction"
    with pytest.raises(ValueError, match=r"schedule\.kind=saved, but .* has no scheduler"):
        resolve(tmp_path / "unet", "--schedule.kind", "saved")


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_scheduler_of_another_class_gives_its_betas_and_prediction(name, tmp_path):
    kind = getattr(diffusers, name)
    theirs = kind(
        num_train_timesteps=77,
        beta_schedule="scaled_linear",
        beta_start=1e-3,
        beta_end=0.03,
        prediction_type="v_prediction",
    )
    model = save(tmp_path / "model", DDPMScheduler())
    shutil.rmtree(model / "scheduler")
    theirs.save_pretrained(model / "scheduler")
    config, _ = resolve(model)
    made = make_scheduler(config)
    assert made.alphas_cumprod.equal(theirs.alphas_cumprod)
    assert made.config["prediction_type"] == "v_prediction"
    assert made.config["variance_type"] == "fixed_small"
    # DDIMScheduler says whether it clips; the others do not, and v needs no clipping.
    assert made.config["clip_sample"] == (name == "DDIMScheduler")
    assert type(load_scheduler(model)) is kind


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            diffusers.FlowMatchEulerDiscreteScheduler(),
            "FlowMatchEulerDiscreteScheduler",
        ),
        (
            diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
            "prediction_type='flow_prediction'",
        ),
        (
            DDPMScheduler(variance_type="learned_range"),
            "variance_type=learned_range, and",
        ),
        (
            DDPMScheduler(num_train_timesteps=7, trained_betas=[0.1]),
            "trained_betas has 1 numbers",
        ),
    ],
)
def test_scheduler_that_cannot_be_trained_for_is_refused(scheduler, message, tmp_path):
    model = save(tmp_path / "model", DDPMScheduler())
    shutil.rmtree(model / "scheduler")
    scheduler.save_pretrained(model / "scheduler")
    with pytest.raises(ValueError, match=message):
        resolve(model)


def test_learned_variance_follows_the_network(pictures, tmp_path):
    model = save(tmp_path / "model", DDPMScheduler(variance_type="learned_range"), out_channels=6)
    config, said = resolve(model)
    assert config.objective.learned_variance
    assert "objective.learned_variance=True (not False)" in said
    tune(model, pictures, tmp_path / "run")
    made = DDPMScheduler.from_pretrained(tmp_path / "run" / "model" / "scheduler")
    assert made.config["variance_type"] == "learned_range"
    with pytest.raises(ValueError, match=r"outputs are fixed, so leave out --objective\.learned"):
        resolve(model, "--objective.learned_variance", "false", "--override", "true")


def test_broken_scheduler_is_none_to_pass_over(tmp_path):
    model = save(tmp_path / "model", DDPMScheduler())
    (model / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        resolve(model)


def test_resume_notices_that_the_model_is_another_one(pictures, tmp_path):
    model = save(tmp_path / "model", SCHEDULERS["trained betas"])
    tune(model, pictures, tmp_path / "run")
    more = {"steps": 3, "resume": "auto"}
    tune(model, pictures, tmp_path / "run", "--optim.decay_steps", "2", **more)
    shutil.rmtree(model / "scheduler")
    betas = np.linspace(1e-3, 0.2, 50).tolist()
    changed = dict(SCHEDULERS["trained betas"].config) | {"trained_betas": betas}
    DDPMScheduler.from_config(changed).save_pretrained(model / "scheduler")
    with pytest.raises(ValueError, match=r"cannot resume: scheduler\.trained_betas was"):
        tune(model, pictures, tmp_path / "run", "--optim.decay_steps", "2", **more)


def test_flags_are_those_of_the_command_line():
    words = ["--config", "x.yaml", "--a.b=1", "--c", "-2", "--d", "{e: 1, f: 2}", "--g", "[1]"]
    assert given_flags(words) == {"config", "a.b", "c", "d", "d.e", "d.f", "g"}
