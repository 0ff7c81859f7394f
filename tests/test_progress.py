"""What is shown of long work: a bar in a terminal, whole lines in a file."""

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from ddpm_sa import progress
from ddpm_sa.progress import ProgressBar, write_line


class Clock:
    """A clock that a test moves on."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def run(bar, clock, seconds, note=""):
    """Do all the work, one after the other, each taking so many seconds."""
    with bar:
        while bar.done < bar.total:
            clock.now += seconds
            bar.update(note=note)


def test_lines_come_at_multiples_and_at_the_end_with_the_time_left(clock, capsys):
    run(ProgressBar("", "step", total=10, every=4), clock, 60, "loss 0.1000, 8 images/s")
    assert capsys.readouterr() == (
        "",
        "step 4/10, loss 0.1000, 8 images/s, 06:00 left\n"
        "step 8/10, loss 0.1000, 8 images/s, 02:00 left\n"
        "step 10/10, loss 0.1000, 8 images/s, took 10:00\n",
    )


def test_without_a_note_a_line_has_the_speed(clock, capsys):
    run(ProgressBar("sampling", "step", total=4, every=2), clock, 0.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["sampling, step 2/4, 4 steps/s, 00:00 left", "sampling, step 4/4, took 00:01"]


def test_the_first_count_which_compiles_does_not_slow_the_rest_down(clock, capsys):
    bar = ProgressBar("", "step", total=101, every=1)
    clock.now += 300
    bar.update()
    assert "8:20:00 left" in capsys.readouterr().err  # nothing else is known yet
    for _ in range(10):
        clock.now += 1
        bar.update()
    assert capsys.readouterr().err.splitlines()[-1] == "step 11/101, 1 steps/s, 01:30 left"


def test_time_left_of_resumed_work_follows_from_what_this_process_did(clock, capsys):
    bar = ProgressBar("", "step", total=1000, done=900, every=10)
    for _ in range(20):
        clock.now += 2
        bar.update(note="loss 1")
    assert capsys.readouterr().err.splitlines() == [
        "step 910/1000, loss 1, 03:00 left",
        "step 920/1000, loss 1, 02:40 left",
    ]


def test_a_time_limit_that_comes_first_is_what_is_left(clock, capsys):
    run(ProgressBar("", "step", total=4, every=1, time_limit=100), clock, 30, "loss 1")
    assert capsys.readouterr().err.splitlines() == [
        "step 1/4, loss 1, 01:10 to the time limit",
        "step 2/4, loss 1, 00:40 to the time limit",
        "step 3/4, loss 1, 00:10 to the time limit",
        "step 4/4, loss 1, took 02:00",
    ]
    run(ProgressBar("", "step", total=2, every=1, time_limit=100), clock, 30, "loss 1")
    assert "time limit" not in capsys.readouterr().err


@pytest.mark.parametrize(("hours", "most"), [(0.1, 40), (1, 90), (24, 300)])
def test_lines_by_time_grow_with_the_logarithm_of_the_time(hours, most, clock, capsys):
    bar = ProgressBar("sampling", "step", total=round(hours * 3600))
    run(bar, clock, 1)
    lines = capsys.readouterr().err.splitlines()
    assert 20 < len(lines) < most
    assert lines[-1].startswith(f"sampling, step {bar.total}/{bar.total}, took ")
    assert lines[0].startswith("sampling, step 10/")


def test_short_work_with_a_delay_and_other_processes_show_nothing(clock, capsys):
    run(ProgressBar("decoding images", "image", total=5, delay=2), clock, 0.2)
    run(ProgressBar("sampling", "step", total=5, shown=False, every=1), clock, 100)
    assert capsys.readouterr() == ("", "")
    run(ProgressBar("decoding images", "image", total=5, delay=2), clock, 0.5)
    assert capsys.readouterr().err == "decoding images, image 5/5, took 00:02\n"


def test_a_terminal_has_a_bar_in_place_and_no_lines(monkeypatch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with ProgressBar("sampling", "step", total=3, every=1) as bar:
            for _ in range(3):
                bar.update(note="loss 0.5")
            write_line("a warning")
        terminal.flush()
        shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\rsampling: 100%" in shown
    assert "loss 0.5" in shown
    assert "step 3/3" not in shown
    assert "a warning\r\n" in shown  # on a line of its own


def test_a_log_that_cannot_be_written_does_not_end_the_work(clock, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    run(bar := ProgressBar("", "step", total=3, every=1), clock, 1)
    assert bar.done == 3
