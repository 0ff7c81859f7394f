"""A model folder from a stranger: its files are data, and none of them is run."""

import json
from pathlib import Path

import pytest
from diffusers import DDIMScheduler, DDPMPipeline

from ddpm_sa import Pipeline, UNet
from ddpm_sa.model_folder import load_scheduler
from tests.support.runs import NETWORK

HARMFUL = """
import pathlib
pathlib.Path({trace!r}).touch()
from diffusers import DiffusionPipeline
class Harmful(DiffusionPipeline):
    def __init__(self):
        super().__init__()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as diffusers saves it."""
    unet = UNet(**NETWORK).to_diffusers()
    DDPMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_scheduler_is_of_the_class_that_its_folder_names(folder: Path) -> None:
    assert type(load_scheduler(folder)) is DDIMScheduler


@pytest.mark.parametrize("in_subfolder", [True, False])
def test_a_folder_cannot_have_its_python_files_run(folder: Path, in_subfolder: bool) -> None:
    """diffusers 0.36 ran this one when asked for the scheduler; later versions refuse to."""
    trace = folder.parent / "ran"
    place = folder / "scheduler" if in_subfolder else folder
    for old in (folder / "scheduler").iterdir():
        old.unlink()
    (place / "scheduler_config.json").write_text('{"_class_name": "DiffusionPipeline"}')
    (place / "model_index.json").write_text(
        json.dumps({"_class_name": ["harmful", "Harmful"], "_diffusers_version": "0.36.0"})
    )
    (place / "harmful.py").write_text(HARMFUL.format(trace=str(trace)))
    for load in (load_scheduler, Pipeline.from_pretrained):
        with pytest.raises(
            ValueError, match="'DiffusionPipeline', which is not a scheduler"
        ) as told:
            load(folder)
        assert "\n" not in str(told.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    # A pipeline, a network, a module, a function, what is not there, and what is no name.
    ["DDPMPipeline", "UNet2DModel", "utils", "is_torch_available", "Mine", None, ["a", "B"]],
)
def test_a_name_that_is_no_scheduler_is_refused(folder: Path, name: object) -> None:
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ValueError, match="which is not a scheduler of diffusers"):
        load_scheduler(folder)


def test_a_scheduler_whose_package_is_missing_names_the_package(folder: Path) -> None:
    name = "DPMSolverSDEScheduler"
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ValueError, match=f"'{name}', which needs torch and torchsde"):
        load_scheduler(folder)
