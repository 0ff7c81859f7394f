"""Every kind of folder is trained on from the command line, and the report says what was taken."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.support.runs import arguments, picture_folder, run_here, run_there

CLASSES = ("cat", "dog")


def splits(folder: Path) -> Path:
    for name in ("train", "test"):
        picture_folder(folder / name, CLASSES, each=5)
    return folder


def metadata(folder: Path) -> Path:
    picture_folder(folder, each=10)
    rows = [{"file_name": f"{i:02d}.png", "label": CLASSES[i % 2]} for i in range(10)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def saved(folder: Path) -> Path:
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[*CLASSES])
    )
    images = [Image.fromarray(np.full((8, 8, 3), i, np.uint8)) for i in range(10)]
    columns = {"image": images, "label": [i % 2 for i in range(10)]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(folder))
    return folder


def link(folder: Path) -> Path:
    picture_folder(folder.with_name("elsewhere"), CLASSES, each=5)
    folder.symlink_to(folder.with_name("elsewhere"))
    return folder


def links(folder: Path) -> Path:
    folder.mkdir()
    for name in CLASSES:
        picture_folder(folder.with_name(f"elsewhere-{name}"), each=5)
        (folder / name).symlink_to(folder.with_name(f"elsewhere-{name}"))
    (folder / "dog" / "back").symlink_to(folder)
    return folder


LEFT_OUT = "split       train, 10 images; left out: test (10)"
KINDS = {
    "splits": (splits, {}, LEFT_OUT),
    "splits, validation": (
        splits,
        {"data__validation": "test", "validate_every": 1},
        "held out    10 images for validation, split test",
    ),
    "metadata": (metadata, {}, "2 classes"),
    "saved": (saved, {}, LEFT_OUT),
    "saved, streamed": (saved, {"data__streaming": "true"}, LEFT_OUT),
    "link": (link, {}, "images      10 of 8x8"),
    "links": (links, {}, "images      10 of 8x8"),
}


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("kind", KINDS)
def test_two_updates_on_every_kind_of_folder(kind, tmp_path, capsys):
    make, changes, said = KINDS[kind]
    folder, run = make(tmp_path / "data"), tmp_path / "run"
    changes |= {"steps": 2, "log_every": 1, "data__class_conditional": "true"}
    run_here(arguments(folder, run, **changes))
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    records = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    classes = json.loads((run / "model" / "images.json").read_text())["labels"]
    assert classes == [*CLASSES]
    settings = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert settings["split"] == "train"


def test_a_split_that_is_not_there_is_one_line(tmp_path):
    folder = splits(tmp_path / "data")
    ended = run_there(arguments(folder, tmp_path / "run", data__split="valid"))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.endswith(
        "has no split 'valid', only train (10), test (10); set data.split to one of them"
    )
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_another_split(tmp_path):
    folder, run = splits(tmp_path / "data"), tmp_path / "run"
    run_here(arguments(folder, run, steps=1, save_every=1))
    kept = shutil.copytree(run, tmp_path / "kept")
    with pytest.raises(ValueError, match=r"data\.split"):
        run_here(arguments(folder, run, steps=2, data__split="test", resume="auto"))
    assert (run / "metrics.jsonl").read_bytes() == (kept / "metrics.jsonl").read_bytes()
