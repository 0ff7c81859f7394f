"""Batches of samples that do not fit into memory."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_sa import Pipeline, UNet
from ddpm_sa.memory import available
from sampling import evaluate, sample
from sampling.common.memory import check_batch_fits, sampling_memory
from tests.support.runs import NETWORK

GIB = 2**30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    return Pipeline(UNet(**NETWORK), DDPMScheduler())


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def memory_is(monkeypatch):
    """Say how many bytes the machine has left."""

    def say(amount: int) -> None:
        monkeypatch.setattr(available, "available_memory", lambda device: amount)

    return say


def test_batch_that_is_named_fits_and_the_double_does_not(pipeline, memory_is) -> None:
    memory_is(GIB)
    with pytest.raises(ValueError, match="a batch of 10000000 images needs about") as refusal:
        check_batch_fits(pipeline, 10**7, 10**9, CPU)
    fits = int(str(refusal.value).split()[-1])
    assert sampling_memory(pipeline, fits) <= GIB < sampling_memory(pipeline, 2 * fits)
    check_batch_fits(pipeline, fits, 10**9, CPU)


def test_batch_is_no_larger_than_the_images_there_are(pipeline, memory_is) -> None:
    memory_is(GIB)
    check_batch_fits(pipeline, 10**9, 16, CPU)


def test_half_precision_takes_less(pipeline) -> None:
    whole = sampling_memory(pipeline, 1000)
    half = Pipeline(UNet(**NETWORK), DDPMScheduler()).to(torch.bfloat16)
    assert sampling_memory(half, 1000) < 0.8 * whole


def test_nothing_fits_into_nothing(pipeline, memory_is) -> None:
    memory_is(1000)
    with pytest.raises(ValueError, match="even 1 does not fit"):
        check_batch_fits(pipeline, 1, 1, CPU)


def test_giant_batch_is_one_line_before_anything_is_written(
    model, tmp_path, run_main, memory_is
) -> None:
    memory_is(GIB)
    words = ["--model", model, "--output_dir", tmp_path / "out", "--batch_size", 10**7]
    code, _, said = run_main(sample.main, *words, "--num_images", 10**6)
    assert code == 2
    (line,) = said.splitlines()
    assert "use --batch_size" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", [sample, evaluate])
def test_more_images_than_can_be_listed_are_refused(
    model, tmp_path, run_main, memory_is, program
) -> None:
    memory_is(GIB)
    words = ["--model", model, "--output_dir", tmp_path / "out", "--num_images", 10**15]
    code, _, said = run_main(program.main, *words)
    assert code == 2
    assert "make at most 1073741" in said


def run_out(*args, **kwargs):
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")


def test_batch_that_does_not_fit_all_the_same_is_advised_on(
    model, tmp_path, run_main, monkeypatch
) -> None:
    monkeypatch.setattr(UNet, "forward", run_out)
    words = ["--model", model, "--output_dir", tmp_path / "out", "--steps", 1]
    code, _, said = run_main(sample.main, *words)
    assert (code, said.splitlines()[-1].partition(" (")[0]) == (
        2,
        "error: out of memory; use a smaller --batch_size",
    )
    folder = tmp_path / "real"
    folder.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    words[3] = tmp_path / "evaluation"
    words += ["--data", folder, "--num_images", 2, "--features", "tests.support.features:eight"]
    code, _, said = run_main(evaluate.main, *words)
    assert code == 2, said
    assert "error: out of memory; use a smaller --batch_size" in said
