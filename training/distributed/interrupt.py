"""Requests to stop a run: signals, the time limit, and the end of the launcher."""

import os
import signal
import stat
import time
from types import FrameType
from typing import Any

# Set by accelerate launch and torchrun. A process started from a shell may outlive it (nohup,
# setsid), so then the parent is not watched. Read when the package is imported, since the launcher
# may have ended by the time torch is imported.
LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
LAUNCHER = os.getppid() if any(mark in os.environ for mark in LAUNCHER_VARIABLES) else None

# A launcher forwards a Ctrl-C that the terminal has already sent to all processes.
ECHO_SECONDS = 3.0

# Windows has no SIGHUP.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if name in dir(signal)]


class StopRequest:
    """Tells whether this process was asked to stop, and by what.

    In `with StopRequest(minutes) as stop:`, `stop()` returns whether to stop, and `stop.reason` is
    the cause. The current step is finished first. Repeated SIGTERM and SIGHUP are ignored; a second
    Ctrl-C, some seconds after the first, ends the program at once.
    """

    def __init__(self, time_limit: float | None = None):
        self.deadline = None if time_limit is None else time.monotonic() + 60 * time_limit
        self.reason: str | None = None
        self._requested_at = 0.0
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        if self.reason is None:
            if self.deadline is not None and time.monotonic() > self.deadline:
                self._stop("the time limit")
            elif LAUNCHER is not None and os.getppid() != LAUNCHER:
                self._stop(f"the end of its launcher (process {LAUNCHER})")
        return self.reason is not None

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            # nohup ignores SIGHUP; leave it so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self._stop(signal.Signals(number).name)
        elif number == signal.SIGINT and time.monotonic() - self._requested_at > ECHO_SECONDS:
            raise KeyboardInterrupt

    def _stop(self, reason: str) -> None:
        self.reason, self._requested_at = reason, time.monotonic()
        below_bar = "\n" if os.isatty(2) else ""
        _write_stderr(f"{below_bar}{reason}: finishing the step, then saving\n")


def _write_stderr(message: str) -> None:
    """Write to standard error, and redirect broken streams to the null device.

    Otherwise the next output of the progress bar would raise, before the checkpoint is saved.
    """
    for stream, text in ((1, "\n"), (2, message)):
        try:
            # Whether a terminal or a pipe is broken shows only in writing; a file would keep it.
            if stream == 2 or not stat.S_ISREG(os.fstat(stream).st_mode):
                os.write(stream, text.encode())
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
