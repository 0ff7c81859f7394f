import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_sa.diffusion.loss_by_timestep import Buckets


@given(st.integers(1, 4000))
def test_buckets_cover_every_timestep_once_and_evenly(num_timesteps):
    buckets = Buckets(num_timesteps)
    every = np.arange(num_timesteps)
    buckets.add(every, every)
    ends = [tuple(map(int, name.split("-"))) for name in buckets.names]
    assert [t for first, last in ends for t in range(first, last + 1)] == every.tolist()
    sizes = [last - first + 1 for first, last in ends]
    assert max(sizes) - min(sizes) <= 1
    # The mean of consecutive numbers is that of the ends: so they fell into the bucket named.
    assert buckets.means() == pytest.approx([(first + last) / 2 for first, last in ends])


def test_bucket_without_a_loss_has_no_mean():
    buckets = Buckets(1000)
    buckets.add([0, 99, 950], [1.0, 2.0, 5.0])
    assert buckets.means() == [1.5, *[None] * 8, 5.0]


def test_buckets_go_on_from_a_checkpoint_to_the_same_bits():
    random = np.random.default_rng(0)
    t, losses = random.integers(0, 100, (4, 8)), random.random((4, 8))
    straight, first = Buckets(100), Buckets(100)
    for step in range(4):
        straight.add(t[step], losses[step])
    for step in range(2):
        first.add(t[step], losses[step])
    resumed = Buckets(100, json.loads(json.dumps(first.state())))
    for step in range(2, 4):
        resumed.add(t[step], losses[step])
    assert resumed.means() == straight.means()
