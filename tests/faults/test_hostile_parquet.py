"""Broken, lying and bomb-like Parquet files cost little time and memory and are named; other files are unharmed."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.input import reading
from distilbeam.transforms.input.decoding import pieces as _pieces
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.provenance import Provenance
from tests.faults import thrift
from tests.faults.hostile import Outcome, read_all, read_one
from tests.faults.table import FaultReport
from tests.faults.thrift import Fields

_ROWS = 300


def _plain(rows: int = _ROWS, **settings: object) -> bytes:
    table = pa.table({"text": [f"text number {n}" for n in range(rows)], "n": list(range(rows))})
    return _written(table, row_group_size=100, **settings)


def _single(values: pa.Array | None = None, **settings: object) -> bytes:
    """One column, one row group, one page."""
    return _written(pa.table({"text": ["some text"] * 100 if values is None else values}), **settings)


def _written(table: pa.Table, **settings: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, store_schema=False, **settings)
    return out.getvalue()


def _footer(change: Callable[[Fields], None]) -> bytes:
    return thrift.with_footer(_plain(), change)


def _set(fields: Fields, number: int, value: object) -> None:
    fields[number][1] = value


def _page(header: dict[int, int], compression: str = "snappy") -> bytes:
    def change(fields: Fields, body: bytes) -> bytes:
        for number, value in header.items():
            _set(fields, number, value)
        return body

    return thrift.with_page(_single(use_dictionary=False, compression=compression), change)


def _run(level: int, count: int) -> bytes:
    """A page of as many equal values: nulls (level 0) or the first of the dictionary (level 1)."""

    def change(header: Fields, _: bytes) -> bytes:
        levels = thrift.varint(count << 1) + bytes([level])
        indices = b"\1" + thrift.varint(count << 1) + b"\0" if level else b""
        body = len(levels).to_bytes(4, "little") + levels + indices
        _set(header, 2, len(body))
        _set(header, 3, len(body))
        _set(header[5][1], 1, count)
        return body

    data = thrift.with_page(_single(compression="none"), change)

    def claim(footer: Fields) -> None:
        _set(footer, 3, count)
        _set(thrift.groups(footer)[0], 3, count)
        _set(thrift.chunk(footer), 5, count)

    return thrift.with_footer(data, claim)


def _deep(depth: int) -> bytes:
    def change(footer: Fields) -> None:
        group = {3: [thrift.I32, 0], 4: [thrift.BINARY, b"g"], 5: [thrift.I32, 1]}
        leaf = {1: [thrift.I32, 1], 3: [thrift.I32, 0], 4: [thrift.BINARY, b"v"]}
        root = {4: [thrift.BINARY, b"root"], 5: [thrift.I32, 1]}
        _set(footer, 2, thrift.Sequence(thrift.STRUCT, [root, *[group] * depth, leaf]))
        _set(footer, 4, thrift.Sequence(thrift.STRUCT, []))
        _set(footer, 3, 0)

    return _footer(change)


def _wide(columns: int) -> bytes:
    def change(footer: Fields) -> None:
        leaves = [
            {1: [thrift.I32, 1], 3: [thrift.I32, 0], 4: [thrift.BINARY, b"c%d" % number]} for number in range(columns)
        ]
        root = {4: [thrift.BINARY, b"root"], 5: [thrift.I32, columns]}
        _set(footer, 2, thrift.Sequence(thrift.STRUCT, [root, *leaves]))
        _set(footer, 4, thrift.Sequence(thrift.STRUCT, []))
        _set(footer, 3, 0)

    return _footer(change)


def _many_groups(count: int) -> bytes:
    def change(footer: Fields) -> None:
        group = thrift.groups(footer)[0]
        _set(footer, 4, thrift.Sequence(thrift.STRUCT, [group] * count))
        _set(footer, 3, 100 * count)

    return _footer(change)


def _claim_list(number: int) -> Callable[[Fields], None]:
    def change(footer: Fields) -> None:
        footer[number][1].claimed = 2**31 - 1

    return change


def _claim_rows(rows: int) -> Callable[[Fields], None]:
    def change(footer: Fields) -> None:
        _set(footer, 3, rows + 200)
        _set(thrift.groups(footer)[0], 3, rows)

    return change


def _move(offset: int) -> Callable[[Fields], None]:
    def change(footer: Fields) -> None:
        _set(thrift.chunk(footer), 9, offset)
        _set(thrift.chunk(footer), 11, offset)

    return change


def _overlap(footer: Fields) -> None:
    """All columns of all row groups claim nearly the whole file."""
    for group in range(3):
        for column in range(2):
            meta = thrift.chunk(footer, group, column)
            _set(meta, 9, 4)
            _set(meta, 11, 4)
            _set(meta, 7, 3000)


REFUSED: dict[str, Callable[[], bytes]] = {
    "zero bytes": lambda: b"",
    "one byte": lambda: b"P",
    "magic alone": lambda: b"PAR1",
    "two magics": lambda: b"PAR1PAR1",
    "footer of no bytes": lambda: b"PAR1" + bytes(4) + b"PAR1",
    "footer of 4 GB": lambda: b"PAR1" + bytes(100) + b"\xff\xff\xff\xffPAR1",
    "encrypted footer": lambda: _plain()[:-4] + b"PARE",
    "zeros between the magics": lambda: b"PAR1" + bytes(10_000) + (9_000).to_bytes(4, "little") + b"PAR1",
    "text": lambda: b"once upon a time " * 100,
    "rows counted differently": lambda: _footer(lambda footer: _set(footer, 3, 7)),
    "2^60 rows": lambda: _footer(_claim_rows(2**60)),
    "negative rows": lambda: _footer(lambda footer: _set(thrift.groups(footer)[0], 3, -5)),
    "more rows than there are": lambda: _footer(_claim_rows(1000)),
    "chunk of 2^60 bytes": lambda: _footer(lambda footer: _set(thrift.chunk(footer), 7, 2**60)),
    "chunk of -1 bytes": lambda: _footer(lambda footer: _set(thrift.chunk(footer), 7, -1)),
    "chunk beyond the file": lambda: _footer(_move(2**40)),
    "chunk before the file": lambda: _footer(_move(-100)),
    "overlapping chunks": lambda: _footer(_overlap),
    "2^31 row groups claimed": lambda: _footer(_claim_list(4)),
    "2^31 schema elements claimed": lambda: _footer(_claim_list(2)),
    "nested 200 deep": lambda: _deep(200),
    "nested 100,000 deep": lambda: _deep(100_000),
    "page of 2 GB unpacked": lambda: _page({2: 2**31 - 1}),
    "page of 2 GB packed": lambda: _page({3: 2**31 - 1}),
    "page of 2 GB, both": lambda: _page({2: 2**31 - 1, 3: 2**31 - 1}, "none"),
    "page of -1 bytes": lambda: _page({2: -1}),
    "400,000 columns": lambda: _wide(400_000),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("refused")
    paths = []
    for number, make in enumerate(REFUSED.values()):
        paths.append(folder / f"{number}.parquet")
        paths[-1].write_bytes(make())
    sound = folder / "sound.parquet"
    sound.write_bytes(_plain())
    *found, last = read_all([*paths, sound])
    assert (last.rows, last.failure) == (_ROWS, None), "the next file is read as if nothing had been"
    return dict(zip(REFUSED, found, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_parquet_is_refused(refused: dict[str, Outcome], name: str, fault_report: FaultReport) -> None:
    outcome = refused[name].check()
    assert outcome.failure is not None, outcome
    assert ".parquet': " in outcome.failure
    assert "\n" not in outcome.failure
    assert "text number" not in outcome.failure
    fault_report.add(
        f"Parquet: {name}", injected=1, seconds=outcome.seconds, peak_mb=outcome.megabytes + outcome.decoder
    )


def _bomb(codec: str, size: int) -> bytes:
    zeros = pa.array([bytes(size).decode()])
    return _single(zeros, use_dictionary=False, compression=codec, data_page_size=1 << 30, write_statistics=False)


def _repeated(size: int, rows: int) -> bytes:
    indices = pa.nulls(rows, pa.int32()).fill_null(0)
    return _single(pa.DictionaryArray.from_arrays(indices, pa.array(["x" * size])))


@pytest.mark.slow
def test_a_page_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, fault_report: FaultReport) -> None:
    path = tmp_path / "bomb.parquet"
    path.write_bytes(_bomb("zstd", 600 << 20))
    assert path.stat().st_size < 100_000
    outcome = read_one(path, fresh=True).check()
    assert outcome.failure is not None
    assert "decode_bytes" in outcome.failure
    path.write_bytes(_bomb("zstd", 200 << 20))
    assert read_one(path, decode_bytes=64 << 20).failure is not None
    assert read_one(path, decode_bytes=1 << 30).rows == 1, "the cure that the message names"
    fault_report.add(
        "Parquet: page of 600 MB in a file of 50 KB",
        injected=1,
        seconds=outcome.seconds,
        peak_mb=outcome.megabytes + outcome.decoder,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "most", "rows", "rejects"),
    [
        ("2^31 equal texts in 500 bytes", lambda: _run(1, 2**31 - 1), 100_000, 100_000, 0),
        ("2^31 nulls in 500 bytes", lambda: _run(0, 2**31 - 1), 100_000, 0, 100_000),
        ("a text of 1 MB, 10,000 times", lambda: _repeated(1 << 20, 10_000), 500, 500, 0),
        ("100,000 row groups of the same bytes", lambda: _many_groups(100_000), 0, 0, 0),
    ],
)
def test_few_bytes_that_mean_many_rows_come_in_bounded_batches(
    tmp_path: Path,
    fault_report: FaultReport,
    name: str,
    make: Callable[[], bytes],
    most: int,
    rows: int,
    rejects: int,
) -> None:
    path = tmp_path / "many.parquet"
    path.write_bytes(make())
    outcome = read_one(path, most=most, fresh=True).check()
    assert outcome.rows >= rows
    assert sum(outcome.rejects.values()) >= rejects
    assert (outcome.failure is None) == bool(most)
    fault_report.add(
        f"Parquet: {name}",
        injected=1,
        seconds=outcome.seconds,
        peak_mb=outcome.megabytes + outcome.decoder,
        note=f"{most} rows read" if most else "refused",
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()])
def test_one_text_in_a_dictionary_that_stands_for_many_is_bounded_as_written_out(kind: pa.DataType) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * (1 << 20)]).cast(kind))
    batch = pa.RecordBatch.from_arrays([text, pa.array(range(3000))], ["text", "n"])
    pieces = list(_pieces(batch, 8 << 20))
    assert [value for piece in pieces for value in piece["n"].to_pylist()] == list(range(3000))
    assert max(piece["text"].dictionary_decode().nbytes for piece in pieces) <= 9 << 20


def test_cut_at_every_twentieth(tmp_path: Path, fault_report: FaultReport) -> None:
    data = _plain()
    paths = []
    for part in range(20):
        paths.append(tmp_path / f"{part}.parquet")
        paths[-1].write_bytes(data[: len(data) * part // 20])
    found = read_all(paths)
    assert all(outcome.check().failure for outcome in found)
    seconds = sum(outcome.seconds for outcome in found)
    fault_report.add("Parquet: cut at every twentieth", injected=len(found), seconds=seconds)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_flipped_bits_neither_crash_the_reader_nor_lose_rows_unseen(
    tmp_path: Path, seed: int, fault_report: FaultReport
) -> None:
    chance = random.Random(seed)
    data = _plain(compression=["none", "zstd", "snappy"][seed % 3])
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    paths = []
    for number in range(120):
        broken = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 4])):
            place = chance.randrange(footer, len(data)) if chance.random() < 0.6 else chance.randrange(len(data))
            broken[place] ^= 1 << chance.randrange(8)
        paths.append(tmp_path / f"{number}.parquet")
        paths[-1].write_bytes(broken)
    found = read_all(paths, nulls="keep", text="text", keep=["n"])
    for outcome in found:
        outcome.check()
        # Parquet has no checksum that would tell of altered values, but rows are counted.
        assert outcome.failure is not None or outcome.rows + sum(outcome.rejects.values()) == _ROWS
    failed = sum(outcome.failure is not None for outcome in found)
    assert failed > 20
    fault_report.add(
        "Parquet: bits flipped",
        injected=len(found),
        seconds=sum(outcome.seconds for outcome in found),
        peak_mb=max(outcome.megabytes + outcome.decoder for outcome in found),
        note=f"{failed} refused",
    )


def test_a_bad_file_costs_the_rows_that_it_had_where_the_user_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(_plain())
    (tmp_path / "b.parquet").write_bytes(_plain()[:-100])
    broken = bytearray(_plain(compression="none"))
    with pq.ParquetFile(io.BytesIO(broken)) as file:
        second = file.metadata.row_group(1).column(0).dictionary_page_offset
    broken[second : second + 8] = b"\xff" * 8
    (tmp_path / "c.parquet").write_bytes(broken)
    with_fail = read_one(tmp_path)
    assert "b.parquet" in (with_fail.failure or "")
    outcome = read_one(tmp_path, bad_files="reject")
    # One has no footer, so nobody knows how many rows it had; the other tells that 200 are left.
    assert (outcome.rows, outcome.rejects) == (_ROWS + 100, {"BadFile": 1 + 200})
    assert "cut off" in outcome.reasons[0]
    assert "from here on" in outcome.reasons[1]
    settings = ReadSettings(path=str(tmp_path / "[ac].parquet"), bad_files="reject", split_bytes=1 << 30)
    notes = [Provenance.of(batch) for split in plan_splits(settings) for batch in read_split(split, settings)]
    lost = [reject.row for note in notes if note.source.endswith("c.parquet") for reject in note.rejects]
    assert lost == list(range(100, 300))


def test_a_footer_that_claims_a_world_of_rows_costs_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(_plain())
    broken = bytearray(_plain(compression="none"))
    with pq.ParquetFile(io.BytesIO(broken)) as file:
        first = file.metadata.row_group(0).column(0).dictionary_page_offset
    broken[first : first + 8] = b"\xff" * 8
    (tmp_path / "b.parquet").write_bytes(broken)
    settings = ReadSettings(path=str(tmp_path), bad_files="reject", split_bytes=1 << 30)
    monkeypatch.setattr(reading, "_MOST_LOST", 299)
    notes = [Provenance.of(batch) for split in plan_splits(settings) for batch in read_split(split, settings)]
    (reject,) = [reject for note in notes for reject in note.rejects]
    assert (reject.row, reject.error) == (0, "BadFile")
    assert "it had 300 more rows here" in reject.reason


@pytest.mark.slow
def test_a_large_row_group_is_read_with_little_memory(tmp_path: Path) -> None:
    text = "".join(map(chr, random.Random(0).choices(range(97, 123), k=20_000)))
    table = pa.table({"text": [text[n % 10_000 :] for n in range(20_000)]})
    assert table.nbytes > 250 << 20
    path = tmp_path / "large.parquet"
    pq.write_table(table, path, row_group_size=20_000, use_dictionary=False)
    assert pq.read_metadata(path).num_row_groups == 1
    outcome = read_one(path, fresh=True, decode_bytes=64 << 20, split_bytes=1 << 30).check()
    assert (outcome.rows, outcome.failure) == (20_000, None)
    assert outcome.decoder < 300


def test_the_decoder_dies_with_its_parent_even_while_it_computes(tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    path.write_bytes(_run(0, 2**31 - 1))
    # A range that begins at the end makes the decoder pass over all rows before it.
    reader = textwrap.dedent(
        """
        import sys, pyarrow as pa
        from distilbeam.transforms.input import sandbox
        from distilbeam.transforms.input.formats import parquet
        sandbox.warm()
        print(sandbox._SANDBOX._idle[0].pid, flush=True)
        schema = pa.schema([("text", pa.string())])
        start = 2**31 - 10
        list(parquet.read_rows(sys.argv[1], start, None, schema, batch_rows=4096, batch_bytes=1 << 24, memory=1 << 29))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", reader, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    deadline = time.monotonic() + 60
    while _computed(pid) < 1.0:
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    while _is_running(pid):
        assert time.monotonic() < deadline, "the decoder goes on without its parent"
        time.sleep(0.05)


def _computed(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
