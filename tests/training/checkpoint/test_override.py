"""Resuming with --override true and a changed setting: it trains on, or is refused in one line."""

import dataclasses
import shutil
import typing
from collections.abc import Iterator

import pytest

from ddpm_sa.errors import UserError
from tests.support.runs import (
    TINY_UNET,
    arguments,
    checkpoint,
    metrics,
    picture_folder,
    run_here,
    same_bits,
)
from training.config import TrainConfig

NETWORK = "does not fit the network"
# For every setting another value than the run's, and what the refusal says, if it is refused.
CHANGES: dict[str, tuple[object, str | None]] = {
    "data.source": ("OTHER", None),
    "data.size": (16, None),
    "data.fit": ("pad", None),
    "data.channels": (1, NETWORK),
    "data.value_range": ("[0, 255]", None),
    "data.axes": ("ZYX", "data.axes"),
    "data.slices": ("every:2", "data.slices"),
    "data.drop_empty": (0.1, "data.drop_empty"),
    "data.dataset": ("images", "data.dataset"),
    "data.nan": (0, None),
    "data.clip": ("true", "needs data.value_range"),
    "data.flip": ("false", None),
    "data.class_conditional": ("true", NETWORK),
    "data.labels": ("labels.csv", "data.class_conditional true"),
    "data.num_classes": (5, "has no effect"),
    "data.label_dropout": (0.1, "data.class_conditional true"),
    "data.image_column": ("picture", None),
    "data.label_column": ("class", "has no effect"),
    "data.split": ("train", None),
    "data.validation": (0.25, None),
    "data.on_error": ("skip", None),
    "data.num_workers": (1, None),
    "data.memory": (0, None),
    "data.streaming": ("true", "data.streaming"),
    "data.shuffle_buffer": (10, "has no effect"),
    "data.cache_dir": ("CACHE", None),
    "model.preset": ("lsun256", None),  # model.unet decides what differs
    "model.width": (8, "model.width=8 is for model.preset=auto"),
    "model.init_from": ("MODEL", "model.unet"),
    "model.init_override": ("[schedule.kind]", "no effect without model.init_from"),
    "model.attention_resolutions": ("[8]", NETWORK),
    "model.dropout": (0.1, None),
    "model.gradient_checkpointing": ("true", None),
    "model.unet": (TINY_UNET.replace("16]", "32]"), NETWORK),
    "objective.prediction_type": ("v_prediction", None),
    "objective.weighting": ("min_snr", None),
    "objective.timestep_sampling": ("stratified", None),
    "objective.learned_variance": ("true", NETWORK),
    "schedule.kind": ("cosine", None),
    "schedule.num_timesteps": (500, None),
    "schedule.beta_start": (2e-4, None),
    "schedule.beta_end": (0.03, None),
    "condition.kind": ("downsample", NETWORK),
    "condition.factor": (2, "has no effect"),
    "condition.filter": ("bicubic", "has no effect"),
    "condition.mask": ("strokes", "has no effect"),
    "condition.sigma": (2, "has no effect"),
    "condition.std": (0.1, "has no effect"),
    "condition.quality": (10, "has no effect"),
    "condition.dropout": (0.1, "has no effect"),
    "condition.noise": (0.5, "has no effect"),
    "optim.optimizer": ("muon", None),
    "optim.lr": (0.01, None),
    "optim.warmup_steps": (1, None),
    "optim.decay_steps": (10, None),
    "optim.betas": ("[0.8, 0.99]", None),
    "optim.eps": (1e-7, None),
    "optim.weight_decay": (0.1, None),
    "optim.grad_clip": (0.5, None),
    "ema.decay": (0.8, None),
    "ema.warmup": ("true", None),
    "ema.more": ("[0.7]", None),
    "ema.keep_raw": ("true", None),
    "steps": (4, None),
    "batch_size": (4, None),
    "micro_batch_size": (4, None),
    "seed": (1, None),
    "save_every": (1, None),
    "sample_every": (1, None),
    "validate_every": (1, "has no effect"),
    "log_every": (1, None),
    "num_samples": (1, None),
    "num_validation": (5, "has no effect"),
    "sample_steps": (3, None),
    "mixed_precision": ("bf16", None),
    "compile": ("true", None),
    "sharding": ("fsdp", None),
    "time_limit": (0, None),
    "keep_checkpoints": (1, None),
    "keep_every": (5000, None),
    "on_nonfinite": ("skip", None),
    "tracker": ("tensorboard", None),
}
# What a resume is about.
GIVEN = {"output_dir", "resume", "override"}
# Tried in the default suite: the settings that what a checkpoint holds depends on.
QUICK = ("model.", "objective.", "schedule.", "optim.", "ema.", "data.c", "seed", "log_every")


def settings(kind: type, prefix: str = "") -> Iterator[str]:
    """The names of all settings, nested ones with a dot."""
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[field.name]):
            yield from settings(types[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_every_setting_is_tried() -> None:
    assert CHANGES.keys() == {*settings(TrainConfig)} - GIVEN


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two folders of images of two classes."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("own", "OTHER"):
        picture_folder(folder / name, ("a", "b"), each=6)
    return folder


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Runs of two updates, stopped amid an interval of records: one of each optimiser."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("adam", "muon"):
        argv = arguments(images / "own", folder / name, steps=2, log_every=5, optim__optimizer=name)
        run_here(argv)
    return folder


def resume(images, run, name, value):
    """Resume with one setting changed, for two updates more."""
    changes = {"steps": 4, "log_every": 5, "resume": "auto", "override": "true"}
    if value in ("OTHER", "MODEL", "CACHE"):
        value = {"OTHER": images / "OTHER", "MODEL": run / "model", "CACHE": images}[value]
    run_here([*arguments(images / "own", run, **changes), f"--{name}", str(value)])


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(
    "name",
    [x if x.startswith(QUICK) else pytest.param(x, marks=pytest.mark.slow) for x in CHANGES],
)
def test_changed_setting_trains_on_or_is_refused_in_a_line(name, images, runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "adam", run)
    value, refusal = CHANGES[name]
    if refusal is None:
        resume(images, run, name, value)
        assert (run / "checkpoints" / f"step-{3 if name == 'time_limit' else 4:08d}").exists()
        return
    before = (run / "config.yaml").read_text()
    with pytest.raises(UserError, match=refusal) as told:
        resume(images, run, name, value)
    assert len(str(told.value)) < 600
    assert "\n" not in str(told.value)
    assert (run / "config.yaml").read_text() == before
    assert not (run / "checkpoints" / "step-00000004").exists()


@pytest.mark.parametrize(("before", "after"), [("adam", "muon"), ("muon", "adam")])
def test_state_that_the_other_optimizer_lacks_starts_anew(
    before, after, images, runs, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(runs / before, run)
    resume(images, run, "optim.optimizer", after)
    printed = capsys.readouterr().out
    assert f"optim.optimizer was '{before}' and is now '{after}'" in printed
    assert "the optimiser's state of " in printed
    state = checkpoint(run, 4, "optimizer")
    assert state.keys() == checkpoint(runs / after, 2, "optimizer").keys()
    # What both optimisers treat alike has made all four updates.
    steps = {int(value) for name, value in state.items() if name.endswith(":step")}
    assert steps == ({4} if after == "muon" else {2, 4})


def test_new_average_starts_from_the_weights(images, runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "adam", run)
    resume(images, run, "ema.more", "[0.0]")
    assert "ema-0.0" in capsys.readouterr().out
    assert same_bits(checkpoint(run, 4, "ema-0.0"), checkpoint(run, 4, "weights"))
    assert [row["step"] for row in metrics(run)] == [4]
