"""NIfTI, Analyze and FreeSurfer volumes, read by nibabel with the scaling of their headers."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_sa.data.arrays import RefusedError
from ddpm_sa.data.containers.stack import Part, Stack, needed_for, refuse_member

KIND = "a NIfTI volume"
# The axes of an array of NIfTI-1 (its header's dim[1] to dim[5]); Analyze and MGH have the same.
AXES = "XYZTC"
# A compressed volume up to this size, which its header states, is decompressed once and kept:
# reading it image by image would decompress it from its beginning each time.
MOST_LOADED = 2**30


def open_nifti(path: Path, member: str | None) -> Stack:
    """Open a volume.

    Raises:
        RefusedError: If it is of another kind, which nibabel knows but whose axes vary.
    """
    with needed_for(KIND):
        import nibabel
    refuse_member(member, KIND)
    image: Any = nibabel.load(path)
    known = nibabel.Nifti1Pair, nibabel.AnalyzeImage, nibabel.MGHImage
    if not isinstance(image, known) or len(image.shape) > len(AXES):
        raise RefusedError(
            f"is a {type(image).__name__} of nibabel and shape {image.shape}; convert it to a "
            "NIfTI volume of 2 to 5 axes (nibabel.save)"
        )
    proxy: Any = image.dataobj
    dtype: Any = np.dtype(image.get_data_dtype())
    axes = AXES[: len(image.shape)]
    shape = tuple(image.shape)
    if dtype.names is not None:  # RGB or RGBA, a record of bytes
        shape, axes = (*shape, len(dtype.names)), f"{axes}S"
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    return Stack(
        shape=shape,
        dtype=np.dtype("u1") if dtype.names else np.dtype("f8") if scaled else dtype,
        axes=axes,
        origin="the NIfTI standard",
        kind=KIND,
        read=_reader(path, proxy, math.prod(image.shape) * dtype.itemsize),
    )


def _reader(path: Path, proxy: Any, size: int) -> Any:
    raw = None

    def read(part: Part) -> np.ndarray:
        nonlocal raw
        if path.suffix not in (".gz", ".mgz", ".bz2") or size > MOST_LOADED:
            return _bytes_of(proxy[part[: len(proxy.shape)]])
        if raw is None:
            raw = proxy.get_unscaled()
        from nibabel.volumeutils import apply_read_scaling

        values = raw[part[: len(proxy.shape)]]
        return (
            _bytes_of(values)
            if values.dtype.names
            else apply_read_scaling(values, proxy.slope, proxy.inter)
        )

    return read


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """Values of bytes in a record, such as RGB, as a last axis; other values as they are."""
    if values.dtype.names is None:
        return values
    return np.stack([values[name] for name in values.dtype.names], axis=-1)
