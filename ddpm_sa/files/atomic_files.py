"""Files that are complete or absent, whatever happens to the process or a full disk.

What must outlast a power failure as well, checkpoints and models, is flushed before it is renamed.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which becomes `path` when the block succeeds and is removed if not.

    Its name ends in .partial, so no reader takes it for a finished file; a writer that chooses the
    format by the suffix must be told the format.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
