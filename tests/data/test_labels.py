import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ddpm_sa.data.labels import check_labels, encode_labels
from ddpm_sa.data.load import open_images
from tests.support.runs import picture_folder
from training.config import DataConfig


@pytest.fixture
def labelled(tmp_path):
    """Images in two folders, and a function that writes a CSV file and opens both."""
    folder = picture_folder(tmp_path / "pictures", ("a", "b"), each=2)

    def open_with(text: str):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        labels = str(tmp_path / "labels.csv")
        return open_images(
            DataConfig(source=str(folder), size=8, class_conditional=True, labels=labels)
        )

    return open_with


def test_csv_gives_each_file_its_label_whatever_its_folder(labelled):
    images = labelled(
        "file,label,note\nb/01.png,oak,x\na/00.png,oak,\na/01.png,elm,\nb/00.png,ash,\nc.png,fir,\n"
    )
    assert images.classes == ["ash", "elm", "oak"]
    assert images.labels.tolist() == [2, 1, 0, 2]  # a/00 a/01 b/00 b/01


def test_labels_that_are_numbers_keep_their_order():
    labels, classes = encode_labels(["10", "9", "10", "2"])
    assert classes == ["2", "9", "10"]
    assert labels.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\n", r"no column 'file', only \['name', 'label'\]"),
        ("file,label\na/00.png,x\n", r"no row for a/01\.png \(3 such"),
        ("file,label\na/00.png,\n", r"no label for a/00\.png"),
        ("file,label\na/00.png,x\na/00.png,y\n", r"a/00\.png twice: x and y"),
        ("", "no column 'file'"),
    ],
)
def test_bad_label_files_are_named_with_the_row(labelled, text, message):
    with pytest.raises(ValueError, match=message) as error:
        labelled(text)
    assert "labels.csv" in str(error.value)


def test_missing_label_file_is_named(labelled, tmp_path):
    with pytest.raises(ValueError, match=r"data\.labels=nowhere\.csv cannot be read"):
        open_images(
            DataConfig(
                source=str(tmp_path / "pictures"), class_conditional=True, labels="nowhere.csv"
            )
        )


def test_labels_need_a_network_that_is_told_them():
    with pytest.raises(ValueError, match=r"data\.class_conditional true"):
        DataConfig(source="x", labels="labels.csv")


def test_fewer_classes_than_are_named_are_refused():
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match=r"data\.num_classes=2 .* 3 classes \(a, b, c\)"):
        check_labels(labels, ["a", "b", "c"], str, num_classes=2)
    assert check_labels(labels, ["a", "b", "c"], str, num_classes=4) == ["a", "b", "c", "3"]


@pytest.mark.parametrize("source", ["images.parquet", "owner/name", "mnist5k", "images.npy"])
def test_a_label_file_is_refused_where_it_would_be_ignored(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.zeros((2, 8, 8), np.uint8))
    config = DataConfig(source=source, class_conditional=True, labels="nowhere.csv")
    with pytest.raises(ValueError, match=rf"data\.labels=nowhere\.csv .* data\.source={source}"):
        open_images(config)


def test_a_table_held_out_has_its_own_labels_beside_a_label_file(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = picture_folder(tmp_path / "pictures", ("a", "b"), each=2)
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in folder.rglob("*.png")]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    files = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
    pq.write_table(pa.table({"image": files, "label": list("bbaa")}), tmp_path / "held.parquet")
    images = open_images(
        DataConfig(
            source=str(folder),
            size=8,
            class_conditional=True,
            labels=str(tmp_path / "labels.csv"),
            validation=str(tmp_path / "held.parquet"),
        )
    )
    assert images.validation.labels.tolist() == [1, 1, 0, 0]
