"""Stores that fail: for a moment, half-way, for good, or without saying what they did."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from distilbeam.transforms import filesystems
from tests.faults.jobs import Corpus, Done, Runner, corpus, embed, truth_of
from tests.faults.oracle import Truth, check_moment, check_output, vectors
from tests.faults.proxy import FAULTS, FaultyProxy
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
    truth = truth_of(found, vectors(output, [name for name in output.names() if "/" not in name]))
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
        equal=True,
        seconds=time.monotonic() - start - clean,
        note="seconds beyond an undisturbed run",
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("FAULTS_RUNS", "3"))))
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
        equal=True,
        seconds=done.seconds,
        peak_mb=done.peak_mb,
        note="" if done.code == 0 else "some jobs failed, and were finished by a second",
    )
