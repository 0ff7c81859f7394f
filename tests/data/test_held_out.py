"""Images held out of training."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddpm_sa.data.dataset import Images
from ddpm_sa.data.load import open_images
from tests.support.runs import picture_folder
from training.config import DataConfig

NO_FLIPS = np.zeros(1, dtype=bool)


def rows(images: Images) -> list[bytes]:
    return [images.read(np.array([i]))[0].tobytes() for i in range(images.length)]


@pytest.fixture
def labelled(tmp_path) -> DataConfig:
    folder = picture_folder(tmp_path / "pictures", ("cat", "dog"), each=10)
    return DataConfig(source=str(folder), size=8, class_conditional=True)


def test_share_is_held_out_once_and_for_all(labelled):
    whole = open_images(labelled)
    images = open_images(replace(labelled, validation=0.2))
    assert images.validation is not None
    assert (images.length, images.validation.length) == (16, 4)
    assert sorted(rows(images) + rows(images.validation)) == sorted(rows(whole))
    assert rows(images.validation) == rows(
        open_images(replace(labelled, validation=0.2)).validation or images
    )
    # Every image keeps its label.
    assert whole.labels is not None
    label = dict(zip(rows(whole), whole.labels, strict=True))
    for part in (images, images.validation):
        assert part.labels is not None
        assert [label[row] for row in rows(part)] == part.labels.tolist()


def test_held_out_images_are_padded_with_the_others(labelled):
    images = open_images(replace(labelled, validation=0.2, size="7x8")).pad_to(8, 8)
    assert images.validation is not None
    assert images.validation.tensors(np.array([0]), NO_FLIPS).shape == (1, 3, 8, 8)


def test_padding_mirrors_the_image_below_and_to_the_right(labelled):
    images = open_images(replace(labelled, size="7x6")).pad_to(8, 8)
    (x,) = images.tensors(np.array([3]), NO_FLIPS)
    whole = open_images(replace(labelled, size="7x6"))
    (image,) = whole.tensors(np.array([3]), NO_FLIPS)
    assert x[:, :7, :6].equal(image)
    assert x[:, 7, :6].equal(image[:, 5])
    assert x[:, :7, 6].equal(image[:, :, 4])
    assert x[:, :7, 7].equal(image[:, :, 3])


def test_another_folder_has_the_classes_of_the_first(labelled, tmp_path):
    other = picture_folder(tmp_path / "others", ("dog",), each=2)
    images = open_images(replace(labelled, validation=str(other)))
    assert images.length == 20
    assert images.validation is not None
    assert images.validation.labels is not None
    assert images.validation.labels.tolist() == [1, 1]
    assert images.validation.classes == ["cat", "dog"]


def test_held_out_images_that_are_unlike_the_others_are_refused(labelled, tmp_path):
    other = picture_folder(tmp_path / "others", ("bird",), each=2)
    message = r"has the class 'bird', which data\.source=.* does not have"
    with pytest.raises(ValueError, match=message):
        open_images(replace(labelled, validation=str(other)))
    grey = tmp_path / "grey" / "cat"
    grey.mkdir(parents=True)
    Image.new("L", (8, 8)).save(grey / "0.png")
    with pytest.raises(ValueError, match=r"grey has 1 channels of 8 bits, data\.source="):
        open_images(replace(labelled, validation=str(grey.parent)))


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ("test", "validation=test is not a folder or file"),
        (0.99, r"validation=0\.99 leaves none of 20 images"),
    ],
)
def test_validation_that_cannot_be_is_refused(labelled, validation, message):
    with pytest.raises(ValueError, match=message):
        open_images(replace(labelled, validation=validation))


def test_share_must_be_a_share():
    with pytest.raises(ValueError, match=r"validation=1\.5 must be above 0 and below 1, a split"):
        DataConfig(source="x", validation=1.5)


def test_splits_of_a_folder_of_parquet_files_are_by_their_names(tmp_path):
    def write(name: str, value: int, number: int) -> None:
        file = BytesIO()
        Image.new("RGB", (8, 8), (value,) * 3).save(file, "png")
        table = pa.table({"img": [file.getvalue()] * number, "label": list(range(number))})
        pq.write_table(table, tmp_path / name)

    write("train-00000-of-00002.parquet", 1, 3)
    write("train-00001-of-00002.parquet", 2, 4)
    write("test-00000-of-00001.parquet", 3, 2)
    config = DataConfig(
        source=str(tmp_path), size=8, class_conditional=True, validation="test", num_workers=1
    )
    images = open_images(config)
    assert [row[0] for row in rows(images)] == [1] * 3 + [2] * 4
    assert images.validation is not None
    assert [row[0] for row in rows(images.validation)] == [3, 3]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="split valid, cannot be read"):
        open_images(replace(config, validation="valid"))
