"""Run several trainings for the same time, a few seconds each in turn.

If the machine slows down, or others use it for a while, all trainings slow down alike.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from benchmarks.trainers.transcribed import Run, Weights

Start = Callable[[int], Run]
"""Starts a training of the given number of updates."""
TURN = 5.0  # seconds
TRIALS, TRIAL_UPDATES = 7, 4  # to estimate how many updates fit into the time


@dataclass
class Training:
    """A training in progress.

    Attributes:
        run: The generator that trains.
        planned: Number of updates after which the learning rate is 0.
        seconds: Training time so far.
        updates: Number of updates so far.
        weights: Copies the current averaged weights.
        kept: Averaged weights at each of the moments.
    """

    run: Run
    planned: int
    seconds: float = 0.0
    updates: int = 0
    weights: Callable[[], Weights] = dict
    kept: list[Weights] = field(default_factory=list)

    def train_until(self, seconds: float) -> None:
        """Train until the total training time is reached, or all updates are done."""
        began = perf_counter() - self.seconds
        while self.seconds < seconds and (weights := next(self.run, None)) is not None:
            self.weights, self.updates = weights, self.updates + 1
            self.seconds = perf_counter() - began


def train_in_turns(
    starts: Mapping[str, Start], minutes: float, moments: Sequence[float]
) -> dict[str, Training]:
    """Run each training for the given number of minutes.

    Args:
        starts: Functions that start the trainings, by name.
        minutes: Training time of each.
        moments: Increasing shares of the minutes at which averaged weights are kept.
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
    """Measure the seconds of one update of each training: the median of alternating trials."""
    runs = {name: start(10**6) for name, start in starts.items()}
    for run in runs.values():
        next(run)  # one-off costs
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
