"""Trainings that take turns: each has its minutes, and its weights of each moment."""

from itertools import groupby

import pytest

from benchmarks.trainers.turns import TURN, train_in_turns


class Clock:
    """Goes on when a training makes an update, and writes down whose it was."""

    def __init__(self):
        self.now, self.updates = 0.0, []

    def training(self, name, seconds, most=10**9):
        """Updates that take so long; the weights are the number of updates."""

        def start(steps):
            for update in range(1, min(steps, most) + 1):
                self.now += seconds
                self.updates.append(name)
                yield lambda update=update: update

        return start


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("benchmarks.trainers.turns.perf_counter", lambda: clock.now)
    return clock


def test_trainings_have_the_same_minutes_and_keep_weights_on_the_way(clock):
    starts = {"fast": clock.training("fast", 0.25), "slow": clock.training("slow", 0.5)}
    runs = train_in_turns(starts, 1, (0.25, 1))
    assert (runs["fast"].updates, runs["fast"].planned, runs["fast"].kept) == (240, 240, [60, 240])
    assert (runs["slow"].updates, runs["slow"].planned, runs["slow"].kept) == (120, 120, [30, 120])
    assert runs["fast"].seconds == runs["slow"].seconds == 60


def test_a_training_that_is_done_keeps_its_last_weights(clock):
    run = train_in_turns({"short": clock.training("short", 0.25, most=40)}, 1, (0.5, 1))["short"]
    assert (run.updates, run.seconds, run.kept) == (40, 10, [40, 40])


def test_turns_alternate_and_are_short(clock):
    train_in_turns({name: clock.training(name, 0.25) for name in "ab"}, 1, (1,))
    turns = [(name, len(list(updates))) for name, updates in groupby(clock.updates[-480:])]
    assert [name for name, _ in turns] == ["a", "b"] * int(60 / TURN)
    assert {updates for _, updates in turns} == {TURN / 0.25}
