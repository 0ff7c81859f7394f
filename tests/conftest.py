"""Settings of every test."""

import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch

# Decoded images are kept here, by this process and those it starts, not among the user's.
_cache = tempfile.TemporaryDirectory(prefix="ddpm_sa-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name

# The networks here are so small that a second thread costs more than it gives.
torch.set_num_threads(1)
# The same examples every time: what passes here passes there.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")


def pytest_configure(config):
    """A GPU is for the tests that ask for one: others compare bits, with processes on the CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# What follows imports the programs where it is used: most tests do without.


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Twelve images of noise, 8 x 8."""
    from tests.support.runs import picture_folder

    return picture_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def straight(pictures, tmp_path_factory):
    """A run of 6 steps that keeps a checkpoint of each; tests leave it as it is."""
    from tests.support.runs import WATCHED, arguments, run_here

    run = tmp_path_factory.mktemp("straight") / "run"
    keep = {"save_every": 1, "keep_checkpoints": 9, "ema__keep_raw": "true"}
    run_here(arguments(pictures, run, **keep, sample_every=3, **WATCHED))
    return run


@pytest.fixture(scope="session")
def saved_network(tmp_path_factory):
    """Weights that are nowhere near zero, as diffusers initialises them."""
    from ddpm_sa import UNet
    from tests.support.runs import NETWORK

    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    UNet(**NETWORK).to_diffusers().save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Run a program in this process: its `main`, words -> (exit code, stdout, stderr)."""
    from ddpm_sa.cli import run_program

    def run(main, *words):
        name = Path(sys.modules[main.__module__].__file__).name
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            run_program(main)
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def no_pause(monkeypatch):
    """`datasets` waits five seconds whenever it closes a stream of several files, lest the process
    end before Arrow's threads have (apache/arrow issue 45214); this one does not end then."""
    import datasets

    # datasets 4.0 has no pause.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
