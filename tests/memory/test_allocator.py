"""Freed memory is reused: counted by the kernel's own number of page faults."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import mmap, resource, sys, torch
from ddpm_sa.memory.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = 40 * 2**20
for _ in range(20):  # aligned blocks need a little more than one that was freed, until two join
    torch.ones(size, dtype=torch.uint8)
before = faults()
for _ in range(10):
    torch.ones(size, dtype=torch.uint8)
print((faults() - before) / (10 * size / mmap.PAGESIZE))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    shares = []
    for way in ("leave", "keep"):
        words = [sys.executable, "-c", PROGRAM, way]
        told = subprocess.run(words, capture_output=True, text=True, check=True, env=clean)
        shares.append(float(told.stdout))
    # Huge pages, where the kernel gives them, make fewer faults, but some for each block.
    assert shares[1] < 0.1 * shares[0]
