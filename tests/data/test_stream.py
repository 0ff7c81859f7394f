"""Tables that are read as they come."""

from dataclasses import replace
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddpm_sa.data.load import open_images
from tests.support.runs import arguments, checkpoint, metrics, run_here, same_bits
from training.config import DataConfig
from training.draws import Draws, Layout
from training.loop import make_batch

pytestmark = pytest.mark.usefixtures("no_pause")
NUMBER = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 images in two files, each of its own shade, labelled 0, 1, 2 in turn."""
    folder = tmp_path_factory.mktemp("table")
    for name, some in (("train-0.parquet", range(20)), ("train-1.parquet", range(20, NUMBER))):
        files = []
        for shade in some:
            file = BytesIO()
            Image.new("RGB", (8, 8), (shade,) * 3).save(file, "png")
            files.append(file.getvalue())
        pq.write_table(pa.table({"image": files, "label": [i % 3 for i in some]}), folder / name)
    return folder


@pytest.fixture
def config(folder) -> DataConfig:
    return DataConfig(
        source=str(folder),
        size=8,
        flip=False,
        streaming=True,
        shuffle_buffer=16,
        class_conditional=True,
        num_classes=3,
    )


def shades(images, *places) -> list[int]:
    return images.read(np.array(places))[:, 0, 0, 0].tolist()


def test_every_image_comes_once_an_epoch_and_each_epoch_in_its_own_order(config):
    images = open_images(config)
    assert images.length == NUMBER
    epochs = [shades(images, *range(e * NUMBER, (e + 1) * NUMBER)) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(NUMBER))
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])
    other = open_images(config, seed=1)
    assert shades(other, *range(NUMBER)) != epochs[0]


def test_a_place_has_its_image_however_it_is_come_to(config):
    straight = open_images(config)
    all_of_them = shades(straight, *range(80))
    for places in ([0], [29, 30], [71], [33, 34, 35], [5]):
        assert shades(open_images(config), *places) == [all_of_them[p] for p in places]
    back_and_forth = open_images(config)
    for places in ([60, 61], [2, 3], [3, 4], [59]):
        assert shades(back_and_forth, *places) == [all_of_them[p] for p in places]


def test_labels_are_those_of_the_images(config):
    images = open_images(config)
    for places in (np.arange(8), np.arange(25, 33)):
        read = images.read(places)[:, 0, 0, 0]
        assert images.labels_of(places).tolist() == (read % 3).tolist()


def test_processes_and_micro_batches_share_one_stream(config):
    draws = Draws(seed=0, batch_size=8, num_images=NUMBER, num_timesteps=10, in_order=True)
    (whole,) = make_batch(open_images(config), draws, Layout(8), 5).micro_batches
    parts = [
        part.x_0
        for process in range(2)
        for part in make_batch(
            open_images(config), draws, Layout(8, 2, process, 2), 5
        ).micro_batches
    ]
    assert len(parts) == 4
    np.testing.assert_array_equal(np.concatenate(parts), whole.x_0)


def test_a_stopped_run_goes_on_with_the_same_bits(folder, tmp_path):
    changes = {
        "data__streaming": "true",
        "data__class_conditional": "true",
        "data__num_classes": 3,
        "data__label_dropout": 0.2,
        "steps": 6,
        "save_every": 4,
    }
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run_here(arguments(folder, straight, **changes))
    run_here(arguments(folder, stopped, **changes | {"steps": 4}))
    run_here(arguments(folder, stopped, **changes | {"resume": "auto"}))
    assert same_bits(checkpoint(stopped, 6, "weights"), checkpoint(straight, 6, "weights"))
    assert metrics(stopped)[-1] == metrics(straight)[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "mnist5k"}, "is not a table"),
        ({"num_classes": None}, r"does not name its classes; set data\.num_classes"),
        ({"label_column": "kind"}, "has no column 'kind'"),
        ({"split": "test"}, "split test, cannot be read"),
    ],
)
def test_streams_that_cannot_be_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        open_images(replace(config, **changes))


def test_label_beyond_the_classes_is_named(config):
    images = open_images(replace(config, num_classes=2))
    images.read(np.arange(8))
    with pytest.raises(ValueError, match=r"has labels \d \.\. 2, outside 0 \.\. 1"):
        images.labels_of(np.arange(8))


def test_fewer_classes_than_the_column_names_are_refused(tmp_path):
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"])
    )
    rows = {"image": [Image.new("L", (8, 8))] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    config = DataConfig(
        source=str(tmp_path / "a.parquet"), size=8, streaming=True, class_conditional=True
    )
    assert open_images(config).classes == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"data\.num_classes=2 .* 3 classes \(a, b, c\)"):
        open_images(replace(config, num_classes=2))


@pytest.mark.parametrize("labels", [["cat", "dog"], [0.5, 1.0]])
def test_streamed_labels_must_be_whole_numbers(tmp_path, labels):
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    table = pa.table({"image": [file.getvalue()] * 2, "label": labels})
    pq.write_table(table, tmp_path / "a.parquet")
    config = DataConfig(
        source=str(tmp_path / "a.parquet"),
        size=8,
        streaming=True,
        class_conditional=True,
        num_classes=2,
    )
    with pytest.raises(ValueError, match=r"'label' .* must be whole numbers or a ClassLabel"):
        open_images(config)


def test_streamed_row_without_a_label_is_named(tmp_path):
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    pq.write_table(
        pa.table({"image": [file.getvalue()] * 2, "label": pa.array([None, None], pa.int64())}),
        tmp_path / "a.parquet",
    )
    config = DataConfig(
        source=str(tmp_path / "a.parquet"),
        size=8,
        streaming=True,
        class_conditional=True,
        num_classes=2,
    )
    images = open_images(config)
    images.read(np.arange(2))
    with pytest.raises(ValueError, match=r"row 0 of the stream .* has no label"):
        images.labels_of(np.arange(2))


def test_rows_that_name_a_file_are_read_from_it(tmp_path):
    cells = []
    for shade in (10, 20):
        path = tmp_path / f"{shade}.png"
        Image.new("L", (8, 8), shade).save(path)
        cells.append({"bytes": None, "path": str(path)})
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    config = DataConfig(source=str(tmp_path / "a.parquet"), size=8, streaming=True)
    assert sorted(shades(open_images(config), 0, 1)) == [10, 20]


@pytest.mark.parametrize("streaming", [True, False])
def test_row_without_an_image_is_named(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": None}] * 2, kind)
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    config = DataConfig(source=str(tmp_path / "a.parquet"), size=8, streaming=streaming)
    with pytest.raises(ValueError, match=r"row 0 of .*a\.parquet has no image"):
        open_images(config)


def test_broken_row_is_named(tmp_path):
    pq.write_table(pa.table({"image": [b"no image", b"none"]}), tmp_path / "a.parquet")
    config = DataConfig(source=str(tmp_path / "a.parquet"), size=8, streaming=True)
    with pytest.raises(ValueError, match=r"row 0 of the stream .*a\.parquet is not an image"):
        open_images(config)


@pytest.mark.parametrize("changes", [{"on_error": "skip"}, {"validation": 0.1}])
def test_what_a_stream_cannot_do_is_said(changes):
    with pytest.raises(ValueError, match="stream"):
        DataConfig(source="a.parquet", streaming=True, **changes)
