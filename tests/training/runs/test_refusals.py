"""What a user got wrong is one line, before anything is written."""

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import arguments, picture_folder, run_here, run_there, torchrun

BAD_INPUTS = {
    "batch": ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    "blocks": (
        {"model__unet": "{block_out_channels: [8, 16, 16], norm_num_groups: 2}"},
        "block_out_channels",
    ),
    "groups": (
        {"model__unet": "{block_out_channels: [8, 16, 16, 20], norm_num_groups: 8}"},
        "norm_num_groups=8",
    ),
    "size": ({"data__size": "9by8"}, "data.size=9by8 must be a number, or HEIGHTxWIDTH"),
    "unknown argument": ({"model__unet": "{chanels: 3}"}, "chanels"),
    "preset": ({"model__preset": "cifar100"}, "cifar100"),
    "attention": (
        {"model__attention_resolutions": "[7]", "model__unet": None, "data__size": 8},
        "7",
    ),
    "weights": ({"model__init_from": "nowhere/at/all", "model__unet": None}, "nowhere/at/all"),
    "folder": ({"data__source": "./no/such/folder"}, "no/such/folder is neither"),
    "resume": ({"resume": "no/checkpoint"}, "resume=no/checkpoint is not a valid checkpoint"),
    "precision": ({"mixed_precision": "fp16"}, "mixed_precision=fp16 needs a GPU"),
    "unknown flag": ({"learning_rate": 1}, "learning_rate"),
    "unlabelled": ({"data__class_conditional": "true"}, "lies in no subfolder"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing(pictures, tmp_path, name):
    changes, message = BAD_INPUTS[name]
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        run_here(arguments(pictures, run, **changes))
    assert not run.exists()


def test_bad_images_leave_nothing(tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    Image.new("L", (8, 8)).save(folder / "grey.png")
    with pytest.raises(ValueError, match=r"mixed: .*grey\.png has 1"):
        run_here(arguments(folder, tmp_path / "run"))
    (folder / "grey.png").write_text("no image")
    with pytest.raises(ValueError, match=r"grey\.png is not an image"):
        run_here(arguments(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_network_that_does_not_fit_the_data_is_refused(pictures, saved_network, tmp_path):
    changes = {"model__init_from": saved_network, "model__unet": None, "data__channels": 1}
    with pytest.raises(ValueError, match="has in_channels=3, these data need 1"):
        run_here(arguments(pictures, tmp_path / "run", **changes))


def test_learned_variance_of_floats_is_refused_before_anything_is_written(tmp_path):
    folder, run = tmp_path / "floats", tmp_path / "run"
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"{i}.npy", np.full((8, 8, 3), i / 3, np.float32))
    with pytest.raises(ValueError, match="needs integer pixel values"):
        run_here(arguments(folder, run, objective__learned_variance="true"))
    assert not run.exists()


def test_program_prints_one_line_and_exits_2(pictures, tmp_path):
    ended = run_there(arguments(pictures, tmp_path / "run", model__attention_resolutions="[5]"))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: attention_resolutions=(5,): no level is 5 pixels high")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_error_under_torchrun_is_printed_once(tmp_path):
    ended = run_there(arguments(tmp_path / "nothing", tmp_path / "run"), *torchrun(2))
    assert ended.returncode != 0
    assert ended.stderr.count("error: data.source=") == 1
