"""Runs that are started on a folder which another one is writing: refused, and nothing lost."""

import os
import signal
import time
from functools import partial

import pytest

from ddpm_sa.files import folder_lock
from tests.support.meeting import meet
from tests.support.runs import arguments, assert_same_run, metrics, run_here
from tests.support.workers import Workers, wait_until

STEPS = 20


def patient(rank):
    folder_lock.PATIENCE = 60.0


def check_two_at_once(pictures, folder, processes, times):
    whole = folder / "whole"
    changes = {"steps": STEPS, "save_every": 5, "keep_checkpoints": 2, "resume": "auto"}
    with Workers(arguments(pictures, whole, **changes), processes, folder / "whole.log") as workers:
        assert workers.wait() == [0] * processes, workers.printed()
    for number in range(times):
        run, logs = folder / f"run{number}", [folder / "one.log", folder / "other.log"]
        start = partial(Workers, arguments(pictures, run, **changes), processes)
        together = meet(folder / f"meeting{number}")
        with start(logs[0], together) as one, start(logs[1], together) as other:
            ends = [one.wait(), other.wait()]
            printed = one.printed(), other.printed()
            assert sorted(ends) == [[0] * processes, [2] * processes], printed
            pids = [workers.processes[0].pid for workers in (one, other)]
        winner, loser = (0, 1) if ends[0] == [0] * processes else (1, 0)
        (line,) = [line for line in printed[loser].splitlines() if line.startswith("error: ")]
        assert f"output_dir={run} is in use by process {pids[winner]} on " in line
        assert "Traceback" not in printed[loser]
        assert_same_run(whole, run, STEPS)
        assert sorted(os.listdir(run)) == sorted(os.listdir(whole))


@pytest.mark.parametrize("processes", [1, 2])
def test_of_two_runs_on_one_folder_the_second_is_refused(pictures, tmp_path, processes):
    check_two_at_once(pictures, tmp_path, processes, times=1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_of_two_runs_on_one_folder_the_second_is_refused_each_time(pictures, tmp_path, processes):
    check_two_at_once(pictures, tmp_path, processes, times=5)


def test_folder_of_a_killed_run_is_free_at_once(pictures, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    argv = arguments(pictures, run, steps=10**6, save_every=2)
    with Workers(argv, 1, log) as workers:
        wait_until(lambda: any(run.glob("checkpoints/step-*[0-9]")))
        workers.processes[0].kill()
        assert workers.wait() == [-signal.SIGKILL]
    assert folder_lock.lock_in(run).exists()
    start = time.monotonic()
    run_here([*argv, "--resume", "auto", "--time_limit", "0"])
    assert time.monotonic() - start < folder_lock.STALE
    assert not folder_lock.lock_in(run).exists()


def test_run_waits_for_the_end_of_an_earlier_one(pictures, tmp_path):
    """As when a cluster starts a job again while its old process saves itself."""
    run, log = tmp_path / "run", tmp_path / "log"
    argv = arguments(pictures, run, steps=10**6, resume="auto")
    with Workers(argv, 1, log) as old:
        wait_until((run / "metrics.jsonl").exists)
        with Workers([*argv, "--time_limit", "0"], 1, tmp_path / "new.log", patient) as new:
            time.sleep(1)
            old.processes[0].terminate()
            assert old.wait() == [0], old.printed()
            assert new.wait() == [0], new.printed()
    steps = [row["step"] for row in metrics(run)]
    assert steps == sorted(set(steps))


def test_refused_run_leaves_no_folder(pictures, tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        run_here(arguments(tmp_path / "nothing", tmp_path / "new" / "run"))
    assert not (tmp_path / "new").exists()
