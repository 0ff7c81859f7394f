"""Every kind of input that docs/training.md says was tried, tried."""

import gzip
import json
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import datasets
import h5py
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pydicom
import pytest
import tifffile
import yaml
import zarr
from astropy.io import fits
from PIL import Image

from ddpm_sa.data.load import open_images
from ddpm_sa.image_format import from_tensor
from tests.support.runs import ROOT, environment
from training.config import DataConfig

RANDOM = np.random.default_rng(0)
RGB16 = RANDOM.integers(0, 2**16, (8, 8, 3), dtype=np.uint16)
RGB = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
RGBA = RANDOM.integers(0, 256, (8, 8, 4), dtype=np.uint8)
FIVE = RANDOM.integers(0, 2**16, (5, 8, 8), dtype=np.uint16)
SEVEN = RANDOM.integers(0, 256, (8, 8, 7), dtype=np.uint8)
FLOATS = RANDOM.uniform(-0.9, 0.9, (8, 8, 2)).astype(np.float32)
FLOATS[0, 0] = -1, 1
HOUNSFIELD = RANDOM.integers(-1024, 3072, (8, 8)).astype(np.int16)
FLAT = np.full((8, 8, 3), (200, 60, 30), np.uint8)

Made = np.ndarray | None  # the first image, where it must come out exactly


def table() -> list[tuple[str, str, str]]:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:-1] for row in text.splitlines() if row.startswith("| ")]
    found = [tuple(cell.strip() for cell in row) for row in rows if len(row) == 3]
    return [(name, settings, got) for name, settings, got in found if name != "input"]


def picture(folder: Path, array: np.ndarray, name: str = "0.png", **options) -> Made:
    Image.fromarray(array).save(folder / name, **options)
    return array


def tiff(folder: Path, array: np.ndarray, **options) -> Made:
    tifffile.imwrite(folder / "0.tif", array, **options)
    return array


def npy(folder: Path, array: np.ndarray) -> Made:
    np.save(folder / "0.npy", array)
    return array


def npz(folder: Path, *arrays: np.ndarray) -> Made:
    np.savez_compressed(folder / "0.npz", *arrays)
    return arrays[0]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def deep_colour_png(folder: Path) -> Made:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB16)
    (folder / "0.png").write_bytes(png(8, 8, 16, 2, rows))
    return None


def palette(folder: Path) -> Made:
    image = Image.fromarray(FLAT).quantize(4)
    image.save(folder / "0.png")
    return FLAT


def turned(folder: Path) -> Made:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:, :4] = 255
    Image.fromarray(halves).save(folder / "0.jpg", exif=exif, quality=100)
    return np.rot90(halves, -1)


def cut(folder: Path, name: str, share: float = 0.5) -> Made:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * share)])
    return None


def truncated_jpeg(folder: Path) -> Made:
    picture(folder, RGB, "0.jpg", quality=100)
    return cut(folder, "0.jpg")


def truncated_tiff(folder: Path) -> Made:
    tiff(folder, np.zeros((8, 8, 3), np.uint16), photometric="rgb", metadata=None)
    return cut(folder, "0.tif", 0.9)


def truncated_npy(folder: Path) -> Made:
    npy(folder, RGB)
    return cut(folder, "0.npy", 0.9)


def parquet(path: Path) -> Made:
    file = BytesIO()
    Image.fromarray(RGB).save(file, "png")
    pq.write_table(pa.table({"image": [file.getvalue()] * 3, "label": [0, 1, 2]}), path)
    return RGB


def mixed(folder: Path, other: np.ndarray) -> Made:
    picture(folder, other, "1.png")
    return picture(folder, RGB)


def text(folder: Path, written: bytes) -> Made:
    (folder / "0.png").write_bytes(written)
    return None


def black_and_white(folder: Path) -> Made:
    picture(folder, RGB[..., 0] > 99)
    return np.where(RGB[..., 0] > 99, 255, 0)


def jpeg(folder: Path) -> Made:
    picture(folder, RGB, "0.jpg")
    return np.asarray(Image.open(folder / "0.jpg"))


