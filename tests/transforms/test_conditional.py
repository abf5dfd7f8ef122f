"""Conditional writes: of all that reach for one name, exactly one may win."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distilbeam.transforms.errors import InputError, OutputError
from distilbeam.transforms.storage import conditional, filesystems, retries
from distilbeam.transforms.storage.conditional import create, read, replace
from tests.clocks import replace_clock
from tests.outputs import forget
from tests.plans import s3_bucket

CLIENTS = 3
POOL = ThreadPoolExecutor(CLIENTS)


def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (conditional, retries):
        replace_clock(monkeypatch, module, sleep=lambda _: None)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path)
        return
    bucket = request.getfixturevalue("bucket") if request.param == "s3" else "memory:/"
    url = f"{bucket}/{uuid.uuid4().hex}"
    yield url
    forget(url)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moto compares and stores in two steps; S3 does both at once."""
    from moto.s3.responses import S3Response

    lock, put = threading.Lock(), S3Response.put_object

    def alone(self: Any) -> Any:
        with lock:
            return put(self)

    monkeypatch.setattr(S3Response, "put_object", alone)


def race(work: Callable[[int], bool]) -> list[int]:
    """Numbers of the clients that won."""
    barrier = threading.Barrier(CLIENTS)

    def client(number: int) -> bool:
        barrier.wait()
        return work(number)

    return [number for number, won in enumerate(POOL.map(client, range(CLIENTS))) if won]


def test_a_file_is_created_once(folder: str) -> None:
    url = filesystems.join(folder, "deep/er/a b.json")
    assert create(url, b"one")
    assert not create(url, b"two")
    assert filesystems.read_bytes(url) == b"one"
    assert create(url, b"one"), "the same bytes were ours"
    assert [info.url for info in filesystems.list_files(folder)] == [url]


def test_a_file_is_replaced_if_it_is_as_it_was(folder: str) -> None:
    url = filesystems.join(folder, "a.json")
    assert not replace(url, b"two", "none")
    assert create(url, b"one")
    data, version = read(url)
    assert data == b"one"
    assert replace(url, b"two", version)
    assert not replace(url, b"three", version)
    assert replace(url, b"two", version), "the same bytes were ours"
    assert read(url)[0] == b"two"
    assert read(url)[1] != version
    filesystems.delete(url)
    assert not replace(url, b"three", version)
    assert not filesystems.exists(url)
    with pytest.raises(InputError, match="no such file"):
        read(url)


def test_exactly_one_of_many_creates(folder: str, one_at_a_time: None) -> None:
    for turn in range(20):
        url = filesystems.join(folder, f"{turn}.json")
        (winner,) = race(lambda number, url=url: create(url, b"%d" % number))  # type: ignore[misc]
        assert filesystems.read_bytes(url) == b"%d" % winner
    assert len(filesystems.list_files(folder)) == 20


def test_exactly_one_of_many_replaces(folder: str, one_at_a_time: None) -> None:
    url = filesystems.join(folder, "a.json")
    create(url, b"first")
    for turn in range(20):
        version = read(url)[1]
        (winner,) = race(lambda number, turn=turn, version=version: replace(url, b"%d %d" % (turn, number), version))  # type: ignore[misc]
        assert filesystems.read_bytes(url) == b"%d %d" % (turn, winner)
    assert len(filesystems.list_files(folder)) == 1


_GROW = """
import sys
from distilbeam.transforms.storage.conditional import read, replace
path, number = sys.argv[1], sys.argv[2].encode()
for line in sys.stdin:
    if line == "read\\n":
        data, version = read(path)
        print(flush=True)
    else:
        print(int(replace(path, data + number, version)), flush=True)
"""


