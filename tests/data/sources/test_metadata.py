"""metadata.csv, metadata.jsonl and metadata.parquet beside images, as imagefolder has them."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.test_folders import draw, imagefolder, opened, pixels


def write(folder: Path, kind: str, rows: list[dict], encoding: str = "utf-8") -> None:
    file = folder / f"metadata.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines), encoding=encoding)


def rows(**labels) -> list[dict]:
    return [{"file_name": f"{name}.png", "label": label} for name, label in labels.items()]


KINDS = ["csv", "jsonl", "parquet"]


# imagefolder leaves metadata.csv open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [("oak", "elm", "oak"), (2, 0, 2)], ids=["names", "numbers"])
def test_labels_and_images_are_those_of_imagefolder(kind, labels, tmp_path):
    root = draw(tmp_path / "root", "train/1.png", "train/2.png", "train/3.png", "train/4.png")
    draw(root, "test/1.png")
    a, b, c = labels
    write(root / "train", kind, rows(**{"1": a, "2": b, "4": c}))
    write(root / "test", kind, rows(**{"1": a}))
    try:
        truth = imagefolder(root, tmp_path / "cache")
    except ValueError as error:  # datasets 4.0 does not know the strings of pandas 3
        pytest.skip(f"imagefolder itself cannot read this: {error.__cause__}")
    for name, split in truth.items():
        images = opened(root, split=name, class_conditional=True)
        assert images.length == len(split)
        expected = {row["image"].convert("RGB").tobytes(): row["label"] for row in split}
        assert images.classes == (["elm", "oak"] if a == "oak" else ["0", "1", "2"])
        assert images.labels is not None
        found = images.labels.tolist()
        named = [images.classes[i] for i in found] if a == "oak" else found
        assert named == [expected[image] for image in pixels(images)]
        assert opened(root, split=name).length == len(split)
    (note,) = opened(root).notes
    assert "1 images have no row in" in note
    assert "3.png" in note


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_may_serve_every_split(kind, tmp_path):
    root = draw(tmp_path, "train/1.png", "train/2.png", "test/1.png")
    names = {"train/1": "a", "train/2": "b", "test/1": "a"}
    described = [{"file_name": f"{name}.png", "kind": k} for name, k in names.items()]
    write(root, kind, described, encoding="utf-8-sig")  # as spreadsheets write .csv
    settings = {"class_conditional": True, "label_column": "kind"}
    images = opened(root, validation="test", **settings)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    assert images.validation is not None
    assert images.validation.labels is not None
    assert images.validation.labels.tolist() == [0]
    assert opened(root, split="test", **settings).classes == ["a", "b"]


def test_names_of_classes_in_a_parquet_file_are_kept(tmp_path):
    root = draw(tmp_path, "1.png", "2.png")
    features = datasets.Features(
        file_name=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes", "maybe"])
    )
    table = datasets.Dataset.from_list(rows(**{"1": 1, "2": 0}), features=features)
    table.to_parquet(root / "metadata.parquet")
    images = opened(root, class_conditional=True)
    assert images.classes == ["no", "yes", "maybe"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0]


def test_a_file_of_labels_replaces_metadata_and_says_so(tmp_path):
    root = draw(tmp_path / "root", "1.png", "2.png")
    write(root, "csv", rows(**{"1": "a"}))
    (tmp_path / "labels.csv").write_text("file,label\n1.png,x\n2.png,y\n")
    images = opened(root, class_conditional=True, labels=str(tmp_path / "labels.csv"))
    assert images.classes == ["x", "y"]
    (note,) = images.notes
    assert "metadata.csv is not read" in note
    assert "data.labels=" in note


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (rows(**{"1": "a", "9": "b"}), r"metadata\.csv names 9\.png, which does not exist"),
        (rows(**{"1": "a", "../2": "b"}), r"names \.\./2\.png, which is not below"),
        (rows(**{"1": "a", "/etc/x": "b"}), r"names /etc/x\.png, which is not below"),
        ([{"file_name": "note.txt", "label": "a"}], r"names note\.txt, which is not an image"),
        (rows(**{"1": "a"}) + rows(**{"1": "b"}), r"names 1\.png twice, as a and b"),
        (rows(**{"1": "a", "2": ""}), r"has no label for 2\.png"),
        (rows(**{"1": 0.5}), r"'label' of .*metadata\.csv holds neither whole numbers nor names"),
        ([{"file_name": "1.png", "text": "a"}], r"no column 'label', only file_name, text"),
        ([{"image": "1.png", "label": "a"}], r"no column 'file_name', only image, label"),
        (rows(**{"1": -1}), r"1\.png has label -1, outside 0"),
    ],
)
def test_what_is_wrong_with_metadata_is_one_line(written, message, tmp_path):
    root = draw(tmp_path / "root", "1.png", "2.png")
    (root / "note.txt").write_text("")
    write(root, "csv", written)
    with pytest.raises(ValueError, match=message) as error:
        opened(root, class_conditional=True)
    assert len(str(error.value).splitlines()) == 1


def test_a_label_of_nothing_is_named_in_json_too(tmp_path):
    root = draw(tmp_path, "1.png", "2.png")
    write(root, "jsonl", rows(**{"1": "a", "2": None}))
    with pytest.raises(ValueError, match=r"metadata\.jsonl has no label for 2\.png"):
        opened(root, class_conditional=True)


def test_two_kinds_of_metadata_are_refused(tmp_path):
    root = draw(tmp_path, "1.png")
    write(root, "csv", rows(**{"1": "a"}))
    write(root, "jsonl", rows(**{"1": "a"}))
    with pytest.raises(ValueError, match=r"metadata\.csv and .*metadata\.jsonl"):
        opened(root, class_conditional=True)


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_that_cannot_be_read_is_named(kind, tmp_path):
    root = draw(tmp_path, "1.png")
    (root / f"metadata.{kind}").write_bytes(b'{"file_name": \xff\xfe\n"')
    with pytest.raises(ValueError, match=rf"metadata\.{kind} ") as error:
        opened(root, class_conditional=True)
    assert len(str(error.value).splitlines()) == 1


def test_a_table_of_another_kind_is_passed_over_where_no_labels_are_needed(tmp_path):
    root = draw(tmp_path, "1.png", "2.png")
    (root / "metadata.csv").write_text("isic_id,diagnosis\n1,nevus\n")
    images = opened(root)
    assert images.length == 2
    (note,) = images.notes
    assert "metadata.csv has no column 'file_name'" in note


def test_rows_of_a_split_that_is_not_there_are_no_fault(tmp_path):
    root = draw(tmp_path, "train/1.png")
    write(root, "jsonl", rows(**{"train/1": "a", "test/1": "b"}))
    images = opened(root, class_conditional=True)
    assert (images.length, images.classes) == (1, ["a", "b"])
    draw(root, "test/2.png")
    with pytest.raises(ValueError, match=r"names test/1\.png, which does not exist"):
        opened(root, split="test")


def test_no_image_with_a_row_is_an_error(tmp_path):
    root = draw(tmp_path, "train/1.png", "test/1.png")
    write(root, "jsonl", rows(**{"train/1": "a"}))
    with pytest.raises(ValueError, match=r"no image of the split test has a row in"):
        opened(root, split="test")


def test_rows_reach_images_through_links(tmp_path):
    pool = draw(tmp_path / "pool", "1.png", "2.png")
    write(pool, "jsonl", rows(**{"1": "a", "2": "b"}))
    root = tmp_path / "root"
    root.mkdir()
    (root / "b").symlink_to(pool)
    (root / "a").symlink_to(pool)
    images = opened(root, class_conditional=True)
    assert (images.length, images.classes) == (2, ["a", "b"])


@pytest.mark.parametrize("test_rows", [[{"file_name": "1.png"}], rows(**{"1": None})])
def test_a_split_without_labels_does_not_hinder_the_others(test_rows, tmp_path):
    root = draw(tmp_path, "train/1.png", "train/2.png", "test/1.png")
    write(root / "train", "jsonl", rows(**{"1": "a", "2": "b"}))
    write(root / "test", "jsonl", test_rows)
    assert opened(root, class_conditional=True).classes == ["a", "b"]
    assert opened(root, split="test").length == 1
    with pytest.raises(ValueError, match=r"test/metadata\.jsonl has no (label|column 'label')"):
        opened(root, split="test", class_conditional=True)


def test_a_file_of_the_first_class_alone_is_like_the_others(tmp_path):
    root = draw(tmp_path, "a/1.png", "b/1.png")
    write(root / "a", "csv", rows(**{"1": 0}))
    write(root / "b", "csv", rows(**{"1": 1}))
    images = opened(root, class_conditional=True)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    write(root / "b", "csv", rows(**{"1": "x"}))
    with pytest.raises(ValueError, match=r"a/metadata\.csv and .*b/metadata\.csv differ"):
        opened(root, class_conditional=True)
