"""What programs leave in a file to which their output goes, such as the log of a batch system."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from accelerate import Accelerator

from ddpm_sa.cli import parse, run_program
from sampling import ablation, attention, edit, evaluate, restore, sample
from tests.support.runs import ROOT, arguments, environment
from tests.support.workers import Workers
from training.config import TrainConfig
from training.loop import Progress
from training.reporting.log import RunLog, line_interval

STEP = re.compile(
    r"step (\d+)/(\d+), loss \d+\.\d{4}, \d+ images/s, (\d+:)?\d\d:\d\d left"
    r"|step (?P<last>\d+)/(?P=last), loss \d+\.\d{4}, \d+ images/s, took (\d+:)?\d\d:\d\d"
)


def started(program, argv):
    """Run a program of sampling/ in a process that is its own."""
    sys.argv = ["program.py", *argv]
    run_program(program)


def log_of(program, argv, folder) -> str:
    """What a program writes to one file with `> log 2>&1`; it has no control characters."""
    log = folder / "log"
    run = None if program is None else partial(started, program)
    with Workers([str(word) for word in argv], 1, log, **({"program": run} if run else {})) as it:
        assert it.wait() == [0], it.printed()
    return checked(log.read_bytes())


def checked(log: bytes) -> str:
    assert {byte for byte in log if byte < 32} == {ord("\n")}
    text = log.decode()
    assert "\n\n" not in text
    return text


def steps_of(text: str) -> list[str]:
    """The lines from the first that begins with a step."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("step "))
    return lines[first:]


