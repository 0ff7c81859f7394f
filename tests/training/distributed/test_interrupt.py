"""Runs that are asked to stop: by signals, by the end of their terminal, by the clock."""

import fcntl
import os
import pty
import signal
import termios
from functools import partial

import pytest

from tests.support.runs import arguments, assert_same_run, run_here
from tests.support.workers import Workers, wait_until
from training.checkpoint.state import checkpoint_step, newest_checkpoint


def stopped(argv, run, log, how, before=None):
    """Start a run, stop it in some way: the step after which it has saved itself."""
    with Workers(argv, 1, log, before) as workers:
        wait_until(lambda: (run / "metrics.jsonl").exists())
        how(workers.processes[0])
        assert workers.wait() == [0], workers.printed()
    folder, passed_over = newest_checkpoint(run)
    assert folder is not None
    assert passed_over == []
    return checkpoint_step(folder)


def goes_on(pictures, run, step, folder):
    """Whether the run, two steps later, is one that was never stopped."""
    changes = {"steps": step + 2, "log_every": 1}
    run_here(arguments(pictures, run, **changes, resume="auto"))
    run_here(arguments(pictures, folder / "whole", **changes))
    assert_same_run(run, folder / "whole", step + 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_run_so_that_it_goes_on_bit_for_bit(pictures, tmp_path, number):
    run, log = tmp_path / "run", tmp_path / "log"
    argv = arguments(pictures, run, steps=10**6, log_every=1)
    step = stopped(argv, run, log, lambda process: os.kill(process.pid, number))
    assert f"by {number.name}: " in log.read_text()
    assert "continue with --resume auto" in log.read_text()
    goes_on(pictures, run, step, tmp_path)


def test_closed_terminal_ends_the_run_so_that_it_goes_on_bit_for_bit(pictures, tmp_path):
    """The system sends SIGHUP, and every word written there from then on is an error."""
    ours, theirs = pty.openpty()
    terminal = os.ttyname(theirs)
    os.close(theirs)
    run = tmp_path / "run"
    argv = arguments(pictures, run, steps=10**6, log_every=1)
    before = partial(sit_at, terminal)
    step = stopped(argv, run, tmp_path / "log", lambda process: os.close(ours), before)
    goes_on(pictures, run, step, tmp_path)


def sit_at(terminal, rank):
    """Make a terminal this process's own, as a shell's child has one."""
    os.setsid()
    descriptor = os.open(terminal, os.O_RDWR)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    for stream in (0, 1, 2):
        os.dup2(descriptor, stream)


def test_time_limit_ends_the_run_with_its_model(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    run_here(arguments(pictures, run, steps=10**6, time_limit=1 / 60))
    assert "by the time limit" in capsys.readouterr().out
    assert (run / "model" / "model_index.json").exists()
