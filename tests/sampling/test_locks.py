"""Programs that write one folder at a time: the second is refused, the first goes on untouched."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sampling.ablation
import sampling.attention
import sampling.convert
import sampling.edit
import sampling.evaluate
import sampling.export
import sampling.paper
import sampling.restore
import sampling.sample
from ddpm_sa.files import folder_lock
from ddpm_sa.files.folder_lock import hold_folder, lock_beside, lock_in
from tests.support.meeting import impatient, meet
from tests.support.workers import Workers, wait_until

COMMAND = ["--num_images", "6", "--steps", "100", "--batch_size", "1"]


def sample(argv: list[str]) -> None:
    sys.argv = ["sampling/sample.py", *argv]
    sampling.sample.main()


def pictures_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def check_two_at_once(model: Path, folder: Path, processes: int, times: int) -> None:
    def start(output_dir: Path, log: str, before: Callable[[int], None]) -> Workers:
        argv = ["--model", str(model), *COMMAND, "--output_dir", str(output_dir)]
        return Workers(argv, processes, folder / log, before, sample)

    with start(folder / "whole", "log", impatient) as workers:
        assert workers.wait() == [0] * processes, workers.printed()
    for number in range(times):
        out = folder / f"out{number}"
        together = meet(folder / f"meeting{number}")
        with start(out, "one.log", together) as one, start(out, "other.log", together) as other:
            ends = [one.wait(), other.wait()]
            printed = one.printed(), other.printed()
            assert sorted(ends) == [[0] * processes, [2] * processes], printed
            pids = [workers.processes[0].pid for workers in (one, other)]
        winner, loser = (0, 1) if ends[0] == [0] * processes else (1, 0)
        (line,) = [line for line in printed[loser].splitlines() if line.startswith("error: ")]
        assert f"output_dir={out} is in use by process {pids[winner]} on " in line
        assert "Traceback" not in printed[loser]
        assert pictures_of(out) == pictures_of(folder / "whole")
        assert sorted(os.listdir(out)) == sorted(os.listdir(folder / "whole"))


def test_of_two_programs_on_one_folder_the_second_is_refused(straight, tmp_path):
    check_two_at_once(straight, tmp_path, processes=1, times=1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_of_two_programs_on_one_folder_the_second_is_refused_each_time(
    straight, tmp_path, processes
):
    check_two_at_once(straight, tmp_path, processes, times=5)


def test_folder_of_a_killed_program_is_free_at_once(straight, tmp_path):
    out = tmp_path / "out"
    argv = ["--model", str(straight), *COMMAND, "--output_dir", str(out)]
    with Workers(argv, 1, tmp_path / "log", impatient, sample) as workers:
        wait_until(lambda: any(out.glob("0*.png")))
        workers.processes[0].kill()
        assert workers.wait() == [-signal.SIGKILL]
    assert lock_in(out).exists()
    with Workers(argv, 1, tmp_path / "log", impatient, sample) as workers:
        assert workers.wait() == [0], workers.printed()
        assert "images made, " in workers.printed()
    assert not lock_in(out).exists()


def hold(folder: Path, lock_of: Callable[[Path], Path], ready, end) -> None:
    with hold_folder(folder, lock_of):
        ready.set()
        end.wait()


@pytest.fixture
def held(tmp_path):
    """Hold a folder in another process for the length of the test."""
    context = multiprocessing.get_context("forkserver")
    end, processes = context.Event(), []

    def start(folder: Path, lock_of: Callable[[Path], Path] = lock_in) -> int:
        ready = context.Event()
        process = context.Process(target=hold, args=(folder, lock_of, ready, end))
        process.start()
        processes.append(process)
        assert ready.wait(60)
        assert process.pid is not None
        return process.pid

    yield start
    end.set()
    for process in processes:
        process.join()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (sampling.sample.main, []),
        (sampling.edit.main, ["--edit", "variations"]),
        (sampling.restore.main, ["--task", "deblur", "--image", "a.png"]),
        (sampling.evaluate.main, []),
        (sampling.attention.main, []),
        (sampling.ablation.main, []),
        (sampling.export.main, ["--format", "pt2"]),
        (sampling.paper.main, []),
    ],
)
def test_every_program_refuses_a_folder_that_is_held(
    program, words, straight, held, run_main, tmp_path, monkeypatch
):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
    out = tmp_path / "out"
    pid = held(out)
    code, _, error = run_main(program, "--model", straight, "--output_dir", out, *words)
    assert (code, error.count("\n")) == (2, 1)
    assert f"output_dir={out} is in use by process {pid} on " in error
    assert os.listdir(out) == [lock_in(out).name]


def test_a_model_that_is_being_converted_is_held(held, run_main, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pt")
    out = tmp_path / "out"
    pid = held(out, lock_beside)
    code, _, error = run_main(sampling.convert.main, tmp_path / "a.pt", "--output_dir", out)
    assert (code, error.count("\n")) == (2, 1)
    assert f"output_dir={out} is in use by process {pid} on " in error
    assert not out.exists()
