from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_sa.cli import parse
from ddpm_sa.models.presets import preset
from tests.support.runs import ROOT
from training.config import (
    DataConfig,
    EMAConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from training.saved_config import (
    MAY_CHANGE_ON_RESUME,
    check_same_run,
    save_config,
    to_plain,
)

CONFIGS = sorted((ROOT / "training" / "configs").glob("*.yaml"))
CONFIG = TrainConfig(output_dir="runs/x", data=DataConfig(source="mnist5k"))


def read(name: str) -> TrainConfig:
    return parse(TrainConfig, ["--config", str(ROOT / "training" / "configs" / f"{name}.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_read(path):
    assert parse(TrainConfig, ["--config", str(path)]).output_dir == f"runs/{path.stem}"


def test_cifar10_is_the_papers_recipe():
    config = read("cifar10")
    # Ho et al. 2020, section 4 and appendix B; run_cifar.py.
    assert (config.batch_size, config.steps, config.data.flip) == (128, 800_000, True)
    assert config.optim == OptimConfig(
        lr=2e-4, warmup_steps=5000, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, grad_clip=1
    )
    assert config.ema == EMAConfig(decay=0.9999)
    assert config.objective == ObjectiveConfig()
    assert config.schedule == ScheduleConfig()


def test_lsun256_is_the_papers_recipe():
    config = read("lsun256")
    # run_lsun.py, for Church.
    assert (config.batch_size, config.steps, config.data.size) == (64, 1_200_000, 256)
    assert (config.optim.lr, config.optim.warmup_steps, config.ema.decay) == (2e-5, 5000, 0.9999)
    assert preset(config.model.preset).unet["sample_size"] == 256


@pytest.mark.parametrize("name", ["cifar10", "lsun256", "mnist"])
def test_config_files_agree_with_the_presets_numbers(name):
    config = read(name)
    assert preset(config.model.preset).training == {
        "batch_size": config.batch_size,
        "optimizer": config.optim.optimizer,
        "lr": config.optim.lr,
        "warmup_steps": config.optim.warmup_steps,
        "steps": config.steps,
        "ema_decay": config.ema.decay,
        "grad_clip": config.optim.grad_clip,
        "flip": config.data.flip,
    }


@settings(max_examples=15)
@given(
    source=st.sampled_from(["mnist5k", "a folder", "x.parquet"]),
    numbers=st.tuples(st.integers(1, 10**9), st.integers(0, 2**60)),
    lr=st.floats(1e-12, 1.0),
    precision=st.sampled_from(["auto", "no", "bf16", "fp16"]),
    attention=st.none() | st.lists(st.integers(1, 64), min_size=1),
    unet=st.fixed_dictionaries({}, optional={"block_out_channels": st.just([8, 16])}),
    limit=st.none() | st.floats(0.1, 1e6),
)
def test_a_configuration_comes_back_from_its_yaml(
    tmp_path_factory, source, numbers, lr, precision, attention, unet, limit
):
    config = TrainConfig(
        output_dir="runs/x",
        steps=numbers[0],
        seed=numbers[1],
        time_limit=limit,
        mixed_precision=precision,
        data=DataConfig(source=source, flip=False),
        model=ModelConfig(attention_resolutions=attention, unet=unet),
        optim=OptimConfig(lr=lr, grad_clip=None),
    )
    path: Path = tmp_path_factory.mktemp("config") / "config.yaml"
    save_config(config, path)
    assert parse(TrainConfig, ["--config", str(path)]) == config


def test_flags_win_over_the_file():
    path = str(ROOT / "training" / "configs" / "mnist.yaml")
    config = parse(TrainConfig, ["--config", path, "--optim.lr", "3e-5", "--seed", "9"])
    assert (config.optim.lr, config.seed, config.model.preset) == (3e-5, 9, "mnist")


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as end:
        parse(TrainConfig, ["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())

    def check(config: type, prefix: str = "") -> None:
        for field in fields(config):
            name = f"{prefix}{field.name}"
            kind = field.type
            if isinstance(kind, type) and is_dataclass(kind):
                check(kind, f"{name}.")
                continue
            assert f"--{name} " in text
            _, _, after = text.partition(f"--{name} ")
            described, _, _ = after.partition(" --")
            # A value's name, "(type: ..., default: ...)" and, between them, the explanation.
            words = described.split("(type:")[0].split("(required, type:")[0].split()
            assert len(words) > 2, name

    check(TrainConfig)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "1"], "learning_rate"),
        (["--optim.learning_rate", "1"], "learning_rate"),
        (["--batch_size", "many"], "batch_size"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--keep_every", "0"], "keep_every=0 must be at least 1, or null"),
        (["--schedule.kind", "saved"], "schedule.kind=saved needs model.init_from"),
        (
            ["--model.width", "8"],
            "model.width=8 is for model.preset=auto; .*preset=cifar10",
        ),
        (["--model.init_override", "[optim.lr]"], "optim.lr cannot be replaced; known are"),
        (["--model.init_override", "[schedule.kind]"], "no effect without model.init_from"),
        (["--on_nonfinite", "ignore"], "on_nonfinite"),
        (["--optim.lr", "-1"], "optim.lr=-1.0 must be above 0"),
        (["--ema.decay", "1"], "ema.decay=1.0 must be at least 0 and below 1"),
        (
            ["--ema.more", "[0.5, 1.5]"],
            r"ema.more=\[0.5, 1.5\]: 1.5 must be at least 0 and below 1",
        ),
        (["--ema.more", "[0.9999]"], "each decay once"),
        (["--schedule.beta_start", "0.5"], "schedule.beta_start=0.5"),
        (["--schedule.kind", "sigmoid"], "sigmoid"),
        (["--data.channels", "0"], "data.channels=0 must be at least 1 and at most 4096, or null"),
        (["--data.label_dropout", "0.1"], "set data.class_conditional true"),
        (["--model.unet", "{in_channels: 4}"], "follow from the data"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_settings_are_one_line_that_names_them(words, message):
    argv = ["--output_dir", "x", "--data.source", "mnist5k", *words]
    with pytest.raises(ValueError, match=message) as error:
        parse(TrainConfig, argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argv", [["--data.source", "mnist5k"], ["--output_dir", "x"]])
def test_what_has_no_default_is_asked_for(argv):
    with pytest.raises(ValueError, match=r"data|output_dir"):
        parse(TrainConfig, argv)


def test_resume_under_other_settings_names_both_values():
    saved = to_plain(CONFIG)
    same = replace(CONFIG, steps=7, save_every=3, resume="auto", output_dir="y")
    for override in (False, True):
        assert check_same_run(saved, saved, override) == []
        assert check_same_run(saved, to_plain(same), override) == []
    changed = to_plain(replace(CONFIG, seed=5, optim=OptimConfig(lr=1e-3)))
    changes = ["optim.lr was 0.0002 and is now 0.001", "seed was 0 and is now 5"]
    with pytest.raises(ValueError, match="; ".join(changes)):
        check_same_run(saved, changed, override=False)
    for note, change in zip(check_same_run(saved, changed, override=True), changes, strict=True):
        assert change in note


def test_fields_that_may_change_exist():
    names = set()
    for field in fields(TrainConfig):
        value = getattr(CONFIG, field.name)
        nested = fields(value) if is_dataclass(value) else ()
        names |= {f"{field.name}.{inner.name}" for inner in nested} or {field.name}
    assert names >= MAY_CHANGE_ON_RESUME
