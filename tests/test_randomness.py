import math
import subprocess
import sys

import pytest
import torch

from ddpm_sa.randomness import standard_normal, stream


def test_standard_normal_row_depends_on_its_index_alone() -> None:
    shape = (3, 4, 4)
    together = standard_normal(shape, 0, "initial", [7, 2, 9])
    assert together.shape == (3, *shape)
    assert together.dtype == torch.float32
    for row, index in zip(together, [7, 2, 9], strict=True):
        assert torch.equal(row, standard_normal(shape, 0, "initial", [index])[0])


def test_standard_normal_of_another_step_or_purpose_is_other_noise() -> None:
    draws = {
        tuple(standard_normal((4,), 0, purpose, [index], step)[0].tolist())
        for purpose in ("initial", "steps")
        for index in (0, 1)  # (0, 1) and (1, 0) differ too
        for step in (0, 1)
    }
    assert len(draws) == 8


def test_every_part_of_an_address_changes_the_numbers() -> None:
    addresses = [
        (0, "initial", (5, 0)),
        (5, "initial", (0, 0)),  # seed and image swapped
        (0, "initial", (0, 5)),  # image and step swapped
        (0, "steps", (5, 0)),
        (0, "initial", (5,)),  # shorter by a zero, which a plain hash of the list would pad
        (0, "initial", ()),
        (1, "initial", ()),
    ]
    draws = {stream(seed, purpose, *where).integers(2**63) for seed, purpose, where in addresses}
    assert len(draws) == len(addresses)


def test_stream_is_the_same_in_another_process() -> None:
    """Python salts hash(str) anew in each."""
    line = "from ddpm_sa.randomness import stream; print(stream(3, 'flip', 4, 1).integers(2**63))"
    told = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert int(told.stdout) == stream(3, "flip", 4, 1).integers(2**63)


def test_standard_normal_has_normal_moments_and_uncorrelated_rows() -> None:
    noise = standard_normal((64, 64), 0, "moments", range(64)).double().flatten(1)
    count = noise.numel()
    # Five standard errors of each moment's estimate.
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / count)
    correlation = torch.corrcoef(noise) - torch.eye(len(noise))
    assert correlation.abs().max() < 6 / math.sqrt(noise.shape[1])


@pytest.mark.parametrize(("seed", "position"), [(-1, (0,)), (0, (3, -2))])
def test_a_negative_address_is_refused_with_its_value(seed: int, position: tuple) -> None:
    with pytest.raises(ValueError, match=r"(seed=-1|-2).* must be 0 or greater"):
        stream(seed, "initial", *position)
