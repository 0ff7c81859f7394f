"""The counted memory against arithmetic, and against torch's own counter of real allocations."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from ddpm_sa import UNet
from ddpm_sa.memory.peak import Peak, counted_without_computing, largest_that_fits
from tests.support.runs import NETWORK

KIB = 1024


def test_peak_is_of_what_lives_at_the_same_time() -> None:
    with Peak() as peak:
        x = torch.zeros(KIB, dtype=torch.uint8)
        y = x.repeat(4)
        assert (peak.now, peak.peak, peak.largest) == (5 * KIB, 5 * KIB, 4 * KIB)
        view = y.view(2, -1)[0]
        y.add_(1)
        del y
        assert peak.now == 5 * KIB  # the view keeps it
        del view
        assert (peak.now, peak.peak) == (KIB, 5 * KIB)
        peak.restart()
        x.clone()
        assert peak.peak == 2 * KIB


def test_more_than_the_machine_has_is_counted_without_being_allocated() -> None:
    with counted_without_computing() as peak:
        x = torch.zeros(2**50, dtype=torch.uint8)
        del x
    assert peak.peak == 2**50


def forward_and_backward(batch: int, checkpointing: bool, half: bool) -> None:
    network = UNet(**NETWORK).train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    x, t = torch.zeros(batch, 3, 8, 8), torch.zeros(batch, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = network(x, t).sample
    output.float().square().mean().backward()


def peak_of_allocator(batch: int, checkpointing: bool, half: bool) -> int:
    """The most that torch's allocator had handed out at once, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        forward_and_backward(batch, checkpointing, half)
    profiler: Any = record.profiler
    events = profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = most = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("checkpointing", "half"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_training_pass_takes_from_the_allocator_what_was_counted(
    checkpointing: bool, half: bool
) -> None:
    """The allocator also serves temporaries within kernels, for which there is `scratch`."""
    with counted_without_computing() as peak:
        forward_and_backward(256, checkpointing, half)
    real = peak_of_allocator(256, checkpointing, half)
    assert peak.peak <= 1.02 * real
    assert real <= 1.02 * (peak.peak + peak.scratch)


def test_checkpointing_and_half_precision_take_less() -> None:
    counted = {}
    for case in [(False, False), (True, False), (False, True)]:
        with counted_without_computing() as peak:
            forward_and_backward(256, *case)
        counted[case] = peak.peak
    assert counted[True, False] < 0.8 * counted[False, False]
    assert counted[False, True] < 0.7 * counted[False, False]


lines = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**4)), min_size=1, max_size=5)


@given(lines=lines, limit=st.integers(0, 10**8), most=st.integers(1, 5000))
def test_batch_that_is_chosen_fits(lines, limit: int, most: int) -> None:
    """Whatever is alive at each moment; all is chosen if all fits, and none only if 1 does not."""

    def needed(batch: int) -> int:
        return max(fixed + each * batch for fixed, each in lines)

    sizes = [d for d in range(1, most + 1) if most % d == 0]
    chosen = largest_that_fits(sizes, limit, needed)
    if chosen is None:
        assert needed(1) > limit
    else:
        assert needed(chosen) <= limit
    if needed(most) <= limit:
        assert chosen == most
    if len(lines) == 1:  # where it is a straight line, no larger one fits
        assert all(needed(size) > limit for size in sizes if size > (chosen or 0))
