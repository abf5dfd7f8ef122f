"""Whose failure it is: of the decoder, of the store that the bytes come from, or of the disk."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input import sandbox
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.storage import filesystems, retries, stores

FOLDER = "memory://sandboxed"
ROWS = {
    "what": "rows",
    "format": "parquet",
    "columns": ["text"],
    "start": 0,
    "stop": None,
    "batch_rows": 100,
    "batch_bytes": 1 << 20,
}


@pytest.fixture
def box() -> Iterator[sandbox.Sandbox]:
    box = sandbox.Sandbox()
    yield box
    box.close()


def written(path: Path, rows: int) -> bytes:
    pq.write_table(pa.table({"text": [f"good film {number} {number * 7919}" for number in range(rows)]}), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("by peer"),
        BrokenPipeError("by peer"),
        TimeoutError("no answer"),
        OSError("Forbidden: b/k"),  # as gcsfs does
        EOFError("no more"),
        RuntimeError("of a driver"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("format", ["parquet", "jsonl.gz"])
def test_what_a_store_does_not_give_is_no_bad_file(
    format: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    lines = "".join(f'{{"text": "{number} {number * 7919}"}}\n' for number in range(20_000))
    data = written(tmp_path / "a", 20_000) if format == "parquet" else gzip.compress(lines.encode())
    filesystems.write_bytes(f"{FOLDER}/a.{format}", data)
    settings = ReadSettings(FOLDER, bad_files="reject")
    splits = plan_splits(settings)
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0)
    failed = []

    def fail(self: stores.RemoteFile, wanted: int) -> bytes:
        failed.append(wanted)
        raise error

    monkeypatch.setattr(stores.RemoteFile, "_fetch", fail)
    blamed: list[object] = []
    monkeypatch.setattr(sandbox._Process, "_cause_of_death", lambda process: blamed.append(process) or "")
    with pytest.raises((InputError, type(error))) as caught:
        list(read_split(splits[0], settings))
    assert failed
    assert not blamed, "it waited for the end of a decoder that lives"
    assert getattr(caught.value, "reason", None) is None
    assert isinstance(caught.value, InputError) or not isinstance(error, OSError)
    monkeypatch.undo()
    assert sum(batch.num_rows for split in splits for batch in read_split(split, settings)) == 20_000
    filesystems.delete(FOLDER)


def test_what_a_disk_does_not_give_is_no_bad_file(box: sandbox.Sandbox, tmp_path: Path) -> None:
    class Folder:
        def fileno(self) -> int:
            return descriptor

    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="directory") as caught:
            list(box.decode({**ROWS, "size": 1000, "buffer": 1 << 16, "memory": 1 << 29}, Folder()))  # type: ignore[arg-type]
        assert caught.value.errno == errno.EISDIR
    finally:
        os.close(descriptor)
    data = written(tmp_path / "a.parquet", 10)
    with open(tmp_path / "a.parquet", "rb") as stream:
        request = {**ROWS, "size": len(data), "buffer": 1 << 16, "memory": 1 << 29}
        assert [kind for kind, _ in box.decode(request, stream)].count(b"B") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGRTMIN + 3])
def test_a_decoder_that_is_killed_is_told_by_its_signal(box: sandbox.Sandbox, number: int, tmp_path: Path) -> None:
    data = written(tmp_path / "a.parquet", 10)

    def fetch(offset: int, length: int) -> bytes:
        (process,) = box._busy
        os.kill(process.pid, number)
        return data[offset : offset + length]

    name = "SIGKILL" if number == signal.SIGKILL else f"signal {int(number)}"
    with pytest.raises(sandbox.DecoderError, match=f"ended by {name},"):
        list(box.decode({**ROWS, "size": len(data), "buffer": 1 << 16, "memory": 1 << 29}, fetch=fetch))


def test_a_process_that_cannot_start_leaves_no_socket(box: sandbox.Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []
    make = socket.socketpair

    def noted() -> Any:
        pairs.append(make())
        return pairs[-1]

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(socket, "socketpair", noted)
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(OSError, match="no more processes"):
        box.warm()
    assert [end.fileno() for pair in pairs for end in pair] == [-1, -1]


def test_processes_of_two_threads_start_at_once(box: sandbox.Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=60)

    class Slow:
        def __init__(self) -> None:
            both.wait()

        def close(self) -> None:
            pass

    monkeypatch.setattr(sandbox, "_Process", Slow)
    with ThreadPoolExecutor(2) as pool:
        assert len({id(taken) for taken in pool.map(lambda _: box._taken(), range(2))}) == 2
    assert len(box._busy) == 2
