"""1, 2 and 4 processes, each accumulating 1, 2 and 4 times, train alike on the same batch."""

from functools import cache, partial

import numpy as np
import pytest

import training.loop
from tests.support.runs import (
    STEMS,
    arguments,
    assert_same_gradient,
    checkpoint,
    metrics,
    same_bits,
)
from tests.support.workers import Workers

BATCH, STEPS = 16, 10


def keep_batches(folder, rank):
    """Let a process write down what its network is about to see."""
    make_batch = training.loop.make_batch

    def kept(images, draws, layout, step):
        batch = make_batch(images, draws, layout, step)
        for span, micro in zip(layout.spans(), batch.micro_batches, strict=True):
            path = folder / f"{step:02d}-{span.start:02d}.npz"
            np.savez(path, t=micro.t, eps=micro.eps, x_0=micro.x_0)
        return batch

    training.loop.make_batch = kept


def seen(folder):
    """What all processes saw at each step, in the batch's order."""
    everything = {}
    for step in sorted({int(path.name[:2]) for path in folder.iterdir()}):
        parts = [dict(np.load(path)) for path in sorted(folder.glob(f"{step:02d}-*.npz"))]
        everything[step] = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
    return everything


@pytest.fixture(scope="module")
def train(pictures, saved_network, tmp_path_factory):
    """Train under a layout: the run, and what its processes saw."""
    folder = tmp_path_factory.mktemp("layouts")

    @cache
    def trained(processes, accumulation, resume="never"):
        name = f"{processes}x{accumulation}"
        run = folder / (name if resume == "never" else f"{name}-from-{resume.parts[-3]}")
        batches = folder / f"{run.name}-batches"
        batches.mkdir()
        argv = arguments(
            pictures,
            run,
            steps=STEPS,
            batch_size=BATCH,
            micro_batch_size=BATCH // (processes * accumulation),
            save_every=1,
            keep_checkpoints=STEPS,
            log_every=1,
            model__unet=None,
            model__init_from=saved_network,
            optim__lr=2e-4,
            optim__warmup_steps=0,
            resume=resume,
        )
        before = partial(keep_batches, batches)
        with Workers(argv, processes, run.with_suffix(".log"), before) as workers:
            assert workers.wait() == [0] * processes, workers.printed()
        return run, seen(batches)

    return trained


@pytest.fixture(scope="module")
def plain(train):
    return train(1, 1)


SLOW = pytest.mark.slow
LAYOUTS = [
    pytest.param(processes, accumulation, marks=SLOW if 4 in (processes, accumulation) else ())
    for processes in (1, 2, 4)
    for accumulation in (1, 2, 4)
    if processes * accumulation > 1
]


@pytest.mark.parametrize(("processes", "accumulation"), LAYOUTS)
def test_every_layout_trains_alike(plain, train, processes, accumulation):
    assert_alike(plain, train(processes, accumulation))
    assert_same_gradient(plain[0], train(processes, accumulation)[0])


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_go_on_bit_for_bit(train, processes):
    run, _ = train(processes, 1)
    resumed, _ = train(processes, 1, resume=run / "checkpoints" / f"step-{STEPS // 2:08d}")
    for stem in STEMS:
        assert same_bits(checkpoint(run, STEPS, stem), checkpoint(resumed, STEPS, stem)), stem
    assert metrics(run)[STEPS // 2 :] == metrics(resumed)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
def test_run_goes_on_with_another_number_of_processes(plain, train, before, now):
    begun, _ = plain if before == 1 else train(before, 1)
    point = begun / "checkpoints" / f"step-{STEPS // 2:08d}"
    run, found = train(now, 1, resume=point)
    assert sorted(found) == [*range(STEPS // 2, STEPS)]
    assert_alike(plain, (run, found))
    printed = run.with_suffix(".log").read_text()
    assert f"processes: {before} before, {now} now; the last bits may differ" in printed
    assert f"processes   {now} on cpu" in printed


def assert_alike(one, other):
    """The same draws and learning rates exactly; the same losses and weights to rounding."""
    (alone, expected), (run, found) = one, other
    for step in found:
        for name in ("t", "eps", "x_0"):
            assert found[step][name].shape[0] == BATCH
            assert np.array_equal(found[step][name], expected[step][name]), (step, name)
    records = metrics(alone)[min(found) :]
    for record, same in zip(records, metrics(run), strict=True):
        assert (same["step"], same["lr"]) == (record["step"], 2e-4)
        for name in ("loss", "grad_norm"):
            assert same[name] == pytest.approx(record[name], rel=1e-5)
    for stem in ("weights", "ema"):
        others = checkpoint(run, STEPS, stem)
        for name, value in checkpoint(alone, STEPS, stem).items():
            # A constant added to every key leaves the softmax as it is: its gradient is rounding
            # alone, which Adam scales up to the learning rate.
            if "to_k.bias" not in name:
                assert (others[name] - value).abs().max() <= 1e-5, (stem, name)
