"""Losses and gradients that are not finite: stopped at, or left out by every process."""

import itertools
from functools import partial

import pytest

import training.loop
import training.train
from tests.support.runs import (
    STEMS,
    arguments,
    assert_same_run,
    checkpoint,
    metrics,
    run_here,
    same_bits,
)
from tests.support.workers import Workers
from training.loop import make_batch

CHANGES = {"save_every": 1, "keep_checkpoints": 9, "log_every": 1, "optim__warmup_steps": 0}
SPOILT = (2, 4)


def spoilt_batch(images, draws, layout, step):
    """The batch of a step; the last image of the second and of the fourth is not finite."""
    batch = make_batch(images, draws, layout, step)
    if step + 1 in SPOILT and layout.process == layout.processes - 1:
        batch.micro_batches[-1].x_0[-1, 0, 0, 0] = float("inf")
    return batch


def test_updates_that_are_not_finite_are_left_out_and_counted(
    pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("training.loop.make_batch", spoilt_batch)
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    with pytest.raises(ValueError, match=r"loss of step 2 is not finite \(timesteps \d+\).*skip"):
        run_here(arguments(pictures, run, **CHANGES))
    argv = arguments(pictures, run, **CHANGES, on_nonfinite="skip", resume="auto")
    run_here(argv)
    assert "6 steps done (2 updates skipped: not finite)" in capsys.readouterr().out
    assert_left_out(run)

    argv = arguments(pictures, stopped, **CHANGES, on_nonfinite="skip", resume="auto")
    for limit in (0, 0, 1):
        run_here([*argv, "--time_limit", str(limit)])
    assert_same_run(run, stopped, 6)


def assert_left_out(run):
    """The second and the fourth update are counted, and have changed nothing."""
    assert [row["skipped"] for row in metrics(run)] == [0, 1, 1, 2, 2, 2]
    assert [row["loss"] is None for row in metrics(run)] == [False, True, False, True, False, False]
    for stem in STEMS:
        states = [checkpoint(run, step, stem) for step in range(1, 7)]
        same = [same_bits(one, other) for one, other in itertools.pairwise(states)]
        assert same == [True, False, True, False, False], stem


@pytest.mark.slow
def test_all_processes_leave_out_the_update_that_one_found_not_finite(pictures, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    argv = arguments(pictures, run, **CHANGES)
    with Workers(argv, 2, log, partial(spoil, tmp_path)) as workers:
        assert workers.wait() == [2, 2], workers.printed()
    assert workers.printed().count("loss of step 2 is not finite") == 1
    argv += ["--on_nonfinite", "skip", "--resume", "auto"]
    with Workers(argv, 2, log, partial(spoil, tmp_path)) as workers:
        assert workers.wait() == [0, 0], workers.printed()
    assert "6 steps done (2 updates skipped: not finite)" in workers.printed()
    assert_left_out(run)
    zero, one = (path.read_text().splitlines() for path in sorted(tmp_path.glob("left-out-*")))
    assert zero == one
    assert [line.split(" is not finite")[0] for line in zero] == [
        "the loss of step 2",  # at which the first attempt stopped
        "the loss of step 4",
    ]


def spoil(folder, rank):
    """Spoil a process's batches, and have it write down the updates that it leaves out."""
    training.loop.make_batch = spoilt_batch
    train_steps = training.train.train_steps

    def noted(*args, **kwargs):
        for progress in train_steps(*args, **kwargs):
            if progress.skipped is not None:
                with (folder / f"left-out-{rank}").open("a") as file:
                    file.write(progress.skipped + "\n")
            yield progress

    training.train.train_steps = noted
