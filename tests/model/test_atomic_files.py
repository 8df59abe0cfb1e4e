"""Atomic writes and the lock of a folder, between threads and between processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.atomic_files import atomic_write, folder_lock
from model.errors import StorageError
from tests.servers import ROOT


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    """Until the block ends the old file is read; an error leaves it, and no temporary file."""
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"first")
        file.flush()
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["file"]


def test_writers_with_equal_process_ids_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two containers both may be process 1: each writes a temporary file of its own, and the later one stays."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    path = tmp_path / "file"
    with atomic_write(path) as early:
        early.write(b"early")
        with atomic_write(path) as late:
            late.write(b"late")
        assert path.read_bytes() == b"late"
    assert path.read_bytes() == b"early"
    assert os.listdir(tmp_path) == ["file"]


def test_many_writers_leave_one_complete_file(tmp_path: Path) -> None:
    """Whoever is last, its bytes are not mixed with another's."""
    path = tmp_path / "file"

    def write(n: int) -> None:
        with atomic_write(path) as file:
            for _ in range(50):
                file.write(bytes([n]) * 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(32)))
    data = path.read_bytes()
    assert len(data) == 5000
    assert len(set(data)) == 1
    assert os.listdir(tmp_path) == ["file"]


def test_a_refused_write_names_the_path(tmp_path: Path) -> None:
    """A folder where the file should be, or a file where the folder should be."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "folder", tmp_path / "file" / "file"):
        with pytest.raises(StorageError, match="cannot be written") as e, atomic_write(path) as file:
            file.write(b"x")
        assert e.value.field == str(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_lock_excludes_other_processes_until_its_holder_is_killed(tmp_path: Path) -> None:
    """While another process holds it, nobody else gets it; a kill -9 releases it."""
    program = f"""
import pathlib, time
from model.atomic_files import folder_lock
with folder_lock(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.send_signal(signal.SIGKILL)
        with folder_lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
        os.close(descriptor)


def test_a_folder_that_does_not_exist_cannot_be_locked(tmp_path: Path) -> None:
    """The error names it."""
    with (
        pytest.raises(StorageError, match=r"none: cannot be opened .*, expected a folder"),
        folder_lock(tmp_path / "none"),
    ):
        pass
