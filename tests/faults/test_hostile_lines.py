"""Bombs and traps in line formats: bounded time and memory, then rejects or an error that names the file."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.hostile import Outcome, read_all, read_one
from tests.faults.table import FaultReport

_MB = 1 << 20


def _packed(kind: str, unit: bytes, count: int) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, kind) as stream:
        for _ in range(count):
            stream.write(unit)
    return out.getvalue().to_pybytes()


def _gzip(unit: bytes) -> bytes:
    return _packed("gzip", unit * _MB, 300)


def _zstd(unit: bytes) -> bytes:
    return _packed("zstd", unit * _MB, 10_240)


def _keys(count: int) -> bytes:
    return b'{"text": "a", ' + b", ".join(b'"k%d": 1' % number for number in range(count)) + b"}\n"


BOMB = r"unpacks to more than 250 times its size"
CASES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "gzip: 300 MB of zeros": ("d.jsonl.gz", lambda: _gzip(b"\0"), BOMB),
    "gzip: 300 MB of newlines": ("d.jsonl.gz", lambda: _gzip(b"\n"), BOMB),
    "gzip: 300 MB of newlines as CSV": ("d.csv.gz", lambda: _gzip(b"\n"), BOMB),
    "gzip: 300 MB of quotes as CSV": ("d.csv.gz", lambda: _gzip(b'"'), BOMB),
    "zstd: 10 GB of zeros": ("d.jsonl.zst", lambda: _zstd(b"\0"), BOMB),
    "zstd: 10 GB of zeros as text": ("d.txt.zst", lambda: _zstd(b"\0"), BOMB),
    "gzip: not gzip": ("d.jsonl.gz", lambda: b'{"text": "a"}\n' * 100, "it is no gzip file"),
    "gzip: cut off": ("d.jsonl.gz", lambda: gzip.compress(bytes(range(256)) * 100)[:-20], "cut off"),
    "gzip: packed twice": (
        "d.jsonl.gz",
        lambda: gzip.compress(gzip.compress(b'{"text": "a"}\n' * 9)),
        "0 rows, rejects",
    ),
    "gzip: 50,000 empty members": (
        "d.jsonl.gz",
        lambda: gzip.compress(b"") * 50_000 + gzip.compress(b'{"text": "a"}\n'),
        "^1 rows$",
    ),
    "gzip: 20,000 members of a line": (
        "d.jsonl.gz",
        lambda: gzip.compress(b'{"text": "a"}\n') * 20_000,
        "^20000 rows$",
    ),
    "zstd: a window of 2 GB": (
        "d.jsonl.zst",
        lambda: b"\x28\xb5\x2f\xfd\x00\xa8\x03\x00\x10A",
        "more than `decode_bytes=.*--long=31",
    ),
    "a line of 200 MB": ("d.jsonl", lambda: b"x" * (200 * _MB), "rejects: 1 LineTooLong$"),
    "a line of 200 MB as text": ("d.txt", lambda: b"x" * (200 * _MB), "rejects: 1 LineTooLong$"),
    "CSV: 80 MB of quotes": ("d.csv", lambda: b"text,b\n" + b'"' * (80 * _MB), "rejects: 1 LineTooLong$"),
    "CSV: quotes inside of fields": ("d.csv", lambda: b"text,b\n" + b'a"b,"' * _MB, "rejects: 1"),
    "CSV: a quote that stays open": ("d.csv", lambda: b'text,b\na,"' + b"xxxxxxx\n" * (8 * _MB), "is never closed"),
    "CSV: a million columns": ("d.csv", lambda: b",".join(b"c%d" % n for n in range(10**6)), "names 1000000 columns"),
    "TSV: a million columns": ("d.tsv", lambda: b"\t".join(b"c%d" % n for n in range(10**6)), "names 1000000 columns"),
    "CSV: a header of 100 MB": ("d.csv", lambda: b"h" * (100 * _MB), "header cannot be read"),
    "text: 5 million empty lines": ("d.txt", lambda: b"\n" * (5 * _MB), f"^{5 * _MB} rows$"),
    "JSON: 10 million empty lines": ("d.jsonl", lambda: b"\n" * (10 * _MB), "^0 rows$"),
    "JSON: 100,000 bad lines": ("d.jsonl", lambda: b"x\n" * 100_000, "^0 rows, rejects: 100000 JSONDecodeError$"),
    "JSON: 20,000 values of a wrong type": (
        "d.jsonl",
        lambda: b'{"text": "a"}\n' + b'{"text": 5}\n' * 20_000,
        "^1 rows, rejects: 20000 TypeError$",
    ),
    "JSON: no text at all": ("d.jsonl", lambda: b'{"text": 5}\n' * 20_000, "is int64, not a string"),
    "text: 20,000 lines that are not UTF-8": (
        "d.txt",
        lambda: b"\xff\n" * 20_000,
        "^0 rows, rejects: 20000 UnicodeDecodeError$",
    ),
    "JSON: a new key on each of 200,000 lines": (
        "d.jsonl",
        lambda: b"".join(b'{"text":"a","k%d":1}\n' % number for number in range(200_000)),
        "more than 10000; list the columns",
    ),
    "JSON: a million keys on a line": ("d.jsonl", lambda: _keys(10**6), "^1 rows$"),
    "JSON: 1000 keys, then 50,000 lines without them": (
        "d.jsonl",
        lambda: _keys(1000) + b'{"text":"b"}\n' * 50_000,
        "^50001 rows$",
    ),
    "JSON: arrays nested 1,000,000 deep": (
        "d.jsonl",
        lambda: b'{"text":"a","v":' + b"[" * 10**6 + b"]" * 10**6 + b"}\n",
        "^1 rows$",
    ),
    "JSON: objects nested 100,000 deep where a type is known": (
        "d.jsonl",
        lambda: b'{"text":"a","v":{"a":1}}\n{"text":"a","v":' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}\n",
        "^1 rows, rejects: 1 RecursionError$",
    ),
    "JSON: an integer of 10 MB": (
        "d.jsonl",
        lambda: b'{"text":"a","v":1.5}\n{"text":"a","v":' + b"1" * 10**7 + b"}\n",
        "^1 rows, rejects: 1 LostDigits$",
    ),
    "JSON: 5 million escaped quotes, never closed": (
        "d.jsonl",
        lambda: b'{"text":"a"}\n{"text":"' + b'\\"' * (5 * 10**6) + b"}\n",
        "^1 rows, rejects: 1 JSONDecodeError$",
    ),
    "JSON: a million times what looks like NaN": (
        "d.jsonl",
        lambda: b'{"text":"' + b'\\"NaN,' * 10**6 + b'"}\n',
        "^1 rows$",
    ),
}
SLOW = (
    "10 GB",
    "300 MB",
    "million empty",
    "5 million",
    "1000 keys",
    "80 MB",
    "200 MB",
    "100,000 bad",
    "keys on a line",
)


QUICK = [name for name in CASES if not any(word in name for word in SLOW)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Outcome]]:
    """What became of each quick case; they are read by one process, one after the other."""
    paths = []
    for name in QUICK:
        file, make, _ = CASES[name]
        paths.append(tmp_path_factory.mktemp("quick") / file)
        paths[-1].write_bytes(make())
    found = read_all(paths)
    for path in paths:
        path.unlink()
    return dict(zip(QUICK, zip(paths, found, strict=True), strict=True))


@pytest.mark.parametrize("name", QUICK)
def test_traps_cost_little(quick: dict[str, tuple[Path, Outcome]], name: str, fault_report: FaultReport) -> None:
    _check(name, *quick[name], fault_report)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_large_traps_cost_little(tmp_path: Path, name: str, fault_report: FaultReport) -> None:
    file, make, _ = CASES[name]
    path = tmp_path / file
    path.write_bytes(make())
    _check(name, path, read_one(path), fault_report)


def _check(name: str, path: Path, outcome: Outcome, fault_report: FaultReport) -> None:
    _, _, expected = CASES[name]
    outcome.check()
    told = outcome.failure if outcome.failure is not None else str(outcome)
    assert re.search(expected, told), told
    if outcome.failure is not None:
        assert repr(str(path)) in outcome.failure or "list the columns" in outcome.failure
    fault_report.add(name, injected=1, seconds=outcome.seconds, peak_mb=outcome.megabytes, note=str(outcome))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "unit"),
    [
        ("d.jsonl", b"x\n"),
        ("d.jsonl", b'{"text": 1}\n'),
        ("d.jsonl", b'{"text": "a", "n": 1}\n'),
        ("d.jsonl", b"\n"),
        ("d.jsonl", b"x"),
        ("d.txt", b"\xff\n"),
        ("d.csv", b'a"b,"'),
        ("d.csv", b'"'),
        ("d.csv", b'a,"'),
        ("d.csv", b"a\r"),
        ("d.tsv", b"\t"),
    ],
)
def test_twice_the_size_takes_about_twice_the_time(tmp_path: Path, file: str, unit: bytes) -> None:
    paths = []
    lines = b"\n" in unit
    for times in (1, 2):
        paths.append(tmp_path / f"{times}{file}")
        count = (_MB if len(unit) > 1 else 4 * _MB) // len(unit) * (1 if lines else 8)
        paths[-1].write_bytes(b"text\n" + unit * count * times)
    # Read twice, for the first file also pays for what is done once.
    _, _, small, large = read_all([*paths, *paths], max_line_bytes=1 << 30)
    # Quadratic work would take four times as long.
    assert large.seconds < 3.2 * small.seconds + 0.5, (small, large)


def test_lines_of_exactly_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes(b"x" * 1000 + b"\n" + b"x" * 1001 + b"\n" + b"x" * 1000 + b"\r\n" + b"x" * 1001)
    outcome = read_one(path, max_line_bytes=1000)
    assert (outcome.rows, outcome.rejects) == (2, {"LineTooLong": 2})


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl.gz", "d.txt.zst"])
def test_a_bad_file_among_good_ones_is_one_reject(tmp_path: Path, name: str) -> None:
    for other in ("a", "z"):
        (tmp_path / f"{other}{name}").write_bytes(_sound(name))
    (tmp_path / name).write_bytes(b"\n" if name[2:] in ("csv", "tsv") else b"not packed")
    assert repr(str(tmp_path / name)) in (read_one(tmp_path).failure or "")
    outcome = read_one(tmp_path, bad_files="reject")
    assert (outcome.rows, outcome.rejects) == (20, {"BadFile": 1})


def test_where_every_file_is_bad_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    (tmp_path / "b.csv").write_bytes(b"\n")
    assert "a.parquet" in (read_one(tmp_path, bad_files="reject").failure or "")


def _sound(name: str) -> bytes:
    data = b'{"text": "a"}\n' * 10 if "json" in name else b"a\n" * 10
    if name.endswith(("csv", "tsv")):
        return b"text\n" + data
    return bytes(pa.compress(data, "gzip" if name.endswith("gz") else "zstd", asbytes=True))
