"""Holding a folder: also where the locks of the operating system do not tell, as if on another
machine's disk: the holder that the file names is then judged by its heartbeat."""

import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path

import pytest

from ddpm_sa.errors import UserError
from ddpm_sa.files import folder_lock
from ddpm_sa.files.folder_lock import hold_folder, lock_beside, lock_in
from tests.support.workers import wait_until

ELSEWHERE = {"pid": 7, "host": "elsewhere", "since": "2026-01-02 03:04:05", "command": "train.py"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds become hundredths."""
    times = {"PATIENCE": 0.1, "HEARTBEAT": 0.1, "STALE": 2.0, "POLL": 0.01, "CONFIRM": 0.2}
    for name, value in times.items():
        monkeypatch.setattr(folder_lock, name, value)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)


def left_by(holder: dict, folder: Path, age: float = 0.0) -> Path:
    """The file of a lock, as its holder last touched it."""
    folder.mkdir(exist_ok=True)
    lock_in(folder).write_text(json.dumps(holder))
    touched = time.time() - age
    os.utime(lock_in(folder), (touched, touched))
    return lock_in(folder)


@pytest.mark.parametrize("lock_of", [lock_in, lock_beside])
def test_a_held_folder_is_refused_and_free_afterwards(lock_of, tmp_path):
    folder = tmp_path / "runs" / "one"
    with hold_folder(folder, lock_of):
        since = json.loads(lock_of(folder).read_text())["since"]
        with pytest.raises(UserError) as told, hold_folder(folder, lock_of):
            pass
    message = str(told.value)
    assert message.startswith(f"output_dir={folder} is in use by process {os.getpid()} on ")
    assert f"since {since} (" in message
    assert os.listdir(tmp_path) == []
    with hold_folder(folder, lock_of):
        (lock_of(folder).parent / "result").write_text("")
    assert os.listdir(lock_of(folder).parent) == ["result"]


def test_the_refusal_waits_for_the_name_of_a_holder_that_has_just_begun(tmp_path, monkeypatch):
    """Between its lock and its name lie two calls of the operating system."""
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.0)
    write, held, refused = folder_lock._Lock._write_holder, threading.Event(), []

    def write_late(lock, file, confirm):
        held.set()
        time.sleep(0.2)
        write(lock, file, confirm)

    def first():
        with hold_folder(tmp_path):
            wait_until(lambda: bool(refused))

    monkeypatch.setattr(folder_lock._Lock, "_write_holder", write_late)
    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with pytest.raises(UserError) as told, hold_folder(tmp_path):
        pass
    refused.append(told)
    thread.join()
    assert f"is in use by process {os.getpid()} on " in str(told.value)


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path):
        raise KeyError
    assert os.listdir(tmp_path) == []
    with hold_folder(tmp_path):
        pass


def test_a_second_one_waits_for_the_end_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 60.0)
    held, order = threading.Event(), []

    def first():
        with hold_folder(tmp_path):
            held.set()
            time.sleep(0.3)
            order.append("first ends")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with hold_folder(tmp_path):
        order.append("second begins")
    thread.join()
    assert order == ["first ends", "second begins"]


def test_many_at_once_hold_one_after_another(tmp_path, monkeypatch):
    """The file is removed each time, so some wait for the lock of a file that is gone."""
    monkeypatch.setattr(folder_lock, "PATIENCE", 60.0)
    monkeypatch.setattr(folder_lock, "POLL", 0.0)
    inside, most = [], []

    def work():
        for _ in range(20):
            with hold_folder(tmp_path / "out"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 120
    assert not any(tmp_path.glob("*/*"))


def test_lock_that_a_dead_process_of_this_machine_left_is_taken_at_once(tmp_path):
    here = {**ELSEWHERE, "host": folder_lock.socket.gethostname()}
    path = left_by(here, tmp_path / "run")
    with hold_folder(tmp_path / "run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", '{"pid": 7, "ho'])
def test_lock_whose_holder_died_while_it_wrote_is_taken_at_once(text, tmp_path):
    lock_in(tmp_path).write_text(text)
    with hold_folder(tmp_path):
        assert json.loads(lock_in(tmp_path).read_text())["pid"] == os.getpid()


def test_silent_lock_of_another_machine_is_taken_over(tmp_path):
    path = left_by(ELSEWHERE, tmp_path / "run", age=5.0)
    start = time.monotonic()
    with hold_folder(tmp_path / "run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert time.monotonic() - start < folder_lock.STALE


@pytest.mark.parametrize("age", [0.0, -1000.0])
def test_lock_of_another_machine_is_taken_over_when_it_has_been_silent(age, tmp_path):
    """Also if its clock is ahead."""
    path = left_by(ELSEWHERE, tmp_path / "run", age)
    with hold_folder(tmp_path / "run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_lock_of_another_machine_that_beats_is_refused(tmp_path):
    path, end = left_by(ELSEWHERE, tmp_path / "run"), threading.Event()

    def beat():
        while not end.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            pytest.raises(UserError, match="in use by process 7 on elsewhere since 2026-01-02"),
            hold_folder(tmp_path / "run"),
        ):
            pass
    finally:
        end.set()
        thread.join()
    assert json.loads(path.read_text()) == ELSEWHERE


def test_holder_touches_its_file(tmp_path):
    with hold_folder(tmp_path):
        os.utime(lock_in(tmp_path), (0, 0))
        time.sleep(0.5)
        assert lock_in(tmp_path).stat().st_mtime > time.time() - 10


def test_without_locks_the_heartbeat_decides(tmp_path, no_locks):
    with hold_folder(tmp_path):
        with pytest.raises(UserError, match="in use by process"), hold_folder(tmp_path):
            pass
        assert json.loads(lock_in(tmp_path).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []
    path = left_by(ELSEWHERE, tmp_path / "run")
    with hold_folder(tmp_path / "run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_without_locks_one_of_two_at_once_gets_the_folder(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(os, "getpid", threading.get_ident)  # threads stand for processes
    start, results = threading.Barrier(2), []

    def work():
        start.wait()
        try:
            with hold_folder(tmp_path):
                results.append("held")
                time.sleep(1)
        except UserError:
            results.append("refused")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="taken is a file"), hold_folder(tmp_path / "taken"):
        pass
    assert (tmp_path / "taken").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError), hold_folder(tmp_path / "link"):
        pass
