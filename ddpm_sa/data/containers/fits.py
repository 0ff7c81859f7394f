"""FITS files of astronomy, read by astropy with the scaling of their headers."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_sa.data.containers.stack import Stack, choose_member, needed_for

KIND = "a FITS file"
# For axes beyond two, from the last: astronomy has no letters, and each counts images.
FURTHER = "ZTPQ"


def open_fits(path: Path, member: str | None) -> Stack:
    """Open an image; `member` is its extension's number if there are several.

    NAXIS1 is X and NAXIS2 is Y. A further axis counts images if its CTYPE says what it is.

    Raises:
        RefusedError: If no extension, or one that there is not, was named.
    """
    with needed_for(KIND):
        from astropy.io import fits
    file: Any = fits.open(path)
    images = {str(i): hdu for i, hdu in enumerate(file) if hdu.is_image and len(hdu.shape) >= 2}
    try:
        chosen = choose_member({i: hdu.shape for i, hdu in images.items()}, member, KIND)
    except ValueError:
        file.close()
        raise
    hdu = images[chosen]
    further = len(hdu.shape) - 2
    named = further <= len(FURTHER) and all(hdu.header.get(f"CTYPE{i + 3}") for i in range(further))
    first = np.asarray(hdu.section[(slice(0, 1),) * len(hdu.shape)])  # astropy's dtype, once scaled
    stack = Stack(
        shape=hdu.shape,
        dtype=first.dtype,
        axes=FURTHER[:further][::-1] + "YX" if named else None,
        origin="the FITS standard and its CTYPE",
        kind=KIND,
        read=lambda part: np.asarray(hdu.section[part]),
    )
    weakref.finalize(stack, file.close)
    return stack
