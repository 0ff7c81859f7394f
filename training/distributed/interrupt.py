"""Being asked to stop: by a signal, by the clock, by the end of the launcher."""

import os
import signal
import time
from types import FrameType
from typing import Any

# accelerate launch and torchrun mark what they start. What a shell started may outlive it (nohup,
# setsid), so that parent is not watched. Asked as soon as the package is imported, since a launcher
# may be gone by the time that torch is.
MARKS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
LAUNCHER = os.getppid() if any(mark in os.environ for mark in MARKS) else None

# A launcher forwards the Ctrl-C that the terminal has sent to all of its processes already.
ECHO_SECONDS = 3.0

# Windows has no SIGHUP.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if name in dir(signal)]


class StopRequest:
    """Whether this process was asked to stop, and by what.

    `with StopRequest(minutes) as stop:` - then `stop()` says whether, and `stop.reason` why. The
    step under way is finished first. SIGTERM and SIGHUP count once, however often they come; Ctrl-C
    a second time, some seconds after the first, ends the program as if this were not here.
    """

    def __init__(self, time_limit: float | None = None):
        self.deadline = None if time_limit is None else time.monotonic() + 60 * time_limit
        self.reason: str | None = None
        self._heard = 0.0
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
            # nohup has SIGHUP ignored, and means it.
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
        elif number == signal.SIGINT and time.monotonic() - self._heard > ECHO_SECONDS:
            raise KeyboardInterrupt

    def _stop(self, reason: str) -> None:
        self.reason, self._heard = reason, time.monotonic()
        _tell(f"\n{reason}: finishing the step, then saving\n")


def _tell(message: str) -> None:
    """Write to standard error. A stream that nobody reads any more is closed off.

    Else the next word of the bar would raise, and cost the run what it is about to save.
    """
    for stream, text in ((1, "\n"), (2, message)):
        try:
            os.write(stream, text.encode())
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
