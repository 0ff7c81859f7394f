"""Folders of images follow imagefolder's rules; `datasets` itself is the outside truth."""

import gc
import itertools
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from ddpm_sa.data.load import open_images
from ddpm_sa.data.sources.folders import SPLIT_KEYWORDS, split_of
from training.config import DataConfig

SHADES = itertools.count(1)


def draw(root: Path, *names: str) -> Path:
    """Images, each of its own shade."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shade = next(SHADES)
        Image.new("RGB", (8, 8), (shade % 256, shade // 256, 0)).save(root / name)
    return root


def opened(root: Path, **settings):
    return open_images(DataConfig(source=str(root), size=8, **settings))


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images.read(np.arange(images.length))]


def imagefolder(root: Path, cache: Path) -> datasets.DatasetDict:
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(cache))
    gc.collect()  # it leaves metadata.csv open
    return loaded


LAYOUTS = {
    "no splits": ["cat/1.png", "cat/2.png", "dog/1.png"],
    "train and test": ["train/cat/1.png", "train/dog/1.png", "train/dog/2.png", "test/cat/1.png"],
    "a class of one split": ["train/cat/1.png", "train/dog/1.png", "test/fox/1.png"],
    "three splits by other names": ["training/1.png", "eval/1.png", "eval/2.png", "dev/1.png"],
    "names with separators": ["train-2020/1.png", "my_val.old/1.png", "contest/1.png"],
    "below another folder": ["photos/train/1.png", "photos/test/1.png", "photos/test/2.png"],
    "images in no split": ["train/1.png", "train/2.png", "extra/1.png"],
    "a class named dev": ["cat/1.png", "cat/2.png", "dev/1.png"],
    "upper case": ["Train/1.png", "Test/1.png"],
    "hidden": ["cat/1.png", ".trash/1.png", "__MACOSX/cat/1.png", "dog/.1.png", "dog/1.png"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_and_classes_are_those_of_imagefolder(layout, tmp_path):
    root = draw(tmp_path / "root", *LAYOUTS[layout])
    truth = imagefolder(root, tmp_path / "cache")
    for name, split in truth.items():
        # imagefolder takes the folders of splits for classes, where they hold images themselves.
        names = split.features["label"].names if "label" in split.features else ["train"]
        labelled = not any(map(split_of, names))
        images = opened(root, split=name, class_conditional=labelled)
        expected = {np.asarray(row["image"]).tobytes(): row.get("label") for row in split}
        assert set(pixels(images)) == set(expected)
        assert images.length == len(split)
        if labelled:
            assert images.classes == split.features["label"].names
            assert images.labels is not None
            assert images.labels.tolist() == [expected[image] for image in pixels(images)]
    for name in {"train", "validation", "test"} - truth.keys():
        with pytest.raises(ValueError, match=rf"has no split '{name}', only {next(iter(truth))}"):
            opened(root, split=name)


def test_the_words_that_name_a_split_are_those_of_datasets():
    from datasets.data_files import SPLIT_KEYWORDS as TRUTH

    assert {str(split): tuple(words) for split, words in TRUTH.items()} == SPLIT_KEYWORDS
    assert split_of("contest") is None
    assert split_of("latest") is None
    assert split_of("2020-val") == "validation"


def test_a_folder_is_in_one_split_alone(tmp_path):
    """imagefolder gives train/test/ to both splits, and test images to training."""
    root = draw(tmp_path, "train/cat/1.png", "train/test/1.png", "val/bullet_train/1.png")
    images = opened(root, class_conditional=True, validation="validation", num_classes=4)
    assert images.length == 2
    assert images.classes == ["bullet_train", "cat", "test", "3"]
    assert images.validation is not None
    assert images.validation.length == 1
    assert not set(pixels(images)) & set(pixels(images.validation))
    with pytest.raises(ValueError, match=r"has no split 'test', only train \(2\), validation"):
        opened(root, split="test")


def test_the_report_says_what_was_taken_and_what_left_out(tmp_path):
    root = draw(tmp_path, *(f"{split}/{i}.png" for split in ("train", "test") for i in range(3)))
    draw(root, "val/0.png")
    assert "split       train, 3 images; left out: validation (1), test (3)" in opened(
        root
    ).describe("root")
    lines = opened(root, validation="test").describe("root")
    assert "split       train, 3 images; left out: validation (1)" in lines
    assert "held out    3 images for validation, split test" in lines
    assert not any("no split" in note for note in opened(root).notes)
    draw(root, "extra/0.png")
    images = opened(root)
    assert images.length == 3
    (note,) = images.notes
    assert "1 images are in no split and are left out, such as" in note
    assert "extra/0.png" in note
    plain = opened(draw(tmp_path / "plain", "0.png"))
    assert not any("split" in line for line in plain.describe("plain"))


@pytest.mark.parametrize("names", [["Train/1.png", "Test/1.png"], ["train_1.png", "test_1.png"]])
def test_what_looks_like_splits_and_is_none_is_warned_of(names, tmp_path):
    images = opened(draw(tmp_path, *names))
    assert images.length == 2
    (note,) = images.notes
    assert names[0].split("/")[0] in note
    assert "not splits" in note


def test_held_out_images_are_another_split_of_the_folder(tmp_path, monkeypatch):
    root = draw(tmp_path / "root", "train/a/1.png", "train/b/1.png", "test/b/1.png")
    draw(tmp_path / "test", "a/1.png", "a/2.png", "a/3.png")  # a folder of that name lies here too
    monkeypatch.chdir(tmp_path)
    images = opened(root, class_conditional=True, validation="test")
    assert images.validation is not None
    assert images.validation.labels is not None
    assert images.validation.labels.tolist() == [1]
    elsewhere = opened(root, class_conditional=True, validation="./test")
    assert elsewhere.validation is not None
    assert elsewhere.validation.length == 3
    with pytest.raises(ValueError, match=r"validation=train is the split that is taken"):
        opened(root, validation="train")
    with pytest.raises(ValueError, match=r"validation=\S+/root/ is data\.source itself"):
        opened(root, validation=f"{root}/")
    message = r"validation=dev is not a folder or file, and data\.source=.* has only the splits"
    with pytest.raises(ValueError, match=message):
        opened(root, validation="dev")


def test_another_folder_held_out_is_its_own_split(tmp_path):
    root = draw(tmp_path / "root", "test/1.png", "test/2.png", "train/1.png")
    other = draw(tmp_path / "other", "1.png")
    images = opened(root, split="test", validation=str(other))
    assert (images.length, images.validation and images.validation.length) == (2, 1)
    images = opened(root, split="test", validation=str(root / "train"))
    assert (images.length, images.validation and images.validation.length) == (2, 1)


def test_each_split_is_cached_by_itself(tmp_path):
    root = draw(tmp_path / "root", "train/1.png", "test/1.png")
    train, test = (opened(root, split=s, cache_dir=str(tmp_path / s)) for s in ("train", "test"))
    again = opened(root, split="test", cache_dir=str(tmp_path / "train"))
    assert pixels(again) == pixels(test) != pixels(train)
    assert train.fingerprint() != test.fingerprint()
    names = [{path.name for path in (tmp_path / s).glob("*/")} for s in ("train", "test")]
    assert names[1] < names[0]


def test_a_label_file_names_the_images_of_the_split_that_is_taken(tmp_path):
    root = draw(tmp_path / "root", "train/1.png", "train/2.png", "test/1.png")
    (tmp_path / "labels.csv").write_text("file,label\ntrain/1.png,x\ntrain/2.png,y\n")
    images = opened(root, class_conditional=True, labels=str(tmp_path / "labels.csv"))
    assert images.classes == ["x", "y"]


def test_links_to_folders_are_read(tmp_path):
    pool = draw(tmp_path / "pool", "1.png", "2.png")
    root = draw(tmp_path / "root", "cat/1.png")
    (root / "dog").symlink_to(pool)
    (tmp_path / "link").symlink_to(root)
    images = opened(tmp_path / "link", class_conditional=True)
    assert images.length == 3
    assert images.classes == ["cat", "dog"]
    assert images.notes == ()


def test_splits_may_be_links(tmp_path):
    pool = draw(tmp_path / "root" / "pool", "1.png", "2.png").parent
    (pool / "train").mkdir()
    (pool / "train" / "1.png").symlink_to(pool / "pool" / "1.png")
    (pool / "test").symlink_to(pool / "pool")
    assert opened(pool).length == 1
    assert opened(pool, split="test").length == 2


def test_loops_end_and_nothing_is_read_twice(tmp_path):
    root = draw(tmp_path / "root", "train/a/1.png", "train/b/1.png", "test/a/1.png")
    (root / "train" / "a" / "up").symlink_to(root / "train")
    (root / "train" / "b" / "root").symlink_to(root)
    (root / "train" / "b" / "self").symlink_to(root / "train" / "b")
    (root / "train" / "c").symlink_to(root / "train" / "b")
    (root / "train" / "b" / "2.png").symlink_to(root / "train" / "b" / "1.png")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "back").symlink_to(root)
    (root / "train" / "d").symlink_to(outside)
    images = opened(root, class_conditional=True)
    assert images.length == 2
    assert images.classes == ["a", "b"]
    (note,) = images.notes
    assert "links lead to what is read already" in note
    # Each folder links to every other: 12! ways through them.
    for name in "abcdefghijkl":
        draw(tmp_path / "farm", f"{name}/1.png")
    for name, other in itertools.permutations("abcdefghijkl", 2):
        (tmp_path / "farm" / name / f"to-{other}").symlink_to(tmp_path / "farm" / other)
    assert opened(tmp_path / "farm").length == 12


def test_broken_links_are_named(tmp_path):
    root = draw(tmp_path / "root", "a/1.png")
    (root / "a" / "notes.txt").symlink_to(tmp_path / "nowhere.txt")
    assert opened(root).length == 1
    (root / "a" / "2.png").symlink_to(tmp_path / "nowhere.png")
    message = r"root/a/2\.png is a broken link: .*nowhere\.png does not exist"
    with pytest.raises(ValueError, match=message):
        opened(root)
    images = opened(root, on_error="skip")
    assert images.length == 1
    assert "broken link" in images.skipped[0]
    (root / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"root/b is a broken link: .*nowhere does not exist"):
        opened(root, on_error="skip")
    (root / "b").unlink()
    (root / "b").symlink_to(root / "b")
    with pytest.raises(ValueError, match=r"root/b is a broken link"):
        opened(root, on_error="skip")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    root = draw(tmp_path / "root", "a/1.png", "b/1.png")
    (root / "b").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"root/b cannot be read: .*ermission"):
            opened(root)
    finally:
        (root / "b").chmod(0o755)


@pytest.mark.parametrize("source", ["mnist5k", "images.npy"])
def test_a_split_is_refused_where_there_are_none(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=rf"data\.split=test .* data\.source={source} has no spl"):
        open_images(DataConfig(source=source, size=28, split="test"))
