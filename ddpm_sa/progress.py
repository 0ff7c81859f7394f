"""Progress of long work on standard error: a bar in a terminal, whole lines anywhere else.

Lines hold no control characters, so that the log of a batch system can be read and searched.
"""

import contextlib
import os
import sys
import time
from functools import partial
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Seconds between two lines: this, or, of longer work, a share of the time that it has taken, so
# that an hour is about 50 lines and a day 170.
LINE_SECONDS, LINE_SHARE, MOST_SECONDS = 10.0, 0.05, 600.0


class ProgressBar:
    """Shows how far some work is; a context manager.

    Args:
        work: What is done, such as "sampling"; may be empty.
        unit: What is counted, in the singular.
        total: How many there are.
        done: How many were done before, by an earlier process.
        shown: Whether to show anything; False for all processes but one.
        every: Without a terminal, print a line when the count is a multiple of this. None: after
            10 seconds, then whenever 10 seconds or a twentieth of the time so far have passed (at
            most 10 minutes). The last is always printed.
        delay: Show nothing of work that takes less than this many seconds.
        time_limit: Seconds from now on after which the work ends, done or not.
    """

    def __init__(
        self,
        work: str,
        unit: str,
        *,
        total: int,
        done: int = 0,
        shown: bool = True,
        every: int | None = None,
        delay: float = 0.0,
        time_limit: float | None = None,
    ):
        self.work, self.unit, self.total = work, unit, total
        self.done, self.done_before = done, done
        self.every, self.delay, self.time_limit = every, delay, time_limit
        self.began = self.last_line = time.monotonic()
        # The first of all takes longer (compilation, caches), so the speed is that of the others.
        self.first: tuple[float, int] | None = None  # when it was counted, and how many
        in_terminal = shown and sys.stderr.isatty()
        self.prints_lines = shown and not in_terminal
        self.bar = tqdm(
            desc=work or None,
            unit=unit,
            total=total,
            initial=done,
            delay=delay,
            leave=not delay,
            dynamic_ncols=True,
            disable=not in_terminal,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is; `with` does so at its end."""
        self.bar.close()

    def update(self, count: int = 1, note: str = "") -> None:
        """Count what was done.

        Args:
            count: How many more are done.
            note: What else to show, in place of the speed in a line.
        """
        self.done += count
        now = time.monotonic()
        if self.first is None:
            self.first = now, count
        limit = self._until_time_limit(now)
        if note:
            ends = f", time limit in {_duration(limit)}" if limit is not None else ""
            self.bar.set_postfix_str(f"{note}{ends}", refresh=False)
        self.bar.update(count)
        if self.prints_lines and self._is_due(now):
            self.last_line = now
            write_line(self._line(now, note))

    def _is_due(self, now: float) -> bool:
        elapsed = now - self.began
        if elapsed < self.delay:
            return False
        if self.done >= self.total:
            return True
        if self.every is not None:
            return self.done % self.every == 0
        pause = min(max(LINE_SECONDS, LINE_SHARE * elapsed), MOST_SECONDS)
        return now - self.last_line >= pause

    def _line(self, now: float, note: str) -> str:
        start = f"{self.work}, " if self.work else ""
        parts = [f"{start}{self.unit} {self.done}/{self.total}"]
        if note or self.done < self.total:
            parts.append(note or f"{self._per_second(now):.3g} {self.unit}s/s")
        parts.append(self._time(now))
        return ", ".join(parts)

    def _time(self, now: float) -> str:
        if self.done >= self.total:
            return f"took {_duration(now - self.began)}"
        limit = self._until_time_limit(now)
        if limit is not None:
            return f"{_duration(limit)} to the time limit"
        return f"{_duration(self._left(now))} left"

    def _per_second(self, now: float) -> float:
        since, count = self.began, self.done - self.done_before
        if self.first is not None and count > self.first[1]:
            since, count = self.first[0], count - self.first[1]
        return count / max(now - since, 1e-6)

    def _left(self, now: float) -> float:
        return (self.total - self.done) / self._per_second(now)

    def _until_time_limit(self, now: float) -> float | None:
        """Seconds to the time limit, if it comes before the end of the work."""
        if self.time_limit is None:
            return None
        limit = max(self.began + self.time_limit - now, 0.0)
        return limit if limit < self._left(now) else None


def _duration(seconds: float) -> str:
    """As "02:05" or "1:02:05"."""
    return tqdm.format_interval(round(seconds))


def write_line(text: str) -> None:
    """Write a line to standard error, above the bar if there is one.

    A log that cannot be written (a full disk, a closed pipe) does not end the work.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # in a file of both, what was printed earlier comes first
        tqdm.write(text, file=sys.stderr)


def show_progress(pipeline: Any, work: str, unit: str = "step", shown: bool = True) -> None:
    """Let a pipeline show its progress by `ProgressBar`, in place of diffusers' bar."""
    pipeline.progress_bar = partial(ProgressBar, work, unit, shown=shown)


def silence_bars_of_libraries() -> None:
    """Stop datasets and huggingface_hub from drawing bars where standard error is no terminal."""
    if sys.stderr.isatty():
        return
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
