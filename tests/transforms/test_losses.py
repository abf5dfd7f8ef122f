"""What damaged files have lost is told and counts against the limit of rejects."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from distilbeam.transforms.errors import RejectLimitError
from distilbeam.transforms.input.losses import estimate_lost
from distilbeam.transforms.input.splits import Part
from distilbeam.transforms.output.accounting import check_rejects
from distilbeam.transforms.output.losses import Losses, lost_rows
from distilbeam.transforms.output.records import FileRecord, PartRecord, SplitRecord, Statistics
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.rejects import parse_max_rejects

LINES = [b'{"text": "line %x"}\n' % (n * n * 7919) for n in range(20_000)]


def lost(found: Any) -> list[int | None]:
    """What the last batch of each part says."""
    last = {}
    for batch in found.batches:
        provenance = Provenance.of(batch)
        assert provenance is not None
        last[provenance.source] = provenance.lost
    return list(last.values())


def split(ordinal: int, *parts: PartRecord) -> SplitRecord:
    rejects = sum(1 for part in parts if part.lost != 0)
    file = FileRecord("_rejects/part-00000-00000000.parquet", rejects, 1, "")
    rows = sum(part.seen for part in parts) - rejects
    shards = (FileRecord(f"part-{ordinal:05}-00000000.parquet", rows, 1, ""),)
    return SplitRecord(str(ordinal), ordinal, 9, parts, "", shards, file if rejects else None, Statistics(), (), (), {})


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_the_rows_behind_a_damage_are_estimated_from_its_bytes(tmp_path: Path, read: Any, compression: str) -> None:
    pieces = [LINES[at : at + 2000] for at in range(0, 20_000, 2000)]
    pack = gzip.compress if compression == "gzip" else zstandard.compress
    packed = [pack(b"".join(piece)) for piece in pieces]
    packed[3] = b"\xff" * len(packed[3])
    path = tmp_path / ("a.jsonl.gz" if compression == "gzip" else "a.jsonl.zst")
    path.write_bytes(b"".join(packed))
    found = read(path, bad_files="reject")
    assert len(found.rows) == 6000
    assert found.bad == [(6001, "BadFile")]
    assert lost(found) == [pytest.approx(14_000, rel=0.15)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_what_is_cut_off_keeps_its_rows_and_nobody_knows_the_rest(tmp_path: Path, read: Any, share: float) -> None:
    whole = gzip.compress(b"".join(LINES))
    data = whole[: int(len(whole) * share)]
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    kept = zlib.decompressobj(31).decompress(data).count(b"\n")
    found = read(tmp_path, bad_files="reject")
    assert len(found.rows) == kept
    assert lost(found) == [None]


def test_what_a_footer_tells_is_known(tmp_path: Path, read: Any) -> None:
    for name in "ab":
        table = pa.table({"text": [f"{name}{n}" * 50 for n in range(1000)]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=100, compression=None, use_dictionary=False)
    path = tmp_path / "b.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = bytes(5000)
    path.write_bytes(data)
    found = read(tmp_path, bad_files="reject")
    assert len(found.rows) + len(found.bad) == 2000
    assert lost(found) == [0, 0]
    path.write_bytes(data[:-100])
    assert lost(read(tmp_path, bad_files="reject")) == [0, None]


def test_an_unclosed_quote_of_csv(tmp_path: Path, read: Any) -> None:
    rows = [f"{n},some text\n" for n in range(100_000)]
    (tmp_path / "a.csv").write_text("n,text\n" + "".join(rows[:60_000]) + '1,"open\n' + "".join(rows[60_001:]))
    found = read(tmp_path, bad_files="reject", max_line_bytes=1 << 20)
    assert len(found.rows) + (lost(found)[0] or 0) == pytest.approx(100_000, rel=0.1) or lost(found) == [None]


def test_estimates() -> None:
    part = Part("a.gz", "jsonl", 1000, "v", "gzip")
    assert estimate_lost(part, 0, 0) is None
    assert estimate_lost(part, 10, 1000) is None
    assert estimate_lost(part, 10, 500) == 9
    assert estimate_lost(part, 10, 999) == 0


def test_losses_of_an_output() -> None:
    sound = [split(n, PartRecord(f"{n}.gz", 100, 100)) for n in range(3)]
    assert lost_rows(sound) == Losses()
    cut = split(3, PartRecord("3.gz", 40, 40, lost=None))
    assert lost_rows([*sound, cut]) == Losses(60, 1)
    torn = split(4, PartRecord("4.gz", 11, 11, lost=30))
    assert lost_rows([*sound, cut, torn]) == Losses(90, 2)
    assert lost_rows([torn]) == Losses(30, 1)
    assert lost_rows([torn, cut]) == Losses(30, 2, "3.gz")
    longer = split(5, PartRecord("5.gz", 400, 400, lost=None))
    assert lost_rows([*sound, longer]) == Losses(0, 1)
    pieces = (
        split(0, PartRecord("a", 60, 60), PartRecord("a", 60, 60, start=1)),
        split(1, PartRecord("b", 1, 1, lost=None)),
    )
    assert lost_rows(pieces) == Losses(119, 1)


def test_the_limit_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilbeam.transforms.output.accounting._causes", lambda *_: "BadFile")
    records = [split(n, PartRecord(f"{n}.gz", 100, 100)) for n in range(9)] + [
        split(9, PartRecord("9.gz", 51, 51, lost=None))
    ]
    check_rejects("out", records, parse_max_rejects("5%"))
    check_rejects("out", records, parse_max_rejects(50))
    with pytest.raises(
        RejectLimitError, match=r"50 of 1000 rows were set aside, about 49 of them lost in damaged files"
    ):
        check_rejects("out", records, parse_max_rejects("4%"))
    alone = [split(0, PartRecord("0.gz", 10_000, 10_000, lost=None))]
    with pytest.raises(RejectLimitError, match=r"'0.gz' is damaged, and nothing tells how many rows.*`max_rejects`"):
        check_rejects("out", alone, parse_max_rejects("1%"))
    check_rejects("out", alone, parse_max_rejects("none"))
    check_rejects("out", alone, parse_max_rejects(1))