def cmyk(folder: Path) -> Made:
    Image.fromarray(FLAT).convert("CMYK").save(folder / "0.jpg", quality=100)
    return FLAT


def planes(folder: Path) -> Made:
    tiff(folder, FIVE, photometric="minisblack", planarconfig="separate")
    return np.moveaxis(FIVE, 0, -1)


def pages(folder: Path) -> Made:
    tiff(folder, FIVE, photometric="minisblack")
    return np.moveaxis(FIVE, 0, -1)


def stack(folder: Path) -> Made:
    npy(folder, RGB16[None])
    return RGB16


def parquet_folder(folder: Path) -> Made:
    parquet(folder / "test-0.parquet")
    return parquet(folder / "train-0.parquet")


def broken_among_sound(folder: Path) -> Made:
    picture(folder, RGB)
    (folder / "1.png").write_bytes(b"no image")
    picture(folder, RGB, "2.png")
    cut(folder, "2.png", 0.7)
    return RGB


def npy_bomb(folder: Path) -> Made:
    with (folder / "0.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)
    return None


def wide(folder: Path) -> Made:
    image = RANDOM.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    picture(folder, image)
    return image[:, 2:10]


def saved(folder: Path, *splits: str) -> Made:
    """What save_to_disk writes: a Dataset, or a DatasetDict of splits."""
    features = datasets.Features(image=datasets.Image())
    images = {"image": [Image.fromarray(RGB)] * 3}
    rows = datasets.Dataset.from_dict(images, features=features)
    whole = datasets.DatasetDict(dict.fromkeys(splits, rows)) if splits else rows
    whole.save_to_disk(str(folder))
    return RGB


def train_and_test(folder: Path) -> Made:
    for name in ("train", "test"):
        (folder / name).mkdir()
        picture(folder / name, RGB)
    return RGB


def described(folder: Path, suffix: str, *names: str) -> Made:
    rows = pa.table({"file_name": names, "label": ["a"] * len(names)})
    if suffix == "parquet":
        pq.write_table(rows, folder / "metadata.parquet")
    elif suffix == "csv":
        pyarrow.csv.write_csv(rows, folder / "metadata.csv")
    else:
        lines = [json.dumps(row) for row in rows.to_pylist()]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return picture(folder, RGB)


def linked(folder: Path, source: str = "images") -> Made:
    (folder / "pool").mkdir()
    (folder / source).symlink_to(folder / "pool")
    return picture(folder / "pool", RGB)


def looped(folder: Path) -> Made:
    (folder / "images").mkdir()
    (folder / "images" / "loop").symlink_to(folder / "images")
    linked(folder, "images/link")
    return RGB


def broken(folder: Path) -> Made:
    (folder / "0.png").symlink_to(folder / "nowhere.png")
    return None


ZYX = {"axes": "ZYX"}
PLANES = RANDOM.integers(0, 2**16, (3, 8, 8), dtype=np.uint16)


def stack_tiff(folder: Path, array: np.ndarray = PLANES, **options) -> Made:
    tifffile.imwrite(folder / "0.tif", array, photometric="minisblack", **options)
    return array[0]


def imagej(folder: Path) -> Made:
    array = np.stack([PLANES, PLANES[::-1]], axis=1)  # ZCYX
    stack_tiff(folder, array, imagej=True, metadata={"axes": "ZCYX"})
    return np.moveaxis(array[0], 0, -1)


def nifti(folder: Path, values: np.ndarray = HOUNSFIELD, name: str = "0.nii.gz") -> Made:
    volume = np.stack([values.T, values.T * 0], axis=2)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / name)  # pyright: ignore
    return values


def dicom(folder: Path, interpretation: str = "MONOCHROME2", length: int | None = None) -> Made:
    """A CT slice of two, with the intercept -1024."""
    for i in range(2):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = f"1.2.{i + 1}"
        slice_.SeriesInstanceUID, slice_.InstanceNumber = "1.2.3", i
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 8, 8 + 2 * i * bool(length), 1
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelRepresentation = 0
        slice_.PhotometricInterpretation = interpretation
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        pixels = np.full((8, slice_.Columns), i, np.uint16)
        pixels[:, :8] = HOUNSFIELD + 1024
        slice_.PixelData = pixels.tobytes()
        slice_.save_as(folder / f"IM{i}", enforce_file_format=True)
    return HOUNSFIELD


