"""No text of a document comes out anywhere but in the features, whatever fails, at debug level and on any runner."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.observed import FAULTS, SITE
from tests.faults.table import FaultReport

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "distilbert-tiny-sst2"
FIELDS = ("text", "poison", "kept", "key", "header", "broken", "number", "name")
MULTI = ("--runner", "DirectRunner", "--direct_running_mode", "multi_processing", "--direct_num_workers", "2")


@dataclass
class Observed:
    """A run, and everything it let out.

    Attributes:
        code: what it ended with.
        seen: all that was written down, by what it was.
    """

    code: int
    seen: dict[str, str] = field(default_factory=dict)

    def leaks(self, words: Sequence[str]) -> list[str]:
        """Where one of the words came out, in any spelling."""
        found = []
        for kind, text in self.seen.items():
            for word in words:
                if word.startswith("zqkey") and "/_distilbeam/" in kind:
                    continue  # a key is a column of the output, which the manifest describes
                for spelled in (word, word.upper(), word.encode().hex(), json.dumps(word)[1:-1]):
                    at = text.find(spelled)
                    if at >= 0:
                        found.append(f"{word} in {kind}: ...{text[max(0, at - 200) : at + 60]!r}")
                        break
        return found


class Place:
    """A folder with canaries: a random word for each field, which nothing else in the world holds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.words = {name: f"zq{name}{secrets.token_hex(6)}" for name in FIELDS}
        for name in ("in", "out", "tmp", "seen", "site"):
            (root / name).mkdir()
        (root / "out").rmdir()
        (root / "site" / "sitecustomize.py").write_text(SITE)

    def write(self, name: str, content: bytes) -> Path:
        path = self.root / "in" / name
        path.write_bytes(content)
        return path

    def rows(self, count: int = 40) -> list[dict[str, Any]]:
        words = self.words
        return [
            {"id": f"id{n}", "text": f"the {words['text']} cat {n}", "note": words["kept"], words["key"]: words["kept"]}
            for n in range(count)
        ]

    def jsonl(self, *lines: str | bytes, count: int = 40) -> Path:
        rows = [json.dumps(row).encode() for row in self.rows(count)]
        rows += [line.encode() if isinstance(line, str) else line for line in lines]
        return self.write("data.jsonl", b"".join(row + b"\n" for row in rows))

    def command(self, path: Path, *flags: str, output: str = "out") -> list[str]:
        return [
            *("classify", "--model", str(MODEL), "--input", str(path), "--output", str(self.root / output)),
            *("--dtype", "float32", "--log-level", "debug", "--id", "id", *flags),
        ]

    def start(self, words: Sequence[str], fault: str = "", limit: int | None = None) -> subprocess.Popen[bytes]:
        environment = dict(
            os.environ,
            OBSERVE=str(self.root / "seen"),
            OBSERVE_FAULT=fault,
            OBSERVE_SITE="1",
            PYTHONPATH=f"{self.root / 'site'}:{ROOT}",
            TMPDIR=str(self.root / "tmp"),
            OMP_NUM_THREADS="1",
            HF_HUB_OFFLINE="1",
            RUST_BACKTRACE="1",
            PYTHONWARNINGS="always",
        )
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.observed", *words],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL) if limit is None else _limited(limit),
        )

    def run(self, path: Path, *flags: str, fault: str = "", limit: int | None = None) -> Observed:
        return self.observe(self.start(self.command(path, *flags), fault, limit))

    def run_all(self, commands: Sequence[Sequence[str]]) -> tuple[Observed, list[int]]:
        """Several commands in one process, and what each ended with."""
        words = [word for command in commands for word in ("AND", *command)]
        found = self.observe(self.start(words[1:]))
        (codes,) = (text for name, text in found.seen.items() if name.startswith("codes."))
        return found, [int(code) for code in codes.split()]

    def observe(self, process: subprocess.Popen[bytes]) -> Observed:
        out, err = process.communicate(timeout=200)
        found = Observed(process.returncode)
        found.seen = {"stdout": out.decode(errors="replace"), "stderr": err.decode(errors="replace")}
        for path in (self.root / "seen").iterdir():
            found.seen[path.name] = path.read_text(errors="replace")
        for path in [*self.root.glob("out*/**/*"), *self.root.glob("tmp/**/*")]:
            found.seen.setdefault("tree", "")
            found.seen["tree"] += f"{path}\n"
            features = path.suffix == ".parquet" and "_rejects" not in path.parts
            if path.is_file() and not features:
                table = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else None
                found.seen[str(path)] = path.read_bytes().decode("latin-1") if table is None else repr(table)
        return found

    def kinds(self, found: Observed) -> set[str]:
        return {name.partition(".")[0] for name in found.seen}


