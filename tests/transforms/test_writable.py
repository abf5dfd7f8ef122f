"""Rows that a format cannot hold, against what readers make of the files."""

import datetime
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import OutputError
from distilbeam.transforms.output import writable
from distilbeam.transforms.output.jsonlines import to_jsonl
from distilbeam.transforms.output.writable import set_aside
from distilbeam.transforms.provenance import ROW, Provenance

BIG = 2**63 - 1


def invalid(count: int, bad: set[int]) -> pa.Array:
    """string[count], of which some are no UTF-8, which Arrow takes from Parquet files unchecked."""
    values = [b"private \xff" if row in bad else b"good" for row in range(count)]
    return pa.array(values, pa.binary()).view(pa.string())


def batch(column: pa.Array, **fields: Any) -> tuple[pa.RecordBatch, Provenance]:
    found = pa.record_batch(
        {"id": [f"r{row}" for row in range(len(column))], "x": column, ROW: pa.array(range(len(column)), pa.int64())}
    )
    provenance = Provenance("/in", "split", id="id", **fields)
    return provenance.attach(found), provenance


def times(kind: pa.DataType, bad: int) -> Callable[[int, set[int]], pa.Array]:
    def make(count: int, rows: set[int]) -> pa.Array:
        numbers = pa.array(
            [bad if row in rows else 5 for row in range(count)], pa.int32() if kind.bit_width == 32 else pa.int64()
        )
        return numbers.view(kind)

    return make


def nested(make: Callable[[int, set[int]], pa.Array], how: str) -> Callable[[int, set[int]], pa.Array]:
    def made(count: int, bad: set[int]) -> pa.Array:
        values = make(count, bad)
        if how == "list":
            return pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), values)
        if how == "struct":
            return pa.StructArray.from_arrays([values], ["a"])
        if how == "map":
            return pa.MapArray.from_arrays(pa.array(range(count + 1), pa.int32()), pa.array(["k"] * count), values)
        return pa.DictionaryArray.from_arrays(pa.array(range(count), pa.int32()), values)

    return made


CASES: dict[str, tuple[tuple[str, ...], Callable[[int, set[int]], pa.Array]]] = {
    "text": (("parquet", "jsonl"), invalid),
    "list of text": (("parquet", "jsonl"), nested(invalid, "list")),
    "struct of text": (("parquet", "jsonl"), nested(invalid, "struct")),
    "map of text": (("parquet", "jsonl"), nested(invalid, "map")),
    "dictionary of text": (("parquet", "jsonl"), nested(invalid, "dictionary")),
    "seconds": (("parquet", "jsonl"), times(pa.timestamp("s"), BIG)),
    "list of seconds": (("parquet", "jsonl"), nested(times(pa.timestamp("s"), BIG), "list")),
    "milliseconds": (("jsonl",), times(pa.timestamp("ms"), -BIG)),
    "zoned": (("jsonl",), times(pa.timestamp("us", "Europe/Berlin"), BIG)),
    "date": (("jsonl",), times(pa.date32(), 2**31 - 1)),
    "date64": (("jsonl",), times(pa.date64(), BIG)),
    "time": (("jsonl",), times(pa.time32("s"), 86_400)),
    "negative time": (("jsonl",), times(pa.time64("ns"), -1)),
    "map of dates": (("jsonl",), nested(times(pa.date32(), -(2**31)), "map")),
}


@pytest.mark.parametrize(
    ("name", "format"), [(name, format) for name, (formats, _) in CASES.items() for format in formats]
)
def test_a_row_that_cannot_be_written_is_set_aside_alone(name: str, format: str, tmp_path: Path) -> None:
    rows, provenance = batch(CASES[name][1](9, {0, 4, 8}))
    good, noted = set_aside(rows, provenance, format)
    assert good[ROW].to_pylist() == [1, 2, 3, 5, 6, 7]
    assert [(reject.stage, reject.row, reject.id) for reject in noted.rejects] == [
        ("write", 0, "r0"),
        ("write", 4, "r4"),
        ("write", 8, "r8"),
    ]
    assert Provenance.of(good) == noted
    assert "private" not in str(noted)
    assert "column 'x'" in noted.rejects[0].reason
    table = pa.table(good).replace_schema_metadata()
    if format == "jsonl":
        found = pandas.read_json(io.BytesIO(to_jsonl(table)), lines=True)
        assert found["id"].tolist() == ["r1", "r2", "r3", "r5", "r6", "r7"]
        assert "out of range" not in to_jsonl(table).decode()
    else:
        path = tmp_path / "x.parquet"
        pq.write_table(table, path)
        assert pq.read_table(path)["x"].to_pylist() == table["x"].to_pylist()
        assert duckdb.sql(f"select x from '{path}'").fetchall()


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_the_search_takes_few_tries(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0
    original = writable._part

    def counting(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        return original(*arguments)

    monkeypatch.setattr(writable, "_part", counting)
    for bad in range(100):
        tries = 0
        _, noted = set_aside(*batch(invalid(100, {bad})), format)
        assert [reject.row for reject in noted.rejects] == [bad]
        assert tries - 3 <= 2 * math.log2(100)  # besides telling which of two columns, and dividing the batch at last


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_good_rows_stay_as_they_are(format: str) -> None:
    column = pa.array(
        [datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59), None], pa.timestamp("s")
    )
    for good in (column, pa.array(["a", "é", None]), pa.array([None, None, None]), pa.array([1, 2, 3])):
        rows, provenance = batch(good)
        found, noted = set_aside(rows, provenance, format)
        assert found is rows
        assert noted is provenance


def test_nulls_in_a_column_without_nulls() -> None:
    schema = pa.schema([pa.field("x", pa.int64(), nullable=False), pa.field(ROW, pa.int64())])
    rows = pa.RecordBatch.from_arrays([pa.array([1, None, 3]), pa.array([0, 1, 2])], schema=schema)
    good, noted = set_aside(rows, Provenance("/in", "split"), "parquet")
    assert good["x"].to_pylist() == [1, 3]
    assert [reject.row for reject in noted.rejects] == [1]


def test_a_column_that_is_not_written_may_hold_anything() -> None:
    rows, provenance = batch(invalid(3, {1}), transient=("x",))
    assert set_aside(rows, provenance, "jsonl") == (rows, provenance)


def test_a_type_that_json_has_nothing_for_is_no_bad_row() -> None:
    interval = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    with pytest.raises(OutputError, match="nothing for a column of type month_day_nano_interval; leave"):
        to_jsonl(pa.record_batch({"x": interval}))


def test_times_read_back() -> None:
    moments = np.array(["0001-01-01T00:00:00", "9999-12-31T23:59:59", "2024-02-29T12:00:00"], "datetime64[s]")
    lines = to_jsonl(pa.record_batch({"x": pa.array(moments)})).splitlines()
    assert [np.datetime64(json.loads(line)["x"]) for line in lines] == moments.tolist()
