import os
import resource
import shutil

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from training.checkpoint.state import (
    checkpoint_path,
    find_damage,
    load_state,
    newest_checkpoint,
    save_checkpoint,
)
from training.checkpoint.training_state import TrainingState
from training.config import EMAConfig, OptimConfig
from training.ema import Averages
from training.objective import make_optimizer


def make_training_state(seed: int = 0, width: int = 4) -> TrainingState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1))
    network.to(memory_format=torch.channels_last)
    averages = Averages(network, EMAConfig(decay=0.9, more=[0.5]))
    return TrainingState(network, averages, make_optimizer(network, OptimConfig()))


def train(training_state: TrainingState, updates: range) -> None:
    for update in updates:
        torch.manual_seed(100 + update)
        training_state.optimizer.zero_grad()
        training_state.network(torch.randn(2, 3, 4, 4)).square().mean().backward()
        training_state.optimizer.step()
        training_state.averages.update(update)


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints after 1, 2 and 3 updates."""
    training_state = make_training_state()
    for step in (1, 2, 3):
        train(training_state, range(step - 1, step))
        save_checkpoint(
            checkpoint_path(tmp_path, step), training_state.tensors(), {"step": step}, keep=9
        )
    return tmp_path


def test_training_from_a_checkpoint_gives_the_bits_of_training_on(run):
    straight, resumed = make_training_state(), make_training_state(seed=7)
    train(straight, range(5))
    resumed.load(checkpoint_path(run, 2))
    train(resumed, range(2, 5))
    for stem, tensors in straight.tensors().items():
        others = resumed.tensors()[stem]
        assert tensors.keys() == others.keys()
        for name in tensors:
            assert tensors[name].equal(others[name]), (stem, name)


def test_plain_values_come_back_exactly(tmp_path):
    state = {"step": 3, "losses": [0.1, 1e-300, 2 / 3], "name": "σ"}
    save_checkpoint(checkpoint_path(tmp_path, 3), make_training_state().tensors(), state, keep=1)
    assert load_state(checkpoint_path(tmp_path, 3)) == state


def test_newest_checkpoint_is_the_last(run):
    assert newest_checkpoint(run) == (checkpoint_path(run, 3), [])


def flip_a_byte(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return "weights.safetensors was changed after it was written"


def truncate(folder):
    os.truncate(folder / "ema.safetensors", 100)
    return "ema.safetensors has 100 bytes instead of"


def remove_a_file(folder):
    (folder / "optimizer.safetensors").unlink()
    return "optimizer.safetensors"


def remove_the_manifest(folder):
    (folder / "manifest.json").unlink()
    return "manifest.json"


def spoil_the_manifest(folder):
    (folder / "manifest.json").write_text('{"state.json": 3}')
    return "is incomplete"


DAMAGES = [flip_a_byte, truncate, remove_a_file, remove_the_manifest, spoil_the_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named_and_passed_over(run, damage):
    words = damage(checkpoint_path(run, 3))
    folder, (passed_over,) = newest_checkpoint(run)
    assert folder == checkpoint_path(run, 2)
    assert "step-00000003" in passed_over
    assert words in passed_over


def test_run_without_a_whole_checkpoint_has_none(run):
    for step in (1, 2, 3):
        truncate(checkpoint_path(run, step))
    folder, passed_over = newest_checkpoint(run)
    assert folder is None
    assert len(passed_over) == 3
    assert newest_checkpoint(run / "nothing") == (None, [])


def test_unfinished_checkpoint_is_not_one(run):
    whole = checkpoint_path(run, 3)
    shutil.copytree(whole, whole.with_name("step-00000004.partial"))
    assert newest_checkpoint(run)[0] == whole


def test_oldest_checkpoints_are_removed(run):
    save_checkpoint(checkpoint_path(run, 4), make_training_state().tensors(), {}, keep=2)
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_does_not_count_towards_those_kept(run):
    truncate(checkpoint_path(run, 3))
    flip_a_byte(checkpoint_path(run, 2))
    save_checkpoint(checkpoint_path(run, 4), make_training_state().tensors(), {}, keep=2)
    left = {path.name: find_damage(path) for path in (run / "checkpoints").iterdir()}
    assert [name for name in sorted(left) if left[name] is None] == [
        "step-00000001",
        "step-00000004",
    ]
    save_checkpoint(checkpoint_path(run, 5), make_training_state().tensors(), {}, keep=2)
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == ["step-00000004", "step-00000005"]


def test_every_so_many_checkpoints_one_stays(tmp_path):
    for step in range(1, 10):
        save_checkpoint(
            checkpoint_path(tmp_path, step),
            make_training_state().tensors(),
            {},
            keep=2,
            keep_every=3,
        )
    left = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert left == [3, 6, 8, 9]


def test_one_checkpoint_of_each_interval_stays_whatever_the_steps_of_saving(tmp_path):
    for step in (100, 200, 300, 400, 500, 600, 700, 777, 800, 900, 1000, 1100):
        tensors = make_training_state().tensors()
        save_checkpoint(checkpoint_path(tmp_path, step), tensors, {}, keep=2, keep_every=325)
    left = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    # The first at or after 325, 650 and 975, and the two newest.
    assert left == [400, 700, 1000, 1100]


def test_a_damaged_checkpoint_is_written_again(run):
    truncate(checkpoint_path(run, 3))
    save_checkpoint(checkpoint_path(run, 3), make_training_state().tensors(), {"step": 3}, keep=9)
    assert find_damage(checkpoint_path(run, 3)) is None


def test_a_save_that_fails_leaves_the_one_before_it(run):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # as a quota would
    try:
        with pytest.raises((OSError, SafetensorError)):
            save_checkpoint(
                checkpoint_path(run, 4), make_training_state(width=64).tensors(), {}, keep=1
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest_checkpoint(run) == (checkpoint_path(run, 3), [])
    assert not list((run / "checkpoints").glob("*.partial"))  # which would hold the room that lacks


def test_checkpoint_of_another_network_is_refused(run):
    with pytest.raises(ValueError, match="does not fit the network"):
        make_training_state(width=8).load(checkpoint_path(run, 3))
