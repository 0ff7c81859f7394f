"""Random numbers that depend on where they are used, not on when.

Every draw of this package has an address, (seed, purpose, position...), which is hashed to a
generator of its own. An image therefore has the same noise for any batch size, number of processes
or set of images, and a resumed run needs no saved random state.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.errors import UserError


def stream(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Return the random generator of one address.

    The address is hashed by numpy's `SeedSequence` (O'Neill 2015's seed_seq_fe128 mixing), so that
    neighbouring addresses give independent streams: seed 0 image 5 is not seed 5 image 0.

    Args:
        seed: The user's seed, any integer >= 0.
        purpose: What the numbers are for, such as "initial" or "training noise". Different
            purposes have independent numbers.
        position: Integers >= 0, such as (image, step).

    Raises:
        ValueError: If the seed or a position is negative.
    """
    if seed < 0 or min(position, default=0) < 0:
        raise UserError(f"seed={seed} and position={position} must be 0 or greater")
    # crc32 rather than hash(): Python salts the hash of a string in every process.
    # The length keeps (seed, 1) and (seed, 1, 0) apart, which SeedSequence would pad to the same.
    entropy = [seed, zlib.crc32(purpose.encode()), len(position), *position]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def standard_normal(
    shape: Sequence[int], seed: int, purpose: str, indices: Sequence[int], step: int = 0
) -> Tensor:
    """Draw standard normal noise, from one random stream per image.

    Args:
        shape: Shape of one image's noise, such as (C, H, W).
        seed, purpose: As in `stream`.
        indices: The images' indices, each >= 0; row j depends on indices[j] and step alone.
        step: The denoising or training step.

    Returns:
        Noise, (len(indices), *shape), float32, on the CPU.
    """
    noise = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(noise, indices, strict=True):
        stream(seed, purpose, index, step).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(noise)
