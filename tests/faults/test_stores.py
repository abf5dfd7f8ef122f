"""Stores that fail: for a moment, half-way, for good, or without saying what they did."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from distilbeam.transforms.storage import filesystems
from tests.faults.jobs import Corpus, Done, Runner, corpus, embed, truth_of
from tests.faults.oracle import Truth, check_moment, check_output, vectors
from tests.faults.proxy import FAULTS, FaultyProxy, Request
from tests.faults.stores import BUCKET, Disk, Server, Store
from tests.faults.table import FaultReport

DATA = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that does no harm yet; inside the test s3:// goes through it."""
    with FaultyProxy(server.host, server.port) as found:
        for name, value in server.environment(found.url).items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield found
        fsspec.filesystem("s3").clear_instance_cache()


@dataclass(frozen=True)
class Case:
    """An input on S3 and on disk, what must come out of it, and an undisturbed job's seconds."""

    corpus: Corpus
    local: Path
    truth: Truth
    seconds: float


@pytest.fixture(scope="module")
def case(server: Server, runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Case:
    found = corpus(jsonl=2, parquet=1, rows=100)
    folder = tmp_path_factory.mktemp("stores")
    local = found.write(folder / "in")
    for name, data in found.files.items():
        server.store("in").write(name, data)
    done = runner(embed(local, folder / "out"))
    assert done.code == 0, done.said
    output = Disk(folder / "out")
    truth = truth_of(found, vectors(output, [name for name in output.names() if name.startswith("features/")]))
    check_output(output, truth)
    return Case(found, local, truth, done.seconds)


def check_end(done: Done, store: Store, truth: Truth) -> None:
    """A job that ended well has written all; one that failed says why in one sentence and shows nothing half."""
    if done.code == 0:
        check_output(store, truth)
        return
    check_failure(done)
    check_moment(store)


def check_failure(done: Done) -> None:
    assert done.code in (1, 2)
    (line,) = done.said.splitlines()
    assert line.startswith("distilbeam: error: ")
    assert "Traceback" not in line


def round_trip(folder: str) -> None:
    """Every call of ``filesystems``, each held against what must be there."""
    a, b, c = (filesystems.join(folder, name) for name in ("a", "sub/b", "sub/c"))
    filesystems.write_bytes(a, DATA[:1000])
    with filesystems.create(b) as stream:
        stream.write(DATA)
    assert filesystems.read_bytes(a) == DATA[:1000]
    assert filesystems.read_bytes(b) == DATA
    assert filesystems.file_info(b).size == len(DATA)
    assert [info.url for info in filesystems.list_files(folder)] == [a, b]
    assert [info.url for info in filesystems.match_files(folder + "/s*/*")] == [b]
    for cache in ("readahead", "none"):
        with filesystems.open_input(b, cache=cache) as file:
            chance, got = random.Random(1), b""
            while block := file.read(chance.randint(1, 700_000)):
                got += block
            assert got == DATA
            for _ in range(5):
                start = file.seek(chance.randrange(len(DATA)))
                assert file.read(5000) == DATA[start : start + 5000]
    filesystems.move(b, c)
    assert not filesystems.exists(b)
    assert filesystems.read_bytes(c) == DATA
    filesystems.delete(a)
    assert [info.url for info in filesystems.list_files(folder)] == [c]
    filesystems.delete(folder)
    assert filesystems.list_files(folder) == []
    assert not filesystems.exists(c)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=() if fault in ("lost reply", "cut body") else pytest.mark.slow) for fault in FAULTS],
)
def test_every_call_survives(fault: str, proxy: FaultyProxy, fault_report: FaultReport) -> None:
    """One request in five meets the fault: many more than the 5% that is promised."""
    folder = f"s3://{BUCKET}/calls-{fault.replace(' ', '-')}"
    start = time.monotonic()
    round_trip(folder)
    clean = time.monotonic() - start
    assert not proxy.injected
    proxy.reset(seed=3, rates={fault: 0.2})
    start = time.monotonic()
    round_trip(folder)
    assert set(proxy.injected) <= {fault, "lost reply"}
    fault_report.add(
        f"{fault}, 20% of requests, each call of filesystems",
        injected=proxy.injected[fault],
        seconds=time.monotonic() - start - clean,
        note="seconds beyond an undisturbed run",
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(max(3, int(os.environ.get("FAULTS_RUNS", "0")) // 10)))
def test_a_job_through_a_failing_store(
    seed: int, proxy: FaultyProxy, server: Server, runner: Runner, case: Case, fault_report: FaultReport
) -> None:
    """5% of all requests fail, in all ways; what was not finished is once the store works again."""
    store = server.store(f"job-{seed}")
    proxy.reset(seed, dict.fromkeys(FAULTS, 0.05 / len(FAULTS)))
    argv = embed(server.store("in").url, store.url, "--if-exists", "resume")
    done = runner(argv, environment=server.environment(proxy.url))
    injected = proxy.injected.total()
    check_end(done, store, case.truth)
    if done.code:
        proxy.reset(rates={})
        again = runner(argv, environment=server.environment(proxy.url))
        assert again.code == 0, again.said
        check_output(store, case.truth)
    fault_report.add(
        "5% of a job's requests fail in all ways",
        injected=injected,
        seconds=done.seconds,
        peak_mb=done.peak_mb,
        note="" if done.code == 0 else "some jobs failed, and were finished by a second",
    )


def once(fault: str, wanted: Callable[[Request], bool]) -> Callable[[Request], str | None]:
    """Harms the first request that is wanted, and no other."""
    done: list[Request] = []

    def harms(request: Request) -> str | None:
        if done or not wanted(request):
            return None
        done.append(request)
        return fault

    return harms


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "history/", "part-"])
def test_a_commit_whose_reply_is_lost(
    name: str, proxy: FaultyProxy, server: Server, runner: Runner, case: Case, fault_report: FaultReport
) -> None:
    """The store has done what it was asked, and nobody is told: of the manifest, the history entry, a file's move."""
    store = server.store(f"lost-{name.strip('/-')}")
    proxy.harms = once("lost reply", lambda request: request.method == "PUT" and f"/{name}" in request.path)
    done = runner(embed(case.local, store.url), environment=server.environment(proxy.url))
    assert done.code == 0, done.said
    check_output(store, case.truth)
    assert proxy.injected["lost reply"] == 1
    fault_report.add("commit: a reply is lost", injected=1, seconds=done.seconds)


@pytest.mark.slow
def test_expired_credentials_fail_at_once(
    proxy: FaultyProxy, server: Server, runner: Runner, case: Case, fault_report: FaultReport
) -> None:
    store = server.store("expired")
    proxy.rates = {"expired": 1.0}
    done = runner(embed(case.local, store.url), environment=server.environment(proxy.url))
    check_failure(done)
    assert "xpiredToken" in done.said or "expired" in done.said or "injected by a test" in done.said
    assert done.seconds < 60
    assert store.names() == []
    fault_report.add("expired credentials", injected=proxy.injected["expired"], seconds=done.seconds)


@pytest.mark.slow
def test_credentials_that_expire_amid_the_job(
    proxy: FaultyProxy, server: Server, runner: Runner, case: Case, fault_report: FaultReport
) -> None:
    store = server.store("expiring")
    proxy.harms = lambda request: "expired" if len(proxy.seen) > 60 else None
    command = embed(case.local, store.url, "--if-exists", "resume")
    done = runner(command, environment=server.environment(proxy.url))
    check_failure(done)
    check_moment(store)
    injected = proxy.injected["expired"]
    proxy.reset(rates={})
    again = runner(command, environment=server.environment(proxy.url))
    assert again.code == 0, again.said
    check_output(store, case.truth)
    fault_report.add("credentials expire amid the job", injected=injected, seconds=again.seconds)


@pytest.mark.slow
def test_a_wrong_bucket_fails_at_once(server: Server, runner: Runner, case: Case, fault_report: FaultReport) -> None:
    done = runner(embed(case.local, "s3://no-such-bucket/out"), environment=server.environment())
    check_failure(done)
    assert "no-such-bucket" in done.said
    assert done.seconds < 60
    fault_report.add("no such bucket", injected=1, seconds=done.seconds)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["output", "input"])
