import json
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddpm_sa.data.cache import ARRAY, INDEX, Writer, cache_folder, load_or_create
from tests.support.runs import ROOT, environment

IMAGES = np.random.default_rng(0).integers(0, 2**16, (5, 3, 4, 2), dtype=np.uint16)


def make(folder, times=None):
    if times is not None:
        times.append(1)
    with (folder / ARRAY).open("wb") as file:
        writer = Writer(file, IMAGES.shape, "uint16")
        for i in (0, 1, 3, 4):
            writer.write(i, IMAGES[i])
        return {"checksum": writer.finish(), "told": "so"}


def test_store_holds_what_was_written_and_black_where_nothing_was(tmp_path):
    index, array = load_or_create(tmp_path / "store", make)
    assert index["told"] == "so"
    assert array is not None
    assert array.dtype == np.uint16
    expected = IMAGES.copy()
    expected[2] = 0
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(np.load(tmp_path / "store" / ARRAY), expected)


def test_store_is_made_once(tmp_path):
    times = []
    for _ in range(3):
        load_or_create(tmp_path / "store", lambda folder: make(folder, times))
    assert len(times) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "store.lock"]


def flip_a_byte(store):
    data = bytearray((store / ARRAY).read_bytes())
    data[-3] ^= 1
    (store / ARRAY).write_bytes(data)


def cut_the_array(store):
    os.truncate(store / ARRAY, 200)


def empty_the_index(store):
    (store / INDEX).write_text("")


def remove_the_array(store):
    (store / ARRAY).unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut_the_array, empty_the_index, remove_the_array])
def test_damaged_store_is_made_anew(tmp_path, damage):
    load_or_create(tmp_path / "store", make)
    damage(tmp_path / "store")
    times = []
    _, array = load_or_create(tmp_path / "store", lambda folder: make(folder, times))
    assert len(times) == 1
    assert array is not None
    np.testing.assert_array_equal(array[4], IMAGES[4])


def test_a_make_that_fails_leaves_nothing_and_may_be_tried_again(tmp_path):
    def fail(folder):
        make(folder)
        raise ValueError("no such image")

    with pytest.raises(ValueError, match="no such image"):
        load_or_create(tmp_path / "store", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["store.lock"]
    assert load_or_create(tmp_path / "store", make)[0]["told"] == "so"


def test_full_disk_is_an_error_with_the_way_out(tmp_path):
    """A limit of the process's file size stands for the disk's end: both fail in write()."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(
            ValueError, match=r"cannot be kept .* data\.cache_dir .* or data\.memory"
        ):
            load_or_create(tmp_path / "store", make)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "store").exists()


def test_unwritable_place_is_an_error_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be kept in .*file.*data\.cache_dir"):
        load_or_create(tmp_path / "file" / "store", make)


WAITING = """
import sys
from pathlib import Path
from ddpm_sa.data.cache import load_or_create
index, array = load_or_create(Path(sys.argv[1]), None)
print(index["told"], array.sum())
"""


def test_other_processes_of_a_machine_wait_for_the_first(tmp_path):
    waiting = subprocess.Popen(
        [sys.executable, "-c", WAITING, tmp_path / "store"],
        cwd=ROOT,
        env=environment() | {"LOCAL_RANK": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(1)
    assert waiting.poll() is None
    _, array = load_or_create(tmp_path / "store", make)
    assert array is not None
    said, _ = waiting.communicate(timeout=60)
    assert said.split() == ["so", str(array.sum())]


def test_a_process_whose_first_is_gone_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("ddpm_sa.data.cache.PATIENCE", 0.5)
    with pytest.raises(ValueError, match=r"process 0 .* ended or was never started"):
        load_or_create(tmp_path / "store", make)
    assert not (tmp_path / "store").exists()


def test_others_wait_as_long_as_the_first_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_sa.data.cache.PATIENCE", 0.5)
    started = threading.Event()

    def make_slowly(folder):
        started.set()
        time.sleep(2)
        return make(folder)

    with ThreadPoolExecutor(1) as first:
        made = first.submit(load_or_create, tmp_path / "store", make_slowly)
        assert started.wait(60)
        monkeypatch.setenv("LOCAL_RANK", "1")
        index, _ = load_or_create(tmp_path / "store", make)
        assert index["told"] == "so"
        made.result()


def test_data_are_importable_where_there_is_no_fcntl():
    """As on Windows."""
    program = "import sys; sys.modules['fcntl'] = None; import ddpm_sa.data.load"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=True)


def test_cache_lies_where_the_system_keeps_what_can_be_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "ddpm_sa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "ddpm_sa"
    assert cache_folder(str(tmp_path / "mine")) == tmp_path / "mine"


def test_index_is_json(tmp_path):
    load_or_create(tmp_path / "store", make)
    assert json.loads((tmp_path / "store" / INDEX).read_text())["told"] == "so"
