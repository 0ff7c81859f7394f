"""A model folder from a stranger: its files are data, and none of them is run."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, DDPMPipeline
from safetensors.torch import load_file

from ddpm_sa import Pipeline, UNet
from ddpm_sa.image_format import ImageFormat
from ddpm_sa.model_folder import load_scheduler
from sampling.sample import main as sample
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
    ImageFormat(channels=3, size=(8, 8)).save(tmp_path / "model")
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


# Code beside the weights


class Harm:
    """What touches a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def place_code(folder: Path) -> Path:
    """Put Python files and pickles wherever a library might look; returns what they leave."""
    trace = folder.parent / "ran"
    code = HARMFUL.format(trace=str(trace))
    for place in (folder, folder / "unet", folder / "scheduler"):
        for name in ("harmful.py", "pipeline.py", "modeling.py", "__init__.py", "unet.py"):
            (place / name).write_text(code)
        for name in ("diffusion_pytorch_model.bin", "scheduler.pt", "images.pkl"):
            # As large as weights would be.
            (place / name).write_bytes(pickle.dumps([Harm(trace), bytes(10**6)]))
    return trace


def test_code_and_pickles_beside_the_weights_are_left_alone(folder: Path) -> None:
    trace = place_code(folder)
    edit(folder / "model_index.json", _class_name=["harmful", "Harmful"], auto_map={"a": "b.c"})
    edit(folder / "unet/config.json", _class_name=["harmful", "Harmful"])
    weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    found = Pipeline.from_pretrained(folder).unet.state_dict()
    assert all(found[name].equal(weights[name]) for name in weights)
    UNet.from_pretrained(folder)
    assert not trace.exists()


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_map_to_code_is_not_followed(file: str, folder: Path) -> None:
    trace = place_code(folder)
    edit(folder / file, auto_map={"AutoModel": "harmful.Harmful"}, _class_name="harmful.Harmful")
    with pytest.raises(ValueError, match=r"which (UNet does not know|is not a scheduler)"):
        Pipeline.from_pretrained(folder)
    assert not trace.exists()


