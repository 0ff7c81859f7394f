"""Programs that reach for one folder at the same moment."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ddpm_sa.files import folder_lock
from tests.support.workers import wait_until


def impatient(rank: int) -> None:
    """What is tried here waits for nobody: the other run is no earlier process of the same job."""
    folder_lock.PATIENCE = 0.0


def meet(folder: Path) -> Callable[[int], None]:
    """For `Workers`: neither of two programs takes its lock before both are about to.

    However long each takes to start, the second one finds the first at work.
    """
    folder.mkdir()
    return partial(_meet, folder)


def _meet(folder: Path, rank: int) -> None:
    impatient(rank)
    acquire = folder_lock._Lock.acquire

    def together(lock: folder_lock._Lock) -> None:
        (folder / str(os.getpid())).touch()
        wait_until(lambda: len(os.listdir(folder)) == 2)
        acquire(lock)

    folder_lock._Lock.acquire = together
