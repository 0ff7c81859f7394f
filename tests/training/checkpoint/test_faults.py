"""What a run does when the disk does not serve: one line, exit code 2, and nothing lost."""

import os
import resource
import shutil
import subprocess
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from ddpm_sa import Pipeline
from tests.support.runs import arguments, checkpoint, metrics, run_here, same_bits
from tests.support.workers import Workers, wait_until
from training.checkpoint.state import find_damage, newest_checkpoint


@contextmanager
def small_disk(folder, size):
    """A real file system of so many bytes, in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder, options):
    """Change it, as soon as no file there is open for writing."""
    command = ["mount", "-o", f"remount,{options}", str(folder)]
    wait_until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0)


def ended_in_one_line(argv, processes, log, before=None):
    """Run to an end that its user can mend: the error line, which is printed once."""
    with Workers(argv, processes, log, before) as workers:
        assert workers.wait(120) == [2] * processes, workers.printed()
    lines = [line for line in workers.printed().splitlines() if "Traceback" in line]
    assert lines == [], workers.printed()
    (line,) = [line for line in workers.printed().splitlines() if line.startswith("error: ")]
    return line


# A checkpoint of the tiny network takes about 800 KiB.
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_full_disk_ends_the_run_and_leaves_the_last_checkpoint(pictures, tmp_path, processes):
    with small_disk(tmp_path / "disk", "4m") as disk:
        run, log = disk / "run", tmp_path / "log"
        argv = arguments(pictures, run, steps=12, save_every=1, log_every=1, keep_checkpoints=99)
        line = ended_in_one_line(argv, processes, log)
        assert "No space left on device" in line or "could not be written" in line
        assert "--resume auto" in line
        folder, passed_over = newest_checkpoint(run)
        assert folder is not None
        assert passed_over == []
        assert not list(run.glob("**/*.partial*"))
        remount(disk, "size=40m")
        with Workers([*argv, "--resume", "auto"], processes, log) as workers:
            assert workers.wait() == [0] * processes, workers.printed()
        whole = tmp_path / "whole"
        with Workers(arguments(pictures, whole, steps=12, log_every=1), processes, log) as workers:
            assert workers.wait() == [0] * processes, workers.printed()
        for stem in ("weights", "ema", "optimizer"):
            assert same_bits(checkpoint(run, 12, stem), checkpoint(whole, 12, stem)), stem
        assert metrics(run) == metrics(whole)


@pytest.mark.parametrize("tracker", ["none", "tensorboard"])
def test_disk_that_fills_between_saves_ends_the_run_too(pictures, tmp_path, tracker):
    """The records and the sample grids are what fails then."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        run, log = disk / "run", tmp_path / "log"
        argv = arguments(pictures, run, steps=10**6, log_every=1, sample_every=50, tracker=tracker)
        with Workers(argv, 1, log) as workers:
            wait_until(lambda: (run / "metrics.jsonl").exists())
            with suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
                while True:
                    other.write(bytes(4096))
            assert workers.wait(120) == [2], workers.printed()
        assert "Traceback" not in workers.printed()
        (line,) = [line for line in workers.printed().splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        (disk / "other").unlink()
        with Workers([*argv, "--resume", "auto", "--steps", "5"], 1, log) as workers:
            assert workers.wait() == [0], workers.printed()
        assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4, 5]


def test_disk_that_becomes_read_only_ends_the_run(pictures, tmp_path):
    with small_disk(tmp_path / "disk", "20m") as disk:
        run, log = disk / "run", tmp_path / "log"
        argv = arguments(pictures, run, steps=10**6, save_every=2)
        with Workers(argv, 1, log) as workers:
            wait_until(lambda: len([*run.glob("checkpoints/step-*[0-9]")]) > 1)
            remount(disk, "ro")
            assert workers.wait(120) == [2], workers.printed()
        assert "Read-only file system" in workers.printed()
        assert "Traceback" not in workers.printed()
        folder, _ = newest_checkpoint(run)
        assert folder is not None
        for changes in ({"resume": "auto"}, {"output_dir": disk / "new"}):
            with pytest.raises(ValueError, match=r"cannot be written: .*Read-only file system"):
                run_here(arguments(pictures, **({"output_dir": run} | changes)))


def test_model_that_cannot_be_written_is_written_by_the_resume(pictures, tmp_path):
    run = tmp_path / "run"
    argv = arguments(pictures, run)
    run.mkdir()
    (run / "model").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="model could not be written, but the last checkpoint is"):
        run_here(argv)
    assert find_damage(run / "checkpoints" / "step-00000006") is None
    (run / "model").unlink()
    run_here([*argv, "--resume", "auto"])
    average = dict(Pipeline.from_pretrained(run / "model").unet.state_dict())
    assert same_bits(average, checkpoint(run, 6, "ema"))
    assert [row["step"] for row in metrics(run)] == [2, 4, 6]


def test_quota_ends_the_run(pictures, tmp_path):
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"step-00000006 could not be written, .*too large"):
            run_here(arguments(pictures, run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*(run / "checkpoints").iterdir()] == []
    assert not (run / "model").exists()


def test_file_in_the_place_of_a_folder_is_named(pictures, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken is a file"):
        run_here(arguments(pictures, tmp_path / "taken"))
    with pytest.raises(ValueError, match=r"taken/run cannot be .*Not a directory"):
        run_here(arguments(pictures, tmp_path / "taken" / "run"))


def test_hosts_that_share_no_disk_are_told_so(pictures, tmp_path):
    """Each process has a working folder of its own, and the run's folder is named within it."""
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    host, log = partial(go_to, tmp_path), tmp_path / "log"
    argv = arguments(pictures, "run")
    with Workers([*argv, "--steps", "3"], 2, log, host) as workers:
        assert workers.wait() == [0, 0], workers.printed()
    assert not (tmp_path / "1" / "run").exists()
    line = ended_in_one_line([*argv, "--resume", "auto"], 2, log, host)
    assert "step-00000003 is missing on" in line
    shutil.copytree(tmp_path / "0" / "run", tmp_path / "1" / "run")
    with Workers([*argv, "--resume", "auto"], 2, log, host) as workers:
        assert workers.wait() == [0, 0], workers.printed()


def go_to(folder, rank):
    os.chdir(folder / str(rank))