def _limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def poison_lines(words: dict[str, str]) -> list[str | bytes]:
    """Lines of every kind that cannot be rows, each with canaries."""
    word, broken = words["poison"], words["broken"]
    return [
        f'{{"id": "a", "text": "{word}"',
        f"{broken} is no JSON",
        f'{{"id": "b", "text": null, "note": "{word}"}}',
        f'{{"id": "c", "text": {{"{broken}": "{word}"}}}}',
        f'{{"id": "d", "text": ["{word}"]}}',
        f'{{"id": "e", "text": "{word} \\ud800"}}',
        f'{{"id": "f", "text": "{word}'.encode() + b' \xff\xfe"}',
        f'{{"id": "g", "text": "{word}", "text": "{broken}"}}',
        f'{{"id": "h", "text": "{word}", "note": NaN}}',
        f'{{"id": "i", "text": "{word}", "note": {{"{broken}": 1}}}}',
        f'{{"id": "j", "text": "{word}", "note": {"9" * 5000}}}',
        f'["{word}"]',
        f'"{broken}"',
        '{"a":' * 2_000 + f'"{word}"',
        f'{{"id": "k", "text": "{word}"}} {broken}',
        f'{{"id": "l", "note": "{word}"}}',
    ]


def test_bad_rows_of_every_kind(place: Place, fault_report: FaultReport) -> None:
    lines = poison_lines(place.words)
    found = place.run(place.jsonl(*lines), "--max-rejects", "none")
    assert found.code == 0, found.seen["stderr"]
    rejects = pq.read_table(place.root / "out" / "_rejects")
    assert rejects.num_rows >= len(lines) - 3  # some may be read after all
    assert found.leaks(list(place.words.values())) == []
    assert place.kinds(found) >= {"stdout", "stderr", "names", "pickles", "graph", "metrics", "logs", "tree"}
    fault_report.add("privacy: bad rows of every kind", injected=rejects.num_rows)


@pytest.mark.slow
def test_the_canaries_would_be_seen(place: Place) -> None:
    """The harness finds a word in each of its places, so that the other tests can fail."""
    path = place.jsonl(*poison_lines(place.words))
    named = path.rename(path.with_name(f"{place.words['name']}.jsonl"))
    found = place.run(named, "--max-rejects", "none", "--rejects-include-text")
    assert found.code == 0
    leaked = {re.sub(r"\.\d+$", "", leak.partition(": ")[0]) for leak in found.leaks([place.words["name"]])}
    assert {leak.partition(" in ")[2] for leak in leaked} >= {"pickles"}
    texts = found.leaks([place.words["poison"]])
    assert texts
    assert all("_rejects" in leak.partition(": ")[0] for leak in texts)  # the one way in


@pytest.mark.slow
def test_too_many_bad_rows(place: Place) -> None:
    found = place.run(place.jsonl(*poison_lines(place.words)), "--max-rejects", "2")
    assert found.code == 1
    assert "max-rejects" in found.seen["stderr"]
    assert found.leaks(list(place.words.values())) == []


def _parquet(place: Place, *, cut: int = 0, noise: bool = False, kind: Any = None) -> Path:
    rows = [{**row, "number": place.words["number"]} for row in place.rows(400)]
    table = pa.Table.from_pylist(rows)
    if kind is not None:
        table = table.set_column(1, "text", pa.array([7] * len(rows), kind))
    path = place.root / "in" / "data.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    if cut:
        content = content[:-cut]
    if noise:
        for at in range(200, 4000, 7):
            content[at] ^= 0x55
    path.write_bytes(content)
    return path


def _gzip(place: Place, *, cut: int) -> Path:
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in place.rows(3000))
    return place.write("data.jsonl.gz", gzip.compress(lines)[:-cut])


BROKEN: dict[str, tuple[Callable[[Place], Path], tuple[str, ...]]] = {
    "cut parquet": (lambda place: _parquet(place, cut=100), ()),
    "noisy parquet": (lambda place: _parquet(place, noise=True), ()),
    "parquet of numbers": (lambda place: _parquet(place, kind=pa.int64()), ()),
    "cut gzip": (lambda place: _gzip(place, cut=100), ()),
    "no gzip at all": (lambda place: place.write("data.jsonl.gz", place.words["broken"].encode() * 99), ()),
    "no zstd at all": (lambda place: place.write("data.jsonl.zst", place.words["broken"].encode() * 99), ()),
    "csv without a header": (
        lambda place: place.write(
            "data.csv", f"{place.words['header']},{place.words['text']} and more\n1,2\n".encode()
        ),
        (),
    ),
    "csv without a header, names twice": (
        lambda place: place.write("data.csv", f"{place.words['header']},{place.words['header']}\n1,2\n".encode()),
        (),
    ),
    "csv with an open quote": (
        lambda place: place.write("data.csv", f'id,text\n1,a\n2,"{place.words["broken"]}\n3,c\n4,d\n'.encode()),
        (),
    ),
    "csv of other types": (
        lambda place: place.write(
            "data.csv", b"id,text,n\n1,a,2\n" + f"3,{place.words['text']},{place.words['number']}\n".encode() * 9
        ),
        ("--types", "n=int64"),
    ),
    "tsv with a ragged row": (
        lambda place: place.write(
            "data.tsv", f"id\ttext\n1\t{place.words['text']}\t{place.words['broken']}\n".encode()
        ),
        (),
    ),
    "jsonl in which nothing is a row": (
        lambda place: place.write("data.jsonl", f"{place.words['broken']}\n".encode() * 2_000),
        (),
    ),
    "jsonl without the column": (lambda place: place.jsonl(), ("--text", "texts")),
}