def test_a_wrong_endpoint_fails_within_a_minute(
    place: str, server: Server, runner: Runner, case: Case, tmp_path: Path, fault_report: FaultReport
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"  # where nobody listens
        source, output = (case.local, "s3://b/out") if place == "output" else ("s3://b/in", tmp_path / "out")
        done = runner(embed(source, output), environment=server.environment(endpoint))
    check_failure(done)
    assert "s3://b/" in done.said
    assert done.seconds < 60
    fault_report.add(f"wrong endpoint of the {place}", injected=1, seconds=done.seconds)


@pytest.mark.slow
def test_a_bucket_that_vanishes(
    proxy: FaultyProxy, server: Server, runner: Runner, case: Case, fault_report: FaultReport
) -> None:
    """Half-way through the job the bucket of the output is deleted."""
    server.client.create_bucket(Bucket="vanishing")
    gone: list[bool] = []

    def harms(request: Request) -> None:
        writes = sum(seen.method == "PUT" for seen, _ in proxy.seen)
        if writes >= 15 and not gone:
            gone.append(True)
            keys = server.client.list_objects_v2(Bucket="vanishing").get("Contents", [])
            for key in keys:
                server.client.delete_object(Bucket="vanishing", Key=key["Key"])
            server.client.delete_bucket(Bucket="vanishing")

    proxy.harms = harms
    done = runner(embed(case.local, "s3://vanishing/out"), environment=server.environment(proxy.url))
    assert gone
    check_failure(done)
    assert "s3://vanishing/out" in done.said
    fault_report.add("the bucket vanishes amid the job", injected=1, seconds=done.seconds)


@pytest.mark.slow
def test_a_model_that_cannot_be_found_fails_within_a_minute(
    server: Server, runner: Runner, case: Case, tmp_path: Path, fault_report: FaultReport
) -> None:
    for model in (str(tmp_path / "nothing"), f"s3://{BUCKET}/no-model"):
        done = runner(embed(case.local, tmp_path / "out", model=model), environment=server.environment())
        check_failure(done)
        assert model in done.said
        assert done.seconds < 60
        fault_report.add("wrong model path", injected=1, seconds=done.seconds)


@pytest.mark.slow
def test_a_job_of_nothing_but_errors_fails_within_a_minute(
    runner: Runner, tmp_path: Path, fault_report: FaultReport
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"id": "x", "text": "good"}\n' + b'{"id": "x", "text": 5}\n' * 300_000)
    done = runner(embed(source, tmp_path / "out", "--split-bytes", "200000", "--max-rejects", "1%"))
    check_failure(done)
    assert "were set aside" in done.said
    assert done.seconds < 60
    assert not list((tmp_path / "out").glob("features/*.parquet"))
    fault_report.add("every row fails", injected=300_000, seconds=done.seconds)
