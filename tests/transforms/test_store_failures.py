"""Stores that give less than they were asked for, keep less than they were given, or hide what failed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distilbeam.transforms.errors import InputError, OutputError
from distilbeam.transforms.storage import filesystems, retries, stores
from tests.clocks import replace_clock

DATA = bytes(range(256)) * 40
URL = "memory://failures/a.bin"


@pytest.fixture(autouse=True)
def _files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    replace_clock(monkeypatch, retries, sleep=lambda _: None)
    filesystems.write_bytes(URL, DATA)
    yield
    monkeypatch.undo()
    filesystems.delete("memory://failures")


class Short(io.BytesIO):
    """Gives half of what is asked for as often as the counter says."""

    left = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if Short.left and data:
            Short.left -= 1
            return data[: len(data) // 2]
        return data


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> type[Short]:
    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, path, *_, **__: Short(self.cat_file(path)))
    return Short


def test_a_body_that_came_short_is_read_again(short: type[Short]) -> None:
    short.left = 4
    assert filesystems.read_bytes(URL) == DATA
    assert short.left == 0
    short.left = 3
    with filesystems.open_input(URL) as stream:
        assert stream.read(100) == DATA[:100]
        stream.seek(5000)
        assert stream.read() == DATA[5000:]
        assert stream.read() == b""
        assert stream.seek(-10, os.SEEK_END) == len(DATA) - 10
        assert stream.read(100) == DATA[-10:]
    assert short.left == 0


def test_a_body_that_stays_short_is_an_error(short: type[Short], tmp_path: Path) -> None:
    short.left = 10**6
    with pytest.raises(InputError, match=r"cannot read 'memory://failures/a\.bin': .*5120 bytes came where 10240"):
        filesystems.read_bytes(URL)
    with filesystems.open_input(URL) as stream, pytest.raises(OSError, match="50 bytes came where 100"):
        stream.read(100)
    with pytest.raises(InputError, match="bytes came where the store has 10240"):
        filesystems.download(URL, tmp_path / "copy")
    short.left = 0
    filesystems.download(URL, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def test_an_upload_that_the_store_keeps_in_part_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(name: str, times: int) -> list[int]:
        whole, calls = getattr(MemoryFileSystem, name), []

        def call(self: MemoryFileSystem, first: Any, second: Any, **more: Any) -> None:
            calls.append(1)
            whole(self, first, second, **more)
            if len(calls) <= times:
                path = self._strip_protocol(second if isinstance(second, str) else first)
                self.store[path].seek(7)
                self.store[path].truncate()

        monkeypatch.setattr(MemoryFileSystem, name, call)
        return calls

    target = "memory://failures/b.bin"
    calls = losing("pipe_file", 1)
    filesystems.write_bytes(target, DATA)
    assert (filesystems.read_bytes(target), len(calls)) == (DATA, 2)
    losing("pipe_file", 9)
    with pytest.raises(OutputError, match=r"7 bytes are there where 10240 were written"):
        filesystems.write_bytes(target, DATA)
    monkeypatch.undo()

    calls = losing("cp_file", 1)
    filesystems.move(URL, target)
    assert (filesystems.read_bytes(target), len(calls)) == (DATA, 2)
    losing("cp_file", 9)
    with pytest.raises(OutputError, match="7 bytes are there"):
        filesystems.move(target, URL)
    assert filesystems.read_bytes(target) == DATA, "the original stays until its copy is whole"


def test_a_failed_look_is_not_taken_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError("403")

    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    for look in (filesystems.exists, filesystems.match_files, filesystems.file_info):
        with pytest.raises(InputError, match=r"cannot .*failures"):
            look(URL)
    with pytest.raises(OutputError, match="cannot delete"):
        filesystems.delete(URL)


def test_a_delete_that_leaves_files_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "rm", lambda *_, **__: [])
    with pytest.raises(OutputError, match="1 files are still there"):
        filesystems.delete("memory://failures")


def test_an_unreadable_folder_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.jsonl").write_text("{}")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def guarded(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for call in (filesystems.match_files, filesystems.list_files):
        with pytest.raises(InputError, match="Permission denied"):
            call(str(tmp_path))


def test_a_local_name_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle))[1])
    url = str(tmp_path / "sub" / "a")
    filesystems.write_bytes(url, b"x")
    assert synced == [path.stat().st_ino for path in (tmp_path / "sub" / "a", tmp_path / "sub")]
    filesystems.sync(str(tmp_path))
    assert synced[2:] == [tmp_path.stat().st_ino]
    filesystems.sync(str(tmp_path / "nothing"))
    filesystems.sync("memory://failures")
    assert len(synced) == 3


_UPLOAD = """
import sys, time
from distilbeam.transforms.storage import filesystems
with filesystems.create("memory://x/secret-name.parquet") as stream:
    stream.write(b"x" * 100_000)
    stream.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_upload_leaves_nothing_behind(tmp_path: Path) -> None:
    """The temporary file of an upload has no name, before the kill as well as after it."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", _UPLOAD], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"written\n"
        assert list(tmp_path.iterdir()) == []
        descriptors = [str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert any(name.startswith(str(tmp_path)) for name in descriptors), "the data lie in that folder"
        assert not any("secret" in name for name in descriptors)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert process.stdout
        process.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_all_tries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is down for good costs seconds beyond what its driver takes."""
    waited: list[float] = []
    replace_clock(monkeypatch, retries, sleep=waited.append)
    filesystem = fsspec.filesystem("memory")
    monkeypatch.setattr(type(filesystem), "info", lambda *_, **__: (_ for _ in ()).throw(ConnectionResetError()))
    with pytest.raises(InputError, match="ConnectionResetError"):
        filesystems.exists(URL)
    assert len(waited) == 4
    assert sum(waited) < 7
    monkeypatch.undo()


def test_an_upload_begins_at_the_start_where_opening_shares_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, which has no /proc, and whose /dev/fd gives the very position of the descriptor."""
    there = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith("/proc/") and there(path))
    with stores.unnamed_file() as (stream, name):
        assert not name.startswith(("/proc/", "/dev/"))
        stream.write(DATA)
        stream.flush()
        assert Path(name).read_bytes() == DATA
    assert not Path(name).exists()
