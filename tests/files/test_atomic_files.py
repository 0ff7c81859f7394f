import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_sa.files.atomic_files import write_atomically

# Writes half of a file, says so, and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from ddpm_sa.files.atomic_files import write_atomically
with write_atomically(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with write_atomically(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write() -> None:
        with write_atomically(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    # What is left is no picture by its name.
    assert [p.name for p in tmp_path.glob("*.png")] == ["a.png"]
