"""One writer at a time: a program holds the folder that it writes, and a second one is refused.

The lock is the operating system's, on a hidden file in the folder: the kernel drops it with the
process, however that ends, on NFS too. The file also names its holder, who touches it every few
seconds. That decides where the kernel cannot: on file systems whose locks are unknown to other
machines (some Lustre mounts, SMB), or that have none. There, a holder that has not touched the file
for a minute is gone; the machines' clocks must agree to half a minute. (filelock is not used: what
it does with its file, and where there are no locks, differs between its versions.)
"""

import contextlib
import json
import os
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from ddpm_sa.cli import command_line
from ddpm_sa.errors import UserError, require

try:
    import fcntl
except ModuleNotFoundError:  # Windows: the heartbeat alone decides
    fcntl = None

LOCK = ".ddpm_sa.lock"
# A process that was told to end, by a cluster that starts its job again, may need a moment.
PATIENCE = 10.0
HEARTBEAT, STALE = 10.0, 60.0
POLL, CONFIRM = 0.1, 1.0
# A holder names itself a moment after it has the lock.
NAMING = 2.0


def lock_in(folder: Path) -> Path:
    """The lock of a folder that keeps its place, within it: all machines see the same file."""
    return folder / LOCK


def lock_beside(folder: Path) -> Path:
    """The lock of a folder that is replaced as a whole, beside it."""
    return folder.parent / f".{folder.name}{LOCK}"


@contextlib.contextmanager
def hold_folder(
    folder: Path,
    lock_of: Callable[[Path], Path] = lock_in,
    take: Callable[[Callable[[], None]], object] = lambda action: action(),
) -> Iterator[None]:
    """Hold a folder for the length of the block; afterwards the lock's file is gone.

    Args:
        folder: The output_dir of a program. The folder of the lock is created if it does not exist,
            and removed again if it is empty at the end.
        lock_of: `lock_in` or `lock_beside`.
        take: Calls its argument, which takes the lock: of several processes of one run, in one.

    Raises:
        UserError: If another process holds it, naming the process, or if it is a file.
        OSError: If the lock's file cannot be written.
    """
    lock = _Lock(folder, lock_of(folder.absolute()))
    take(lock.acquire)
    try:
        yield
    finally:
        lock.release()


class _Lock:
    """The lock on one folder; `release` does nothing in a process that has not acquired it."""

    def __init__(self, folder: Path, path: Path):
        self.folder, self.path = folder, path
        self.file: FileIO | None = None
        self.created: list[Path] = []
        self.released = threading.Event()

    def acquire(self) -> None:
        """Wait a few seconds for another holder to end, if there is one.

        Raises:
            UserError: If it does not end.
        """
        home = self.path.parent
        is_file = home.exists() and not home.is_dir()
        require(not is_file, f"output_dir={self.folder}: {home} is a file")
        self.created = [path for path in (home, *home.parents) if not path.exists()]
        try:
            self._acquire()
        except BaseException:
            self._remove_created()
            raise
        threading.Thread(target=self._beat, name="folder lock", daemon=True).start()

    def release(self) -> None:
        """Remove the lock's file, then drop the lock."""
        if self.file is None:
            return
        self.released.set()
        with self.file, contextlib.suppress(OSError):
            if self._is_current(self.file):
                # Empty, it names no holder, where an open file cannot be removed (Windows).
                os.truncate(self.path, 0)
                self.path.unlink()
        self.file = None
        self._remove_created()

    def _acquire(self) -> None:
        """Try until the lock is free, or its holder is known to be alive."""
        watch = _Watch()
        while self.file is None:
            with contextlib.ExitStack() as stack:
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    file, locked = self._open()
                except (FileNotFoundError, FileExistsError):
                    home = self.path.parent
                    if os.path.lexists(home) and not home.is_dir():
                        raise
                    continue  # another process has just removed its empty folder
                stack.enter_context(file)
                if self._is_current(file):
                    holder = _read(file)
                    state = watch.state(file, locked, holder)
                    if state == "alive":
                        raise self._refusal(holder)
                    if state == "free":
                        self._write_holder(file, confirm=locked is None)
                        self.file = file
                        stack.pop_all()
                        return
            time.sleep(POLL)

    def _open(self) -> tuple[FileIO, bool | None]:
        """Open the file and try to lock it, with the result of `_lock`."""
        # Not for writing if it can be helped: a disk with such a file cannot be made read-only.
        file = FileIO(os.open(self.path, os.O_RDONLY | os.O_CREAT, 0o666))
        if (locked := _lock(file)) is None:  # NFS locks files that are open for writing alone
            file.close()
            file = FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666))
            locked = _lock(file)
        return file, locked

    def _write_holder(self, file: FileIO, confirm: bool) -> None:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(" ", "seconds"),
            "command": command_line(),
        }
        self.path.write_text(json.dumps(holder), encoding="utf-8")
        if confirm:  # two may have seen the file free; the last one to write has it
            time.sleep(CONFIRM)
            if (other := _read(file)) != holder:
                raise self._refusal(other)

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        who = "another process"  # it could not write who it is
        if holder:
            command = textwrap.shorten(holder["command"], 100, placeholder=" ...")
            who = f"process {holder['pid']} on {holder['host']} since {holder['since']} ({command})"
        return UserError(
            f"output_dir={self.folder} is in use by {who}; wait for it to end, or choose another "
            "output_dir"
        )

    def _is_current(self, file: FileIO) -> bool:
        """Whether the file is still at its path: its holder removes it."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except OSError:
            return False

    def _beat(self) -> None:
        while not self.released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _remove_created(self) -> None:
        with contextlib.suppress(OSError):  # until one is not empty
            for path in self.created:
                path.rmdir()


class _Watch:
    """Watches the holder that a lock's file names."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.beat: float | None = None

    def state(
        self, file: FileIO, locked: bool | None, holder: dict[str, Any]
    ) -> Literal["free", "alive", "unknown"]:
        """What is known by now, with the result of `_lock`."""
        waited = time.monotonic() - self.start
        if locked is False:  # alive, but perhaps about to end
            return "alive" if waited > PATIENCE + (0.0 if holder else NAMING) else "unknown"
        if not holder or (locked and holder["host"] == socket.gethostname()):
            return "free"
        # Another machine's, which may have a lock that this one is not told of.
        beat = os.fstat(file.fileno()).st_mtime
        self.beat = self.beat or beat
        if beat != self.beat:
            return "alive"
        return "free" if max(waited, time.time() - beat) > STALE else "unknown"


def _lock(file: FileIO) -> bool | None:
    """Lock a file; False if another process has, None if there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP
        return None
    return True


def _read(file: FileIO) -> dict[str, Any]:
    """The holder that a lock's file names; {} if none."""
    file.seek(0)
    try:
        return json.loads(file.read())
    except ValueError:
        return {}
