"""Test files of pydicom and nibabel: read with the values of that library, or refused by name."""

import gzip
import json
import logging
import shutil
import tracemalloc
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, pixel_array

from ddpm_sa.data.containers.source import opens
from ddpm_sa.data.containers.survey import survey
from ddpm_sa.data.load import open_images
from ddpm_sa.errors import UserError
from tests.support.runs import arguments, run_here
from training.config import DataConfig

DICOM = sorted(Path(pydicom.__file__).parent.joinpath("data", "test_files").rglob("*"))
DICOM = [path for path in DICOM if path.is_file() and path.suffix in ("", ".dcm")]
NIBABEL = sorted(Path(nibabel.__file__).parent.joinpath("tests", "data").iterdir())
NIBABEL = [path for path in NIBABEL if path.suffix != ".dcm"]


def opened(source, **settings):
    return open_images(DataConfig(source=str(source), **{"size": 8} | settings))


def at_own_size(source: Path, **settings):
    """The images without resizing, which keeps their values; None if they are refused by name."""
    size = "8x8"
    if opens(source):
        first = survey([source], DataConfig(source=str(source), **settings), whole=True).files[0]
        size = "{}x{}".format(*first.layout.image_shape) if first.axes else size
    try:
        return opened(source, size=size, **settings)
    except UserError as error:
        message = str(error)
    assert source.name in message
    assert "\n" not in message
    return None


def every(images) -> np.ndarray:
    return images.read(np.arange(images.length))


@pytest.mark.filterwarnings("ignore")
def test_every_dicom_file_is_read_as_pydicom_reads_it_or_refused_by_name() -> None:
    read, refused = [], []
    for path in DICOM:
        images = at_own_size(path)
        if images is None:
            refused.append(path.name)
            continue
        header = pydicom.dcmread(path)
        values = apply_modality_lut(pixel_array(path), header)
        own = every(images)
        np.testing.assert_array_equal(own.reshape(values.shape), values.astype(own.dtype))
        read.append(path.name)
    assert {"CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm"} <= {*read}
    assert "MR_truncated.dcm" in refused
    assert len(read) > 40, (len(read), refused)


@pytest.mark.filterwarnings("ignore")
def test_ct_is_in_hounsfield_units() -> None:
    path = next(path for path in DICOM if path.name == "CT_small.dcm")
    images = at_own_size(path)
    assert images is not None
    stored = pydicom.dcmread(path)
    expected = stored.pixel_array * float(stored.RescaleSlope) + float(stored.RescaleIntercept)
    np.testing.assert_array_equal(every(images)[0, ..., 0], expected)
    assert images.format.bit_depth == 32


@pytest.mark.filterwarnings("ignore")
def test_every_volume_is_read_as_nibabel_reads_it_or_refused_by_name() -> None:
    read = []
    logging.disable(logging.CRITICAL)
    for path in NIBABEL:
        images = at_own_size(path)
        if images is None:
            continue
        values = np.asanyarray(nibabel.load(path).dataobj)  # pyright: ignore
        own = every(images)
        expected = np.moveaxis(values.reshape(*values.shape[:2], -1, order="C"), 2, 0)
        np.testing.assert_array_equal(own[..., 0], expected.swapaxes(1, 2).astype(own.dtype))
        read.append(path.name)
    logging.disable(logging.NOTSET)
    small = {"anatomical.nii", "functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz"}
    assert small | {"standard.nii.gz", "test.mgz"} <= {*read}


def series(folder: Path, number: int, side: int = 8, uid: str = "1.2.3") -> None:
    """Slices of a series, numbered against their order in space."""
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slice_ = pydicom.dcmread(next(p for p in DICOM if p.name == "CT_small.dcm"))
    slice_.PatientName, slice_.PatientID = "Doe^Jane", "ID-4711"
    slice_.PatientBirthDate, slice_.StudyDate = "19700203", "20040506"
    for i in range(number):
        slice_.SeriesInstanceUID, slice_.InstanceNumber = uid, number - i
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, -i], [1, 0, 0, 0, 1, 0]
        slice_.Rows = slice_.Columns = side
        slice_.PixelData = np.full((side, side), i, np.int16).tobytes()
        slice_.save_as(folder / f"{side}-{i}")


def test_a_series_is_in_the_order_of_space_and_of_one_size(tmp_path) -> None:
    series(tmp_path / "a", 5)
    images = opened(tmp_path / "a", slices="every:2")
    assert every(images)[:, 0, 0, 0].tolist() == [4 - 1024, 2 - 1024, 0 - 1024]
    series(tmp_path / "a", 2, side=6)
    message = r"8-\d has 8 x 8 .*, but 6-\d of the same series has 6 x 6|6-\d has 6 x 6 .*, but 8-"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "a")


@pytest.mark.filterwarnings("ignore")
def test_bad_dicom_is_refused_in_a_line_without_its_tags(tmp_path) -> None:
    whole = next(p for p in DICOM if p.name == "CT_small.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-5000])
    (tmp_path / "broken.dcm").write_bytes(bytes(200))
    shutil.copy(next(p for p in DICOM if p.name == "JPEG-lossy.dcm"), tmp_path / "lossy.dcm")
    slice_ = pydicom.dcmread(next(p for p in DICOM if p.name == "JPEG-lossy.dcm"))
    slice_.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    slice_.save_as(tmp_path / "lossless.dcm")
    for name, message in {
        "cut.dcm": "damaged or incomplete",
        "broken.dcm": r"is a corrupt DICOM file \(InvalidDicomError\)",
        "lossless.dcm": "compressed as JPEG Lossless, .* no installed decoder reads",
        "lossy.dcm": "compressed as JPEG Extended .* no installed decoder reads: pip install pylib",
    }.items():
        with pytest.raises(ValueError, match=f"{name} .*{message}") as error:
            opened(tmp_path / name)
        assert "CompressedSamples" not in str(error.value)


def test_a_bomb_is_read_as_far_as_its_header_says(tmp_path) -> None:
    volume = nibabel.Nifti1Image(np.arange(192, dtype=np.int16).reshape(8, 8, 3), np.eye(4))
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(volume.to_bytes())
        for _ in range(256):  # 1 GiB
            file.write(bytes(2**22))
    tracemalloc.start()
    assert opened(tmp_path / "bomb.nii.gz").length == 3
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    header = volume.header.copy()
    header.set_data_shape((30_000, 30_000, 100))
    with gzip.open(tmp_path / "large.nii.gz", "wb") as file:
        header.write_to(file)
        file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"large\.nii\.gz .*above the limit of 256"):
        opened(tmp_path / "large.nii.gz")


def test_no_file_of_a_run_names_the_patient(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    series(tmp_path / "scans", 4)
    run_here(arguments(tmp_path / "scans", tmp_path / "run", batch_size=4, steps=1))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = [path for path in written if path.parent.name != "scans"]
    assert any(path.name == "images.json" for path in written)
    for path in written:
        content = path.read_bytes()
        for secret in (b"Doe", b"Jane", b"ID-4711", b"19700203", b"20040506", b"1.2.3"):
            assert secret not in content, (path, secret)
    assert json.loads((tmp_path / "run" / "model" / "images.json").read_text())["channels"] == 1
