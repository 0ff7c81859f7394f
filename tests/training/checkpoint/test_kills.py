"""Runs that are killed at random moments, several times, and end as if nothing had been."""

import json
import random
from contextlib import suppress

import pytest
from safetensors.torch import load_file

from tests.support.runs import arguments, metrics, same_bits
from tests.support.workers import Workers, wait_until


def killed_run(argv, run, processes, kills):
    """Kill a run so many times, one in three inside a save; how many saves were cut short."""
    moments = random.Random(processes)
    cut_short = 0
    for kill in range(kills):
        before = traces(run)
        with Workers(argv, processes, run.with_suffix(".log")) as workers:
            if kill % 3 == 0:
                victim = workers.processes[0]  # which saves
                wait_for(victim, run, before, "a save")
            else:
                victim = moments.choice(workers.processes)
                wait_for(victim, run, before, "a record")
                victim.join(moments.uniform(0, 0.3))
            victim.kill()
            victim.join()
            assert victim.exitcode == -9, workers.printed()
            # The others notice by themselves that one is gone.
            assert None not in workers.wait(60)
        cut_short += any(run.glob("checkpoints/*.partial"))
    return cut_short


def wait_for(process, run, before, what):
    """Until there is one that was not there before, or the process has ended."""
    wait_until(lambda: traces(run)[what] - before[what] or not process.is_alive())


def traces(run):
    """What can be seen of a run at work: saves under way, and records."""
    found = {"a save": set(), "a record": set()}
    for path in (*run.glob("checkpoints/*.partial"), run / "metrics.jsonl"):
        with suppress(FileNotFoundError):  # renamed by now, or not made yet
            state = path.stat()
            if path.name == "metrics.jsonl":
                found["a record"].add((state.st_ino, state.st_size))
            else:
                found["a save"].add(state.st_ino)
    return found


def check_kills(pictures, folder, processes, kills, least_cut_short):
    steps = 20 + 5 * kills
    changes = {"steps": steps, "save_every": 3, "sample_every": 7, "log_every": 4, "resume": "auto"}
    straight, run = folder / "straight", folder / "run"
    changes |= {"data__validation": 0.25, "validate_every": 5, "num_validation": 4}
    for path in (straight, run):
        argv = arguments(pictures, path, **changes, model__dropout=0.1)
        if path == run:
            assert killed_run(argv, run, processes, kills) >= least_cut_short
        with Workers(argv, processes, folder / "end.log") as workers:
            assert workers.wait() == [0] * processes, workers.printed()
    assert_same_folders(straight, run)


def assert_same_folders(one, other):
    """The same checkpoints, records, samples and model."""
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (one, other)]
    assert names[0] == names[1]
    for path in one.rglob("*.safetensors"):
        assert same_bits(load_file(path), load_file(other / path.relative_to(one))), path
    assert metrics(one) == metrics(other)
    assert len(metrics(one)) > 8
    for path in (*one.rglob("*.png"), *one.rglob("model/**/*.json")):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path
    for path in one.rglob("state.json"):
        states = [json.loads((run / path.relative_to(one)).read_text()) for run in (one, other)]
        for state in states:
            del state["log"]["seconds"]
            del state["counts"]["output_dir"]
        assert states[0] == states[1]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_three_times_is_the_run_that_was_not(pictures, tmp_path, processes):
    check_kills(pictures, tmp_path, processes, kills=3, least_cut_short=1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_killed_twenty_times_is_the_run_that_was_not(pictures, tmp_path, processes):
    check_kills(pictures, tmp_path, processes, kills=20, least_cut_short=4)