def hdf5(folder: Path, label: str = "") -> Made:
    with h5py.File(folder / "0.h5", "w") as file:
        file["scan/raw"] = PLANES
        file["scan/mask"] = PLANES > 9
        for dimension, name in zip(file["scan/raw"].dims, label, strict=False):  # pyright: ignore
            dimension.label = name
    return PLANES[0]


def zarr_folder(folder: Path, names: tuple[str, ...] | None = ("z", "y", "x")) -> Made:
    zarr.create_array(folder / "0.zarr", data=PLANES, chunks=(1, 8, 8), dimension_names=names)
    return PLANES[0]


def zarr_without_chunk(folder: Path) -> Made:
    zarr_folder(folder)
    (folder / "0.zarr" / "c" / "1" / "0" / "0").unlink()
    return None


def fits_cube(folder: Path, meaning: str | None = "FREQ") -> Made:
    hdu = fits.PrimaryHDU(PLANES)  # with BZERO 32768
    if meaning:
        hdu.header["CTYPE3"] = meaning
    hdu.writeto(folder / "0.fits")
    return PLANES[0]


def npz_stack(folder: Path, save=np.savez) -> Made:
    save(folder / "0.npz", raw=PLANES, mask=PLANES[..., 0])
    return PLANES[0]


def npy_stack(folder: Path, array: np.ndarray) -> Made:
    np.save(folder / "0.npy", array)
    return array[0]


def science_beside_pictures(folder: Path) -> Made:
    nifti(folder)
    return picture(folder, RGB)


def nifti_bomb(folder: Path) -> Made:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30_000, 30_000, 9))
    with gzip.open(folder / "0.nii.gz", "wb") as file:
        header.write_to(file)
        file.write(bytes(2**20))
    return None


