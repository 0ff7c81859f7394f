"""1, 2 and 4 processes, each accumulating 1, 2 and 4 times, train alike on the same batch."""

from functools import partial

import numpy as np
import pytest
import torch

import training.loop
from ddpm_sa import UNet
from tests.runs import arguments, checkpoint, metrics, picture_folder
from tests.workers import Workers

BATCH, STEPS = 16, 10
NETWORK = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


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
    for step in range(STEPS):
        parts = [dict(np.load(path)) for path in sorted(folder.glob(f"{step:02d}-*.npz"))]
        everything[step] = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
    return everything


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train under a layout: the run, and what its processes saw."""
    folder = tmp_path_factory.mktemp("layouts")
    pictures = picture_folder(folder / "pictures")
    torch.manual_seed(0)
    UNet(**NETWORK).to_diffusers().save_pretrained(folder / "saved" / "unet")

    def trained(processes, accumulation):
        run = folder / f"{processes}x{accumulation}"
        batches = folder / f"{run.name}-batches"
        batches.mkdir()
        argv = arguments(
            pictures,
            run,
            steps=STEPS,
            batch_size=BATCH,
            micro_batch_size=BATCH // (processes * accumulation),
            log_every=1,
            model__unet=None,
            model__init_from=folder / "saved",
            optim__lr=2e-4,
            optim__warmup_steps=0,
        )
        before = partial(keep_batches, batches)
        with Workers(argv, processes, folder / "log", before) as workers:
            assert workers.wait() == [0] * processes, workers.printed()
        return run, seen(batches)

    return trained


@pytest.fixture(scope="module")
def plain(train):
    return train(1, 1)


LAYOUTS = [
    pytest.param(processes, accumulation, marks=pytest.mark.slow if processes == 4 else ())
    for processes in (1, 2, 4)
    for accumulation in (1, 2, 4)
    if processes * accumulation > 1
]


@pytest.mark.parametrize(("processes", "accumulation"), LAYOUTS)
def test_every_layout_trains_alike(plain, train, processes, accumulation):
    (alone, expected), (run, found) = plain, train(processes, accumulation)
    for step in range(STEPS):
        for name in ("t", "eps", "x_0"):
            assert found[step][name].shape[0] == BATCH
            assert np.array_equal(found[step][name], expected[step][name]), (step, name)
    for one, other in zip(metrics(alone), metrics(run), strict=True):
        assert one["lr"] == other["lr"] == 2e-4
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for stem in ("weights", "ema"):
        others = checkpoint(run, STEPS, stem)
        for name, value in checkpoint(alone, STEPS, stem).items():
            # A constant added to every key leaves the softmax as it is: its gradient is rounding
            # alone, which Adam scales up to the learning rate.
            if "to_k.bias" not in name:
                assert (others[name] - value).abs().max() <= 1e-5, (stem, name)