def test_of_two_processes_that_have_read_the_same_one_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a"
    create(str(path), b"")
    command = [sys.executable, "-c", _GROW, str(path)]
    processes = [
        subprocess.Popen([*command, number], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for number in ("1", "2")
    ]
    expected = b""
    for _ in range(50):
        for request in (b"read\n", b"write\n"):  # each is sent to both before either is waited for
            for process in processes:
                assert process.stdin
                process.stdin.write(request)
                process.stdin.flush()
            answers = [process.stdout.readline() for process in processes if process.stdout]
        assert sorted(answers) == [b"0\n", b"1\n"]
        expected += b"1" if answers[0] == b"1\n" else b"2"
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert path.read_bytes() == expected, "an update is lost, or one that was refused is there"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_a_large_file_is_one_conditional_request(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    calls: list[str] = []
    whole = S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await whole(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    url, large = f"{bucket}/large.json", b"x" * (101 << 20)
    assert create(url, large)
    assert "put_object" in calls
    version = read(url)[1]
    assert replace(url, large + b"y", version)
    assert not replace(url, b"z", version)
    assert not create(url, b"z")
    assert not [call for call in calls if "multipart" in call]
    filesystems.delete(url)


@pytest.mark.parametrize("folder", ["memory", "s3"], indirect=True)
def test_a_lost_reply_is_found_out(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has done it, and the connection broke before it could say so."""
    url = filesystems.join(folder, "a.json")
    lost = []
    whole = filesystems.resolve

    class Breaking:
        def __init__(self, filesystem: Any) -> None:
            self.filesystem = filesystem

        def __getattr__(self, name: str) -> Any:
            return getattr(self.filesystem, name)

        def pipe_file(self, *args: Any, **kwargs: Any) -> None:
            self.filesystem.pipe_file(*args, **kwargs)
            lost.append(args)
            raise ConnectionResetError("by peer")

    monkeypatch.setattr(filesystems, "resolve", lambda url: (Breaking(whole(url)[0]), whole(url)[1]))
    _without_waiting(monkeypatch)
    assert create(url, b"one")
    version = read(url)[1]
    assert replace(url, b"two", version)
    assert not replace(url, b"three", version)
    assert not create(url, b"three")
    assert read(url)[0] == b"two"
    assert len(lost) >= 2


def test_a_store_that_refuses_for_another_reason_is_named(bucket: str) -> None:
    with pytest.raises(OutputError, match=r"cannot write 's3://nowhere/a\.json'"):
        create("s3://nowhere/a.json", b"x")


def test_a_store_without_conditions_is_looked_at(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket}/plain/a.json"
    put, refused = conditional._request, []

    def plain(filesystem: Any, path: str, data: bytes, kind: str, version: str | None) -> None:
        refused.append(path)
        raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")

    monkeypatch.setattr(conditional, "_request", plain)
    assert create(url, b"one")
    assert not create(url, b"two")
    version = read(url)[1]
    assert replace(url, b"two", version)
    assert not replace(url, b"three", version)
    assert len(refused) == 4
    assert put is not plain


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.json"
    assert create(str(path), b"one")
    assert not create(str(path), b"two")
    assert path.read_bytes() == b"one"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_without_hard_links_keeps_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, refused = os.fsync, []

    def refuse(*_: object) -> None:
        refused.append(1)
        raise OSError(errno.EPERM, "Operation not permitted")

    def full(descriptor: int) -> None:
        if refused:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "a.json"
    with pytest.raises(OutputError, match="the disk is full"):
        create(str(path), b"one")
    assert refused
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", sync)
    assert create(str(path), b"two")


def test_a_store_without_conditions_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = MemoryFileSystem.pipe_file, []

    def pipe_file(self: Any, path: str, data: bytes, **more: Any) -> None:
        calls.append(path)
        if len(calls) % 3 == 1:
            raise ConnectionResetError("by peer")
        whole(self, path, data[:1] if len(calls) % 3 == 2 else data, **more)

    url = f"memory://{uuid.uuid4().hex}/a.json"
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    _without_waiting(monkeypatch)
    assert create(url, b"one")
    assert (len(calls), filesystems.read_bytes(url)) == (3, b"one")
    assert replace(url, b"two", read(url)[1])
    assert (len(calls), filesystems.read_bytes(url)) == (6, b"two")
    forget(url)


def test_writes_to_a_store_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, all_at_once = MemoryFileSystem.pipe_file, threading.Barrier(CLIENTS, timeout=60)

    def pipe_file(self: Any, path: str, data: bytes, **more: Any) -> None:
        all_at_once.wait()
        whole(self, path, data, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    monkeypatch.setattr(conditional, "_kind", lambda url: "other")
    folder = f"memory://{uuid.uuid4().hex}"
    assert len(race(lambda number: create(f"{folder}/{number}", b"x"))) == CLIENTS
    forget(folder)


def test_a_temporary_file_that_another_job_cleans_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, cleaned = os.link, []

    def late(source: Path, target: Path) -> None:
        if not cleaned:
            cleaned.append(source)
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert create(str(tmp_path / "a.json"), b"one")
    assert cleaned
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_is_no_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        create(str(tmp_path / "file" / "a.json"), b"x")


class _Objects(BaseHTTPRequestHandler):
    """Objects with generations, as Google Cloud Storage documents its JSON interface."""

    objects: dict[str, tuple[int, bytes]]
    lock: threading.Lock

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = unquote(parts.path.rpartition("/o/")[2])
        if name not in self.objects:
            return self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
        generation, data = self.objects[name]
        if parse_qs(parts.query).get("alt") == ["media"]:
            return self._answer(200, data)
        return self._answer(200, self._about(name, generation, data))

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if query["uploadType"] == "multipart":
            _, about, content, _ = data.split(b"--==0==")
            name, data = json.loads(about.partition(b"\n\n")[2])["name"], content.partition(b"\n\n")[2][:-1]
        else:
            name = query["name"]
        with self.lock:
            generation = self.objects.get(name, (0, b""))[0]
            wanted = query.get("ifGenerationMatch")
            if wanted is not None and int(wanted) != generation:
                return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            self.objects[name] = (generation + 1, data)
        return self._answer(200, self._about(name, generation + 1, data))

    def _about(self, name: str, generation: int, data: bytes) -> dict[str, Any]:
        about = {"name": name, "bucket": "b", "size": str(len(data)), "generation": str(generation)}
        return {**about, "etag": f"e{generation}", "updated": "2026-01-01T00:00:00.000Z"}

    def _answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_google_cloud_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    GCSFileSystem = pytest.importorskip("gcsfs.core").GCSFileSystem  # noqa: N806
    _Objects.objects, _Objects.lock = {}, threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Objects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    store = GCSFileSystem(endpoint_url=address, token="anon", consistency="none", skip_instance_cache=True)
    monkeypatch.setattr(filesystems, "resolve", lambda url: (store, url.removeprefix("gs://")))
    try:
        url = "gs://b/out/a b.json"
        assert create(url, b"one")
        assert not create(url, b"two")
        data, version = read(url)
        assert (data, version) == (b"one", "1")
        assert replace(url, b"two", version)
        assert not replace(url, b"three", version)
        assert read(url) == (b"two", "2")
        for turn in range(5):
            (winner,) = race(lambda number, turn=turn: create(f"gs://b/{turn}", b"%d" % number))  # type: ignore[misc]
            assert filesystems.read_bytes(f"gs://b/{turn}") == b"%d" % winner
    finally:
        server.shutdown()
        server.server_close()
