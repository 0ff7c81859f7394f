"""A model folder that is replaced by a process which is killed: a whole model is always found."""

import multiprocessing
import os
import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from ddpm_sa import Pipeline, UNet
from tests.support.runs import NETWORK

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.workers"])
# Audit events of changes on the disk; those of rmtree name no folder.
CHANGES, REMOVALS = ("os.rename", "os.mkdir", "open"), ("os.remove", "os.rmdir")
KILLED = 9


def model(value: float) -> Pipeline:
    """A pipeline whose weights are all of one value."""
    unet = UNet(**NETWORK)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.fill_(value)
    return Pipeline(unet, DDPMScheduler())


def value_of(folder: Path) -> float:
    weights = Pipeline.from_pretrained(folder).unet.state_dict()
    (value,) = {value for weight in weights.values() for value in weight.unique().tolist()}
    return value


def save_until(folder: Path, step: int) -> None:
    """Replace the model, and end like a killed process at that step of those on the disk."""
    pipeline, left = model(2.0), [step]

    def watch(event: str, arguments: tuple) -> None:
        inside = str(folder.parent) in str(arguments)
        if event in REMOVALS or (event in CHANGES and inside):
            left[0] -= 1
            if left[0] < 0:
                os._exit(KILLED)

    sys.addaudithook(watch)
    pipeline.save_pretrained(folder)


def test_model_killed_at_any_step_of_its_replacement_is_whole(tmp_path: Path) -> None:
    folder, step, seen = tmp_path / "run" / "model", 0, []
    while True:
        model(1.0).save_pretrained(folder)
        process = CONTEXT.Process(target=save_until, args=(folder, step))
        process.start()
        process.join()
        seen.append(value_of(folder))
        if process.exitcode == 0:
            break
        assert process.exitcode == KILLED
        step += 1
    assert seen == sorted(seen)
    assert {*seen} == {1.0, 2.0}
    # More than one step lies between the moment at which the new model is whole and the end.
    assert seen.count(2.0) > 2
    assert step > 10
