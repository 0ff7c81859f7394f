"""Data sets that `save_to_disk` wrote, and the splits of tables."""

from dataclasses import replace
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddpm_sa.data.load import open_images
from training.config import DataConfig

pytestmark = pytest.mark.usefixtures("no_pause")
FEATURES = datasets.Features(
    image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog", "fox"])
)


def table(*shades: int, **options) -> datasets.Dataset:
    images = [Image.new("RGB", (8, 8), (shade,) * 3) for shade in shades]
    return datasets.Dataset.from_dict(
        {"image": images, "label": [shade % 3 for shade in shades]}, features=FEATURES, **options
    )


def shades(images) -> list[int]:
    return images.read(np.arange(images.length))[:, 0, 0, 0].tolist()


@pytest.fixture
def saved(tmp_path) -> DataConfig:
    """Two splits, of 5 and 2 images."""
    whole = datasets.DatasetDict(train=table(1, 2, 3, 4, 5), test=table(8, 9))
    whole.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    return DataConfig(source=str(tmp_path / "saved"), size=8, class_conditional=True)


def test_a_saved_dataset_is_read(tmp_path):
    # Chosen rows: what is saved is in the order in which they are seen.
    table(*range(9)).select([7, 1, 4]).save_to_disk(tmp_path / "one")
    images = open_images(DataConfig(source=str(tmp_path / "one"), size=8, class_conditional=True))
    assert shades(images) == [7, 1, 4]
    assert images.classes == ["cat", "dog", "fox"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 1, 1]
    assert images.splits is None


def test_a_saved_dict_has_splits(saved):
    images = open_images(replace(saved, validation="test"))
    assert shades(images) == [1, 2, 3, 4, 5]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 2, 0, 1, 2]
    assert images.validation is not None
    assert shades(images.validation) == [8, 9]
    assert images.validation.classes == ["cat", "dog", "fox"]
    assert shades(open_images(replace(saved, split="test"))) == [8, 9]
    assert "split       train, 5 images; left out: test (2)" in open_images(saved).describe("x")
    with pytest.raises(ValueError, match=r"has no split 'dev', only train \(5\), test \(2\)"):
        open_images(replace(saved, split="dev"))


def test_a_split_of_a_saved_dict_is_a_source(saved):
    images = open_images(replace(saved, source=f"{saved.source}/test"))
    assert shades(images) == [8, 9]
    held_out = open_images(replace(saved, split="test", validation=f"{saved.source}/train"))
    assert held_out.validation is not None
    assert shades(held_out.validation) == [1, 2, 3, 4, 5]


def test_a_saved_dataset_is_streamed(saved):
    config = replace(saved, streaming=True, shuffle_buffer=3)
    images = open_images(config)
    assert images.length == 5
    epochs = [images.read(np.arange(e * 5, e * 5 + 5))[:, 0, 0, 0].tolist() for e in range(4)]
    assert all(sorted(epoch) == [1, 2, 3, 4, 5] for epoch in epochs)
    assert len({*map(tuple, epochs)}) > 1
    again = open_images(config)
    assert again.read(np.arange(7, 9))[:, 0, 0, 0].tolist() == epochs[1][2:4]
    assert again.labels_of(np.arange(7, 9)).tolist() == [shade % 3 for shade in epochs[1][2:4]]


def test_a_damaged_saved_dataset_is_named(saved, tmp_path):
    (tmp_path / "saved" / "train" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"saved, split train, cannot be read") as error:
        open_images(saved)
    assert len(str(error.value).splitlines()) == 1


def test_parts_of_one_split_are_not_taken_for_each_other(tmp_path, monkeypatch):
    """They lie in the same files, which alone were the name of their decoded images."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "table").mkdir()
    files = []
    for shade in range(8):
        file = BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(file, "png")
        files.append(file.getvalue())
    pq.write_table(pa.table({"image": files}), tmp_path / "table" / "train-0.parquet")
    config = DataConfig(
        source=str(tmp_path / "table"),
        size=8,
        split="train[:50%]",
        cache_dir=str(tmp_path / "cache"),
    )
    assert shades(open_images(config)) == [0, 1, 2, 3]
    assert shades(open_images(replace(config, split="train[50%:]"))) == [4, 5, 6, 7]
    both = open_images(replace(config, validation="train[50%:]"))
    assert both.validation is not None
    assert shades(both.validation) == [4, 5, 6, 7]
