"""Several trainings of the same minutes, a few seconds each in turn.

A machine that slows down, or that others use for a while, so slows all of them alike.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from benchmarks.transcribed import Run, Weights

Start = Callable[[int], Run]
"""Begins a training of so many updates."""
TURN = 5.0  # seconds
TRIALS, TRIAL_UPDATES = 7, 4  # to see how many updates fit


@dataclass
class Training:
    """One training on its way.

    Attributes:
        run: What trains.
        planned: Updates after which its learning rate is 0.
        seconds: That it has trained for.
        updates: That it has made.
        weights: Copies the averaged weights as they are now.
        kept: Those copied at each moment.
    """

    run: Run
    planned: int
    seconds: float = 0.0
    updates: int = 0
    weights: Callable[[], Weights] = dict
    kept: list[Weights] = field(default_factory=list)

    def train_until(self, seconds: float) -> None:
        """Train until it has done so for so long in all, or all updates are made."""
        began = perf_counter() - self.seconds
        while self.seconds < seconds and (weights := next(self.run, None)) is not None:
            self.weights, self.updates = weights, self.updates + 1
            self.seconds = perf_counter() - began


def train_in_turns(
    starts: Mapping[str, Start], minutes: float, moments: Sequence[float]
) -> dict[str, Training]:
    """Train each for so many minutes.

    Args:
        starts: What trains, by name.
        minutes: Of each.
        moments: Shares of the minutes, rising, at which averaged weights are kept.
    """
    trainings = {}
    for name, seconds in _seconds_each(starts).items():
        planned = max(1, round(minutes * 60 / seconds))
        trainings[name] = Training(starts[name](planned), planned)
    keep = {moment * minutes * 60 for moment in moments}
    for end in sorted(keep.union(np.arange(TURN, max(keep), TURN).tolist())):
        for training in trainings.values():
            training.train_until(end)
            if end in keep:
                training.kept.append(training.weights())
    for training in trainings.values():
        training.run.close()
    return trainings


def _seconds_each(starts: Mapping[str, Start]) -> dict[str, float]:
    """How long an update of each takes: the median of trials in turn."""
    runs = {name: start(10**6) for name, start in starts.items()}
    for run in runs.values():
        next(run)  # what happens once
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TRIALS):
        for name, run in runs.items():
            began = perf_counter()
            for _ in range(TRIAL_UPDATES):
                next(run)
            seconds[name].append((perf_counter() - began) / TRIAL_UPDATES)
    for run in runs.values():
        run.close()
    return {name: statistics.median(times) for name, times in seconds.items()}