def test_a_pickle_of_other_objects_than_tensors_is_refused_unrun(folder: Path) -> None:
    trace = place_code(folder)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the weights in .* cannot be read") as refusal:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(refusal.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "shards",
    [{"conv_in.weight": "../../secret.safetensors"}, {"conv_in.weight": 3}, ["a.safetensors"], 0],
)
def test_shards_lie_in_the_folder_of_their_index(shards: Any, folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map must name a file of the same"):
        Pipeline.from_pretrained(folder)


# Values that cannot be

NETWORK_FILE, SCHEDULER_FILE = "unet/config.json", "scheduler/scheduler_config.json"
WRONG: list[tuple[str, str, Any, str]] = [
    ("images.json", "size", [10**9, 8], "must have at most 268435456 values"),
    ("images.json", "size", [-8, 8], "must be (height, width), whole numbers of at least 1"),
    ("images.json", "size", [8.5, 8], "must be (height, width), whole numbers of at least 1"),
    ("images.json", "size", "88", "must be (height, width), whole numbers of at least 1"),
    ("images.json", "size", [8, None], "must be (height, width), whole numbers of at least 1"),
    ("images.json", "channels", "3", "must be a whole number of at least 1"),
    ("images.json", "channels", True, "must be a whole number of at least 1"),
    ("images.json", "labels", "abc", "must be a list of names"),
    ("images.json", "labels", [1, 2], "must be a list of names"),
    ("images.json", "labels", [], "must be a list of names"),
    ("images.json", "value_range", [math.nan, 255], "must be (lowest, highest), finite"),
    ("images.json", "value_range", ["0", "255"], "must be (lowest, highest), finite"),
    ("images.json", "value_range", 255, "must be (lowest, highest), finite"),
    ("images.json", "bit_depth", 12, "is unknown; known are 8, 16, 32"),
    ("images.json", "bit_depth", [8], "is unknown; known are 8, 16, 32"),
    (NETWORK_FILE, "sample_size", 10**9, "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "sample_size", [8, 8, 8], "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "sample_size", {"height": 8}, "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "in_channels", -3, "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "out_channels", "3", "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "block_out_channels", [8, 10**9], "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "block_out_channels", ["8", 16], "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "block_out_channels", 8, "must be a list of 1 to 16 levels"),
    (NETWORK_FILE, "block_out_channels", [8] * 1000, "must be a list of 1 to 16 levels"),
    (NETWORK_FILE, "block_out_channels", [], "must be a list of 1 to 16 levels"),
    (NETWORK_FILE, "down_block_types", 5, "must be a list of 1 to 16 levels"),
    (NETWORK_FILE, "layers_per_block", 10**9, "must be a whole number from 1 to 100"),
    (NETWORK_FILE, "layers_per_block", 1.5, "must be a whole number from 1 to 100"),
    (NETWORK_FILE, "norm_num_groups", 0, "must be a whole number from 1 to 65536"),
    (NETWORK_FILE, "attention_head_dim", -4, "must be a whole number from 1 to 65536, or null"),
    (NETWORK_FILE, "num_class_embeds", 10**12, "must be a whole number from 1 to 10000000"),
    (NETWORK_FILE, "time_embedding_dim", -1, "must be a whole number from 1 to 65536, or null"),
    (NETWORK_FILE, "num_train_timesteps", "a", "must be a whole number from 1 to 1000000"),
    (NETWORK_FILE, "dropout", math.nan, "must be a finite number from 0 to 1"),
    (NETWORK_FILE, "norm_eps", "1e-5", "must be a finite number from 0 to 1"),
    (NETWORK_FILE, "mid_block_scale_factor", 0, "must be a finite number between 0 and"),
    (NETWORK_FILE, "freq_shift", math.inf, "must be a finite number"),
    (NETWORK_FILE, "freq_shift", 4, "must not be half of block_out_channels[0]=8"),
    (NETWORK_FILE, "add_attention", "no", "is not built here; known are True, False"),
    (NETWORK_FILE, "act_fn", ["silu"], "is not built here; known are 'silu'"),
    (SCHEDULER_FILE, "beta_schedule", "weird", "is unknown; known are linear, scaled_linear"),
    (SCHEDULER_FILE, "beta_schedule", None, "is unknown; known are linear, scaled_linear"),
    (SCHEDULER_FILE, "beta_start", "1e-4", "must be a finite number between 0 and 1"),
    (SCHEDULER_FILE, "beta_end", math.nan, "must be a finite number between 0 and 1"),
    (SCHEDULER_FILE, "beta_end", 2, "must be a finite number between 0 and 1"),
    (SCHEDULER_FILE, "num_train_timesteps", 0, "must be a whole number from 1 to 1000000"),
    (SCHEDULER_FILE, "num_train_timesteps", 10**12, "must be a whole number from 1 to 1000000"),
    (SCHEDULER_FILE, "trained_betas", [0.1] * 7, "must have num_train_timesteps=1000"),
    (SCHEDULER_FILE, "trained_betas", [1.5] * 1000, "must be above 0 and at most 1"),
    (SCHEDULER_FILE, "trained_betas", [0.0] * 1000, "must be above 0 and at most 1"),
    (SCHEDULER_FILE, "trained_betas", ["a"] * 1000, "must be above 0 and at most 1"),
    (SCHEDULER_FILE, "trained_betas", "x", "must be a list of numbers, or null"),
    (SCHEDULER_FILE, "prediction_type", "noise", "is unknown; known are epsilon, sample"),
    (SCHEDULER_FILE, "timestep_spacing", "weird", "is unknown; known are leading, trailing"),
    (SCHEDULER_FILE, "clip_sample", "yes", "is unknown; known are True, False"),
    (SCHEDULER_FILE, "clip_sample_range", -1, "must be a finite number between 0 and"),
    (SCHEDULER_FILE, "steps_offset", 10**12, "must be a whole number from"),
    (SCHEDULER_FILE, "thresholding", 7, "is unknown; known are True, False"),
]


@pytest.mark.parametrize(
    ("file", "key", "value", "rule"), WRONG, ids=lambda value: str(value)[:24].replace("/", "-")
)
def test_a_value_that_cannot_be_is_refused_by_file_key_and_rule(
    file: str, key: str, value: Any, rule: str, folder: Path, run_main: Any
) -> None:
    edit(folder / file, **{key: value})
    with pytest.raises(ValueError, match=key) as refusal:
        Pipeline.from_pretrained(folder)
    said = str(refusal.value)
    assert said.startswith(f"{folder / file}: ")
    assert rule in said
    assert len(said) < len(str(folder)) + 300
    out = folder.parent / "out"
    code, _, error = run_main(sample, "--model", folder, "--output_dir", out)
    assert (code, error) == (2, f"error: {' '.join(said.split())}\n")
    assert not out.exists()


@pytest.mark.parametrize("file", ["images.json", NETWORK_FILE, SCHEDULER_FILE])
@pytest.mark.parametrize("content", ["", "[]", "3", '"a"', "{", "[" * 10**5], ids=lambda c: c[:3])
def test_a_file_that_is_no_object_is_named(file: str, content: str, folder: Path) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match="JSON") as refusal:
        Pipeline.from_pretrained(folder)
    assert str(refusal.value).startswith(f"{folder / file} ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("change", [{"chanels": 3}, {"bit_depht": 8}])
def test_an_unknown_field_of_the_image_format_is_named(change: dict, folder: Path) -> None:
    edit(folder / "images.json", **change)
    with pytest.raises(ValueError, match=rf"images\.json has {next(iter(change))}, which is not"):
        Pipeline.from_pretrained(folder)


def test_more_names_than_classes_are_refused(folder: Path) -> None:
    Pipeline(UNet(**NETWORK, num_class_embeds=2), DDIMScheduler()).save_pretrained(folder)
    edit(folder / "images.json", labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="3 labels, and the network num_class_embeds=2"):
        Pipeline.from_pretrained(folder)
