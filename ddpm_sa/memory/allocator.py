"""How the C library's allocator treats memory that is freed."""

import ctypes
import os
import platform

# From malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GIB = 2**30


def keep_freed_memory() -> None:
    """Have glibc reuse freed memory up to 1 GiB a block, in place of returning it to the kernel.

    It returns blocks above 32 MiB at once, and the kernel zeroes them page by page when the next
    layer asks for as much: more than half of the time of a feature extractor on 50 images. Nothing
    is changed on other C libraries, or where the environment sets up the allocator.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if own or platform.libc_ver()[0] != "glibc":
        return
    set_option = ctypes.CDLL(None).mallopt
    set_option(M_MMAP_THRESHOLD, GIB)
    set_option(M_TRIM_THRESHOLD, 2 * GIB - 1)  # the largest int