def test_a_training_run_in_a_file_is_a_line_at_every_log_every(pictures, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    argv = arguments(pictures, run, steps=50, log_every=10, tracker="tensorboard")
    with log.open("wb") as file:
        command = [sys.executable, "training/train.py", *argv]
        where = {"cwd": ROOT, "env": environment(), "stdout": file, "stderr": file}
        subprocess.run(command, **where, timeout=300, check=True)
    report, _, rest = checked(log.read_bytes()).partition("step 10/50")
    assert all(re.match(r"[a-z]+ {2,}\S", line) for line in report.splitlines()), report
    lines = f"step 10/50{rest}".splitlines()
    assert all(STEP.fullmatch(line) for line in lines[:5]), lines
    assert [line.split("/")[0] for line in lines[:5]] == [f"step {n}" for n in range(10, 51, 10)]
    assert lines[5:] == [f"50 steps done: {run}/model"]
    assert log.stat().st_size < 2000


def test_libraries_draw_no_bars_into_a_file(pictures, tmp_path, monkeypatch):
    """datasets draws one while it reads a table that it has not seen."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pixels = [{"bytes": path.read_bytes(), "path": None} for path in sorted(pictures.iterdir())]
    table = tmp_path / "images.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": pixels}), table)
    argv = arguments(table, tmp_path / "run", steps=1)
    command = [sys.executable, "training/train.py", *argv]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, timeout=300, check=True
    )
    assert STEP.fullmatch(checked(done.stderr).removesuffix("\n"))


def test_a_resumed_run_goes_on_with_its_lines(pictures, tmp_path):
    run = tmp_path / "run"
    log_of(None, arguments(pictures, run, steps=6), tmp_path)
    text = log_of(None, arguments(pictures, run, steps=10, resume="auto"), tmp_path)
    lines = steps_of(text)
    assert [line.split(",")[0] for line in lines[:-1]] == ["step 8/10", "step 10/10"]
    assert lines[-1].startswith("10 steps done")


def test_a_stopped_run_says_so_without_an_empty_line(pictures, tmp_path):
    argv = arguments(pictures, tmp_path / "run", steps=10**6, log_every=10**5, time_limit=1 / 60)
    lines = log_of(None, argv, tmp_path).splitlines()
    assert "the time limit: finishing the step, then saving" in lines
    assert lines[-1].startswith("stopped at step")


def test_sampling_in_a_file(straight, tmp_path):
    argv = ["--model", straight / "model", "--num_images", 8, "--batch_size", 4, "--steps", 10]
    text = log_of(sample.main, [*argv, "--output_dir", tmp_path / "out"], tmp_path)
    assert re.fullmatch(
        r"sampling, step 20/20, took 00:\d\d\n8 images made, 0 existed: .*grid.png\n", text
    )


def test_evaluation_in_a_file(straight, pictures, tmp_path):
    argv = ["--model", straight / "model", "--data", pictures, "--validation", 0.5]
    argv += ["--features", "tests.support.features:eight", "--num_images", 12, "--steps", 2]
    argv += ["--nearest", 2, "--likelihood", 2, "--losses", 4, "--output_dir", tmp_path / "out"]
    lines = log_of(evaluate.main, argv, tmp_path).splitlines()
    done = [line.rpartition(" ")[0] for line in lines if ", took " in line]
    assert done == [
        f"sampling {straight}/model, step 2/2, took",
        f"likelihood {straight}/model, evaluation 1000/1000, took",
    ]
    assert (tmp_path / "log").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [
        (["--edit", "sdedit", "--image", "[00.png]", "--strength", 0.5], 3),
        (["--edit", "reconstruct", "--image", "[00.png]"], 4),
        (["--edit", "progressive", "--count", 3], 4),
        (["--edit", "variations", "--level", 0, "--scheduler", "ddpm"], 4),
        (["--edit", "inpaint", "--image", "[00.png]", "--mask", "half.png", "--repeats", 3], 12),
    ],
)
def test_editing_in_a_file(words, evaluations, straight, pictures, tmp_path, run_main, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name in ("00.png", "01.png"):
        (tmp_path / name).write_bytes((pictures / name).read_bytes())
    half = np.zeros((8, 8), np.uint8)
    half[:4] = 255
    Image.fromarray(half).save("half.png")
    code, _, error = run_main(
        edit.main, "--model", straight / "model", "--steps", 4, *words, "--output_dir", "out"
    )
    assert code == 0, error
    done = re.findall(r"^(\w+), step (\d+)/(\d+), took 00:\d\d\n", error, re.M)
    times = 2 if words[1] == "reconstruct" else 1  # to the noise, and back
    assert done == [(words[1], f"{evaluations}", f"{evaluations}")] * times
    assert error.count("\n") == times


def test_restoring_in_a_file(straight, pictures, tmp_path, run_main):
    words = ["--task", "deblur", "--image", pictures / "00.png", pictures / "01.png", "--steps", 4]
    code, _, error = run_main(
        restore.main, "--model", straight / "model", *words, "--output_dir", tmp_path
    )
    assert code == 0, error
    assert re.fullmatch(r"deblur, step 8/8, took 00:\d\d\n", error)  # two batches of eight samples


def test_attention_in_a_file(straight, tmp_path, run_main):
    code, _, error = run_main(
        attention.main, "--model", straight / "model", "--steps", 3, "--output_dir", tmp_path
    )
    assert code == 0, error
    assert re.fullmatch(r"denoising, evaluation 6/6, took 00:\d\d\n", error)


def test_ablation_in_a_file(straight, tmp_path, run_main):
    words = ["--num_images", 4, "--batch_size", 2, "--steps", 2, "--output_dir", tmp_path]
    code, said, error = run_main(ablation.main, "--model", straight / "model", *words)
    assert code == 0, error
    sets = 2 + int(said.split()[0])
    total = sets * 2 * 2
    assert re.fullmatch(rf"sampling, step {total}/{total}, took 00:\d\d\n", error)


@pytest.mark.parametrize("log_every", [1, 20, 100])
def test_a_hundred_thousand_updates_are_less_than_200_kilobytes(log_every, tmp_path, capsys):
    config = parse(
        TrainConfig,
        ["--output_dir", str(tmp_path), "--data.source", "x", "--steps", "100000"],
    )
    config = replace(config, log_every=log_every, tracker="none", batch_size=2048)
    t, losses = np.array([0, 500]), np.array([0.0, 0.3])
    log = RunLog(Accelerator(cpu=True), config, {}, 0)
    # Records are not what is measured here.
    log._record = lambda row: None  # type: ignore[method-assign]
    with log:
        log.progress.began -= 300_000  # days, so that times are long
        for step in range(1, 100_001):
            log.update(Progress(step, 0.15, losses, t, 1e-4, 1.0, 1e-6, False))
            if step == 1:
                log.progress.first = (log.progress.began, 1)
    printed = capsys.readouterr().err.encode()
    lines = printed.splitlines()
    assert len(lines) == {1: 2500, 20: 2500, 100: 1000}[log_every]
    assert len(printed) < 200_000
    assert lines[-1].startswith(b"step 100000/100000, loss 0.1500, ")
    # 2048 images in a microsecond, and 83 hours left: lines are as long as they get.
    assert max(map(len, lines)) > 60


@pytest.mark.parametrize(
    ("log_every", "steps", "interval"),
    [
        (20, 1300, 20),
        (1, 2500, 1),
        (1, 2501, 2),
        (20, 100_000, 40),
        (100, 100_000, 100),
        (100, 1_200_000, 100),
        (1, 1_000_000, 40),
        (5000, 100, 5000),
    ],
)
def test_lines_are_left_out_only_where_there_would_be_thousands(log_every, steps, interval):
    assert line_interval(log_every, steps) == interval


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "configs").glob("*.yaml")))
def test_shipped_configurations_print_a_line_at_every_log_every(path: Path):
    config = parse(TrainConfig, ["--config", str(path)])
    assert line_interval(config.log_every, config.steps) == config.log_every


def test_a_terminal_gets_the_bar(pictures, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    argv = arguments(pictures, tmp_path / "run", steps=4)
    words = [sys.executable, "training/train.py", *argv]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux says so that the other end is closed
                break
            shown += part
            if not part:
                break
        assert process.wait(300) == 0
    os.close(ours)
    assert b"\r100%|" in shown
    assert b"images/s]" in shown
    assert b"step 4/4" not in shown
