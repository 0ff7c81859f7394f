from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddpm_sa.data.dataset import prefetch
from ddpm_sa.data.load import open_images
from tests.support.runs import picture_folder
from training.config import DataConfig

ALL = np.arange(12)
NO_FLIPS = np.zeros(12, dtype=bool)


def open_folder(folder, **changes):
    return open_images(DataConfig(**({"source": str(folder), "size": 8} | changes)))


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """Write a table to a .parquet file that `datasets` reads without leaving anything behind."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(**columns) -> str:
        path = tmp_path / "images.parquet"
        pq.write_table(pa.table(columns), path)
        return str(path)

    return write


@pytest.fixture(scope="module")
def digits():
    return open_images(DataConfig(source="mnist5k", size=32, flip=False, class_conditional=True))


def test_digits_are_500_of_each_on_black(digits):
    assert np.bincount(digits.labels).tolist() == [500] * 10
    images = digits.batch(np.arange(5000), np.zeros(5000, dtype=bool))
    assert images.shape == (5000, 32, 32, 1)
    assert images.dtype == np.uint8
    border = np.ones((32, 32), dtype=bool)
    border[2:30, 2:30] = False
    assert not images[:, border].any()
    # MNIST's mean grey is 0.1307 of white over 28 x 28 (the constant of every MNIST example).
    assert abs(images[:, 2:30, 2:30].mean() / 255 - 0.1307) < 0.002


def test_digits_keep_their_own_size():
    images = open_images(DataConfig(source="mnist5k", size=28))
    assert images.read(ALL).shape == (12, 28, 28, 1)


@pytest.mark.parametrize("changes", [{"size": 16}, {"size": 33}, {"size": 32, "channels": 3}])
def test_digits_of_an_impossible_size_are_refused(changes):
    with pytest.raises(ValueError, match=f"data.size={changes['size']}"):
        open_images(DataConfig(source="mnist5k", **changes))


def test_a_value_range_of_the_digits_is_refused():
    with pytest.raises(ValueError, match=r"data\.value_range=\(0, 100\) .*mnist5k"):
        open_images(DataConfig(source="mnist5k", value_range=(0, 100)))


def test_folder_gives_each_files_own_pixels_in_sorted_order(tmp_path):
    images = open_folder(picture_folder(tmp_path))
    assert (images.length, images.format.shape, images.labels) == (12, (3, 8, 8), None)
    expected = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert (images.batch(ALL, NO_FLIPS) == np.stack(expected)).all()


def test_images_decoded_when_asked_for_are_those_decoded_beforehand(tmp_path):
    folder = picture_folder(tmp_path)
    kept, streamed = open_folder(folder), open_folder(folder, memory=0.0)
    order = np.array([3, 3, 11, 0])
    assert (kept.read(order) == streamed.read(order)).all()


def test_flipped_images_are_mirrored_left_to_right(tmp_path):
    images = open_folder(picture_folder(tmp_path))
    flips = ALL % 2 == 1
    plain, flipped = images.batch(ALL, NO_FLIPS), images.batch(ALL, flips)
    assert (flipped[~flips] == plain[~flips]).all()
    assert (flipped[flips] == plain[flips][:, :, ::-1]).all()


def test_labels_are_the_subfolders_names(tmp_path):
    folder = picture_folder(tmp_path, ("dog", "cat"), each=3)
    images = open_folder(folder, class_conditional=True)
    assert images.classes == ["cat", "dog"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.num_class_embeds == 2
    assert open_folder(folder).labels is None


def test_label_dropout_adds_a_class(tmp_path):
    folder = picture_folder(tmp_path, ("a", "b"), each=1)
    images = open_folder(folder, class_conditional=True, label_dropout=0.1)
    assert images.num_class_embeds == 3


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    # Three bands, each 16 wide and 16 high: the middle one is the centre.
    bands = np.repeat(np.array([0, 100, 200], dtype=np.uint8), 16)
    Image.fromarray(np.tile(bands, (16, 1))).save(tmp_path / "bands.png")
    pixels = open_folder(tmp_path).read(np.array([0]))[0, :, :, 0]
    assert pixels.shape == (8, 8)
    # Bicubic resampling overshoots by a level beside an edge.
    assert abs(pixels[:, 1:7].astype(int) - 100).max() <= 1


def test_resizing_is_antialiased(tmp_path):
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "checks.png")
    pixels = open_folder(tmp_path).read(np.array([0]))
    # The mean of black and white, where taking every 8th pixel would give either.
    assert abs(pixels[:, 1:7, 1:7].astype(int) - 127).max() <= 2


def test_enlarged_images_are_counted(tmp_path):
    folder = picture_folder(tmp_path)
    assert open_folder(folder).notes == ()
    assert "12 images are smaller than 16" in open_folder(folder, size=16).notes[0]


def test_exif_rotation_is_undone(tmp_path):
    picture = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 8, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = open_folder(tmp_path, size=16).read(np.array([0]))[0, :, :, 0]
    assert pixels[0].min() == 255
    assert pixels[-1].max() == 0


def test_channels_can_be_asked_for(tmp_path):
    folder = picture_folder(tmp_path)
    Image.new("L", (8, 8), 77).save(folder / "grey.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(folder / "rgba.png")
    assert (open_folder(folder, channels=3).read(np.array([12])) == 77).all()
    assert open_folder(folder, channels=1).read(ALL).shape == (12, 8, 8, 1)


def encoded(folder) -> list[bytes]:
    return [path.read_bytes() for path in sorted(picture_folder(folder).glob("*.png"))]


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_holds_the_pixels_and_labels_that_were_written(tmp_path, parquet, as_struct):
    files = encoded(tmp_path / "pictures")
    column = [{"bytes": file, "path": None} for file in files] if as_struct else files
    source = parquet(image=column, label=[i % 3 for i in range(12)])
    images = open_folder(source, class_conditional=True)
    assert (images.read(ALL) == open_folder(tmp_path / "pictures").read(ALL)).all()
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2] * 4
    assert images.classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 1, 7], 3, r"row 2 of .* has label 7, outside 0 .. 2"),
        ([0, -1, 1], None, r"row 1 of .* has label -1, outside 0 .. 1"),
        ([0.5, 1.0, 2.0], None, r"column 'label' of .* holds neither whole numbers nor names"),
    ],
)
def test_labels_outside_their_range_are_named(tmp_path, parquet, labels, num_classes, message):
    source = parquet(image=encoded(tmp_path / "pictures")[:3], label=labels)
    with pytest.raises(ValueError, match=message):
        open_folder(source, class_conditional=True, num_classes=num_classes)


def test_parquet_without_such_a_column_names_those_it_has(tmp_path, parquet):
    source = parquet(image=encoded(tmp_path / "pictures")[:1], kind=[1])
    with pytest.raises(ValueError, match=r"no column 'label', only \['image', 'kind'\]"):
        open_folder(source, class_conditional=True)
    with pytest.raises(ValueError, match=r"no column 'picture'"):
        open_folder(source, image_column="picture")
    with pytest.raises(ValueError, match=r"has 0 columns of images"):
        open_folder(parquet(label=[1]))


def break_a_file(folder):
    (folder / "05.png").write_bytes(b"no image at all")
    return r"05\.png is not an image"


def truncate_a_file(folder):
    whole = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(whole[: len(whole) // 2])
    return r"05\.png cannot be"


def add_a_grey_file(folder):
    Image.new("L", (8, 8)).save(folder / "grey.png")
    return r"00\.png has 3 channels of uint8, .*grey\.png has 1 of uint8; set data\.channels"


def add_a_palette_file(folder):
    Image.new("P", (8, 8)).save(folder / "palette.png")
    return r"palette\.png is a PNG of Pillow's mode P"


def add_a_deep_file(folder):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(folder / "deep.png")
    return r"deep\.png has 1 of uint16"


def empty_the_folder(folder):
    for path in folder.iterdir():
        path.unlink()
    return r"holds no image"


def remove_the_folder(folder):
    empty_the_folder(folder)
    folder.rmdir()
    return r"is neither a folder nor a file"


def replace_the_folder_by_a_file(folder):
    remove_the_folder(folder)
    folder.write_text("print('a program')")
    return r"is a file that cannot be opened as images"


@pytest.mark.parametrize(
    "damage",
    [
        break_a_file,
        truncate_a_file,
        add_a_grey_file,
        add_a_palette_file,
        add_a_deep_file,
        empty_the_folder,
        remove_the_folder,
        replace_the_folder_by_a_file,
    ],
)
def test_bad_folders_are_refused_by_name(tmp_path, damage):
    folder = picture_folder(tmp_path / "pictures")
    with pytest.raises(ValueError, match=damage(folder)):
        open_folder(folder)


def test_deep_images_are_not_converted_silently(tmp_path):
    add_a_deep_file(tmp_path)
    with pytest.raises(
        ValueError, match=r"deep\.png .* I;16 and has 1 channels, data.channels is 3"
    ):
        open_folder(tmp_path, channels=3)


def test_image_outside_every_class_folder_is_named(tmp_path):
    folder = picture_folder(tmp_path, ("a", "b"), each=1)
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies in no subfolder"):
        open_folder(folder, class_conditional=True)


def test_what_is_prefetched_takes_one_processor_and_leaves_the_caller_its_own():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert list(prefetch(lambda step: torch.get_num_threads(), range(3))) == [1, 1, 1]
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as another:
            assert another.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_prefetched_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda step: step * step, range(5))) == [0, 1, 4, 9, 16]
    assert list(prefetch(lambda step: step, range(0))) == []
    ahead = prefetch(lambda step: 1 // (2 - step), range(5))
    assert next(ahead) == 0
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_mnist5k_may_be_given_the_value_range_that_it_has():
    """Evaluation opens the data of a model with the range of the model's images."""
    images = open_images(DataConfig(source="mnist5k", value_range=(0, 255), size=32))
    assert images.format.value_range == (0, 255)
    with pytest.raises(ValueError, match=r"value_range=\(0, 100\) cannot be used"):
        open_images(DataConfig(source="mnist5k", value_range=(0, 100), size=32))