INPUTS = {
    "grey PNG, 8 bits": lambda f: picture(f, RGB[..., 0]),
    "RGB PNG, 8 bits": lambda f: picture(f, RGB),
    "grey PNG, 16 bits": lambda f: picture(f, RGB16[..., 0]),
    "RGB PNG, 16 bits": deep_colour_png,
    "black and white PNG": black_and_white,
    "palette PNG": palette,
    "RGBA PNG": lambda f: picture(f, RGBA),
    "RGB JPEG": jpeg,
    "CMYK JPEG": cmyk,
    "JPEG turned by EXIF": turned,
    "lossless WebP": lambda f: picture(f, RGB, "0.webp", lossless=True),
    "RGB TIFF, 8 bits, LZW": lambda f: picture(f, RGB, "0.tif", compression="tiff_lzw"),
    "grey TIFF, 16 bits": lambda f: tiff(f, RGB16[..., 0]),
    "RGB TIFF, 16 bits, deflate": lambda f: tiff(f, RGB16, photometric="rgb", compression="zlib"),
    "TIFF of 5 planes, 16 bits": planes,
    "TIFF of 5 pages, 16 bits": pages,
    "grey TIFF, float32": lambda f: tiff(f, FLOATS[..., 0]),
    "grey TIFF, int16": lambda f: tiff(f, HOUNSFIELD),
    "grey TIFF, int32": lambda f: tiff(f, HOUNSFIELD.astype(np.int32)),
    ".npy (H, W), uint16": lambda f: npy(f, RGB16[..., 0] // 16),
    ".npy (H, W, C), uint8": lambda f: npy(f, SEVEN),
    ".npy (C, H, W), uint8": lambda f: npy(f, np.moveaxis(SEVEN, -1, 0)),
    ".npy, float32": lambda f: npy(f, FLOATS),
    ".npy with NaN": lambda f: npy(f, np.full((8, 8), np.nan, np.float32)),
    ".npy, int64": lambda f: npy(f, RGB.astype(np.int64)),
    ".npy beyond the range": lambda f: npy(f, FLOATS),
    ".npy of Python objects": lambda f: npy(f, np.full((8, 8), {}, dtype=object)),
    ".npz of one array": lambda f: npz(f, RGB16),
    ".npz of two arrays": lambda f: npz(f, RGB16, RGB),
    "one .npy of all images": stack,
    "parquet of PNG bytes": lambda f: parquet(f / "images.parquet"),
    "folder of parquet files": parquet_folder,
    "data set of save_to_disk": saved,
    "splits of save_to_disk": lambda f: saved(f, "train", "test"),
    "folders train and test": train_and_test,
    "images with metadata.jsonl": lambda f: described(f, "jsonl", "0.png"),
    "images with metadata.csv": lambda f: described(f, "csv", "0.png"),
    "images with metadata.parquet": lambda f: described(f, "parquet", "0.png"),
    "metadata of a missing image": lambda f: described(f, "jsonl", "0.png", "1.png"),
    "link to a folder": linked,
    "folder of links, with a loop": looped,
    "broken link": broken,
    "parquet, streamed": lambda f: parquet(f / "images.parquet"),
    "folder of images, streamed": lambda f: picture(f, RGB),
    "grey and RGB mixed": lambda f: mixed(f, RGB[..., 0]),
    "8 and 16 bits mixed": lambda f: mixed(f, RGB16[..., 0]),
    "text named .png": lambda f: text(f, b"<html>404</html>"),
    "empty file": lambda f: text(f, b""),
    "truncated JPEG": truncated_jpeg,
    "truncated TIFF": truncated_tiff,
    "truncated .npy": truncated_npy,
    "broken file among sound ones": broken_among_sound,
    "PNG bomb of 50000 x 50000": lambda f: text(f, png(50_000, 50_000, 8, 2, bytes(1000))),
    ".npy bomb of 10⁶ x 10⁶": npy_bomb,
    "8 x 12 cut to 8 x 8": wide,
    "no images": lambda f: None,
    "TIFF of 3 pages, 16 bits": stack_tiff,
    "OME-TIFF, ZYX": lambda f: stack_tiff(f, ome=True, metadata=ZYX),
    "TIFF stack, deflate": lambda f: stack_tiff(f, compression="zlib", metadata=ZYX),
    "ImageJ stack, ZCYX": imagej,
    "NIfTI, int16": nifti,
    "NIfTI, uncompressed": lambda f: nifti(f, name="0.nii"),
    "NIfTI, float32 with NaN": lambda f: nifti(f, np.full((8, 8), np.nan, np.float32)),
    "NIfTI, complex": lambda f: nifti(f, np.ones((8, 8), np.complex64)),
    ".nii.gz bomb of 30000 x 30000": nifti_bomb,
    "DICOM series of CT": dicom,
    "DICOM, MONOCHROME1": lambda f: dicom(f, "MONOCHROME1"),
    "DICOM series of mixed sizes": lambda f: dicom(f, length=1),
    "HDF5": lambda f: hdf5(f, "zyx"),
    "HDF5 without labels": hdf5,
    "Zarr": zarr_folder,
    "Zarr without names": lambda f: zarr_folder(f, None),
    "Zarr that lacks a chunk": zarr_without_chunk,
    "FITS cube": fits_cube,
    "FITS cube without CTYPE3": lambda f: fits_cube(f, None),
    ".npz of a stack": npz_stack,
    "compressed .npz of a stack": lambda f: npz_stack(f, np.savez_compressed),
    ".npy stack, int32": lambda f: npy_stack(f, PLANES.astype(np.int32)),
    ".npy stack, int32 beyond 2^24": lambda f: npy_stack(f, PLANES.astype(np.int32) << 12),
    "NIfTI beside pictures": science_beside_pictures,
}
# Where the source is a file in the folder.
FILES = {
    "one .npy of all images": "0.npy",
    "HDF5": "0.h5:/scan/raw",
    ".npz of a stack": "0.npz:raw",
    "compressed .npz of a stack": "0.npz:raw",
    ".npy stack, int32": "0.npy",
    ".npy stack, int32 beyond 2^24": "0.npy",
    "Zarr": "0.zarr",
    "parquet of PNG bytes": "images.parquet",
    "parquet, streamed": "images.parquet",
    "link to a folder": "images",
    "folder of links, with a loop": "images",
}


def test_table_has_every_input_that_is_tried() -> None:
    assert {name for name, _, _ in table()} == INPUTS.keys()


@pytest.mark.parametrize(("name", "settings", "got"), table())
def test_every_input_gets_what_the_table_says(name, settings, got, tmp_path) -> None:
    made = INPUTS[name](tmp_path)
    options = {}
    if settings:
        setting, value = settings.split(" ", 1)
        options = {setting: yaml.safe_load(value)}
        if setting == "value_range":
            options = {setting: tuple(options[setting])}
    source = str(tmp_path / FILES.get(name, ""))
    config = DataConfig(source=source, size=8, **options)
    if got.startswith("refused: "):
        with pytest.raises(ValueError, match=re.escape(got.removeprefix("refused: "))) as error:
            open_images(config)
        assert str(tmp_path) in str(error.value)
        return
    images = open_images(config)
    form = images.format
    low, high = form.value_range
    kind = f"{form.channels} x {form.bit_depth} bits, {low:g} .. {high:g}, "
    assert got.startswith(kind)
    first = images.read(np.array([0]))[0]
    assert first.dtype == form.dtype
    expected = np.asarray(made).reshape(8, 8, -1)
    how = got.removeprefix(kind)
    if how == "converted" and form.channels == 1:
        expected = expected @ [[0.299], [0.587], [0.114]]  # ITU-R 601-2, as Pillow's documentation
    elif how == "converted" and expected.shape[2] == 4:
        alpha = expected[..., 3:] / 255
        expected = expected[..., :3] * alpha + 255 * (1 - alpha)
    # A conversion rounds, JPEG's more than once.
    tolerance = {"converted": 2, "upright": 3}.get(how, 0)
    np.testing.assert_allclose(first, expected, rtol=0, atol=tolerance)
    again = from_tensor(images.tensors(np.array([0]), np.array([False])), form)[0]
    if form.bit_depth == 32:
        np.testing.assert_allclose(again, first, rtol=0, atol=(high - low) * 2**-23)
    else:
        np.testing.assert_array_equal(again, first)


MEASURED = """
import resource, sys
from pathlib import Path
from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.decode import inspect

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

inspect(open(sys.argv[1], "rb"), 3).pixels()
before = peak()
for name in sys.argv[2:]:
    try:
        inspect(open(name, "rb"), 3).pixels()
    except RefusedError as error:
        assert "above the limit" in str(error), error
    else:
        raise AssertionError(name)
print(peak() - before)
"""


def test_bombs_never_fill_memory(tmp_path) -> None:
    """Each would be 400 MB and more, and is below the size at which Pillow itself refuses."""
    picture(tmp_path, RGB)
    (tmp_path / "1.png").write_bytes(png(13_000, 13_000, 8, 2, bytes(39_001 * 13_000)))
    assert (tmp_path / "1.png").stat().st_size < 10**6
    npz_bomb = BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (12_000, 12_000, 3)}
    np.lib.format.write_array_header_1_0(npz_bomb, header)
    with zipfile.ZipFile(tmp_path / "2.npz", "w") as archive:
        archive.writestr("image.npy", npz_bomb.getvalue())
    # A TIFF whose only strip is empty: its header alone says how large it is.
    tifffile.imwrite(tmp_path / "3.tif", np.zeros((8, 8, 3), np.uint16), photometric="rgb")
    with tifffile.TiffFile(tmp_path / "3.tif", mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages.first.tags[tag].overwrite(12_000)
    names = [str(tmp_path / name) for name in ("0.png", "1.png", "2.npz", "3.tif")]
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, *names],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) < 32  # MiB