@pytest.mark.slow
def test_broken_files(place: Place, fault_report: FaultReport) -> None:
    commands = []
    for number, (make, flags) in enumerate(BROKEN.values()):
        path = make(place)
        path = path.rename(place.root / "in" / f"{number}-{path.name}")
        commands.append(place.command(path, *flags, output=f"out-{number}"))
    found, codes = place.run_all(commands)
    assert len(codes) == len(BROKEN)
    assert set(codes) <= {1, 2}, dict(zip(BROKEN, codes, strict=True))
    assert found.seen["stderr"].count("distilbeam: error: ") == len(BROKEN)
    assert found.leaks(list(place.words.values())) == []
    fault_report.add("privacy: broken files", injected=len(BROKEN))


@pytest.mark.slow
def test_errors_that_quote_documents(place: Place, fault_report: FaultReport) -> None:
    poison = json.dumps({"id": "p", "text": f"a poison of {place.words['poison']}", "note": "n"})
    path = place.jsonl(poison)
    commands = [
        [f"fault={fault}", *place.command(path, "--max-rejects", "5", output=f"out-{number}")]
        for number, fault in enumerate(FAULTS)
    ]
    found, codes = place.run_all(commands)
    injected = "".join(found.seen.pop(name) for name in [*found.seen] if name.startswith("injected"))
    assert set(injected.split("\n")) >= {f"{fault} was raised" for fault in FAULTS}
    for fault, code in zip(FAULTS, codes, strict=True):
        assert code == (0 if fault.startswith("tokenizer") else 1), fault
    assert found.leaks(list(place.words.values())) == []
    fault_report.add("privacy: errors that quote a text", injected=len(FAULTS))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "step", "commit"])
def test_worker_processes(place: Place, fault: str, fault_report: FaultReport) -> None:
    path = place.jsonl(*poison_lines(place.words))
    found = place.run(path, "--max-rejects", "none", *MULTI, "--default_sdk_harness_log_level", "DEBUG", fault=fault)
    pids = {name.rpartition(".")[2] for name in found.seen if name.startswith("names.")}
    assert len(pids) > 1, "there were no worker processes"
    if fault:
        injected = [found.seen.pop(name) for name in [*found.seen] if name.startswith("injected")]
        assert injected
    assert (found.code == 0) == (not fault), found.seen["stderr"]
    assert found.leaks(list(place.words.values())) == []
    fault_report.add(f"privacy: worker processes, {fault or 'bad rows'}", injected=1)


@pytest.mark.slow
def test_a_write_that_fails(place: Place) -> None:
    rows = json.dumps({"id": "x", "text": "a", "note": place.words["kept"] + secrets.token_hex(3_000_000)})
    found = place.run(place.jsonl(rows), limit=1_000_000)
    assert found.code == 1, found.seen["stderr"]
    assert "File too large" in found.seen["stderr"]
    assert found.leaks(list(place.words.values())) == []


@pytest.mark.slow
def test_an_output_that_cannot_be_made(place: Place) -> None:
    (place.root / "out").write_text("a file")
    found = place.run(place.jsonl())
    assert found.code in (1, 2)
    assert found.leaks(list(place.words.values())) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGABRT])
def test_being_stopped(place: Place, number: signal.Signals) -> None:
    process = place.start(place.command(place.jsonl(count=200_000), "--split-bytes", "1000000"))
    deadline = time.monotonic() + 100
    staging = place.root / "out" / "_distilbeam" / "staging"
    while process.poll() is None and not any(staging.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "it was done before it could be stopped"
    process.send_signal(number)
    found = place.observe(process)
    assert found.code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGABRT: -signal.SIGABRT}[number]
    if number == signal.SIGABRT:
        assert "Current thread" in found.seen["stderr"]  # faulthandler's
    assert found.leaks(list(place.words.values())) == []
