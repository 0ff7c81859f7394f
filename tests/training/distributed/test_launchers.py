"""Runs under accelerate launch and torchrun: signals, ends of the launcher, restarts, two nodes."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from tests.support.runs import (
    ROOT,
    arguments,
    checkpoint,
    environment,
    metrics,
    run_here,
    run_there,
    same_bits,
    torchrun,
)
from tests.support.workers import free_port, wait_until
from training.checkpoint.state import checkpoint_step, list_checkpoints, newest_checkpoint

ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
    *("--dynamo_backend", "no", "--mixed_precision", "no", "--cpu"),
)


@contextmanager
def launched(launcher, argv, log):
    """A launcher in a group of its own, until the run of its processes is under way."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *launcher, "training/train.py", *argv],
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for one in (*workers_of(process), process):
            one.kill()
        process.wait()


def workers_of(process):
    """The processes that run the program, as the launcher's children."""
    if process.poll() is not None:
        return []
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "training/train.py" in " ".join(child.cmdline())]


def signal_all(process):
    os.killpg(process.pid, signal.SIGTERM)


def signal_launcher(process):
    process.terminate()


def kill_launcher(process):
    process.kill()


def stop(launcher, argv, run, log, how):
    """Start, stop in some way, and wait: the step at which the run has saved itself."""
    with launched(launcher, argv, log) as process:
        wait_until(lambda: (run / "metrics.jsonl").exists() or process.poll() is not None, 120)
        workers = workers_of(process)
        assert workers, log.read_text()
        how(process)
        try:
            psutil.wait_procs(workers, timeout=60)
            assert not any(worker.is_running() for worker in workers), log.read_text()
        finally:
            for worker in workers:
                if worker.is_running():
                    worker.kill()
    assert "continue with --resume auto" in log.read_text(), log.read_text()
    folder, passed_over = newest_checkpoint(run)
    assert folder is not None, log.read_text()
    assert passed_over == []
    return checkpoint_step(folder)


def check_stop(launcher, pictures, folder, how, processes):
    run, whole, log = folder / "run", folder / "whole", folder / "log"
    step = stop(launcher, arguments(pictures, run, steps=10**6, log_every=1), run, log, how)
    ended = [row["step"] for row in metrics(run)]
    assert ended == [*range(1, step + 1)]
    if processes == 1:
        run_here(arguments(pictures, whole, steps=step, log_every=1))
        for stem in ("weights", "ema", "optimizer"):
            assert same_bits(checkpoint(run, step, stem), checkpoint(whole, step, stem)), stem
    return log.read_text()


@pytest.mark.parametrize(
    "how", [kill_launcher, pytest.param(signal_launcher, marks=pytest.mark.slow)]
)
def test_end_of_accelerate_launch_ends_the_run_well(pictures, tmp_path, how):
    """It sends its child no signal, and cannot if it was killed."""
    printed = check_stop(ACCELERATE, pictures, tmp_path, how, 1)
    assert "by the end of its launcher (process" in printed


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal_launcher, kill_launcher])
def test_end_of_torchrun_ends_the_run_well(pictures, tmp_path, how):
    check_stop(torchrun(2), pictures, tmp_path, how, 2)


@pytest.mark.slow
def test_signal_to_the_whole_group_ends_the_run_well(pictures, tmp_path):
    """Each process then gets it twice: torchrun sends it on."""
    printed = check_stop(torchrun(2), pictures, tmp_path, signal_all, 2)
    assert "by SIGTERM" in printed


@pytest.mark.slow
def test_worker_that_is_killed_is_restarted_and_ends_with_the_same_weights(pictures, tmp_path):
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "log"
    changes = {"steps": 200, "save_every": 10, "keep_checkpoints": 2}
    launcher = (*torchrun(2), "--max-restarts=2")
    with launched(launcher, arguments(pictures, run, **changes), log) as process:
        for step in (20, 90):
            wait_until(lambda step=step: steps_saved(run) >= step, 120)
            workers_of(process)[step % 2].kill()
        assert process.wait(180) == 0, log.read_text()
    assert log.read_text().count("restarted by torchrun: continuing from") == 2
    ended = run_there(arguments(pictures, whole, **changes), *torchrun(2))
    assert ended.returncode == 0, ended.stderr
    for stem in ("weights", "ema", "optimizer"):
        assert same_bits(checkpoint(run, 200, stem), checkpoint(whole, 200, stem)), stem
    assert metrics(run) == metrics(whole)


def steps_saved(run):
    return max(map(checkpoint_step, list_checkpoints(run)), default=0)


@pytest.mark.slow
def test_restarts_do_not_take_over_a_run_that_was_refused(pictures, tmp_path):
    run = tmp_path / "run"
    run_here(arguments(pictures, run, steps=2))
    before = (run / "metrics.jsonl").read_bytes()
    ended = run_there(arguments(pictures, run), *torchrun(1), "--max-restarts=1")
    assert ended.returncode != 0
    assert ended.stderr.count("already holds a run; add --resume auto") == 2
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_two_nodes_are_one_of_two_processes(pictures, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"steps": 10, "sample_every": 5, "optim__warmup_steps": 0}
    ended = run_there(arguments(pictures, one, **changes), *torchrun(2))
    assert ended.returncode == 0, ended.stderr
    argv, port = arguments(pictures, two, **changes), free_port()
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *(f"--node_rank={rank}", "--nproc_per_node=1"),
                *("--master_addr=127.0.0.1", f"--master_port={port}"),
                *("training/train.py", *argv),
            ],
            cwd=ROOT,
            env=environment(),
        )
        for rank in (0, 1)
    ]
    assert [node.wait(180) for node in nodes] == [0, 0]
    for stem in ("weights", "ema", "optimizer"):
        assert same_bits(checkpoint(one, 10, stem), checkpoint(two, 10, stem)), stem
    assert metrics(one) == metrics(two)
    for name in ("step-00000005.png", "step-00000010.png"):
        assert (one / "samples" / name).read_bytes() == (two / "samples" / name).read_bytes()
