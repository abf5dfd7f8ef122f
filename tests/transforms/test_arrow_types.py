"""Every Arrow type that a lake holds: from Parquet, through a plan, its batches and the writer, into Parquet.

The truth is what pyarrow reads of each input file, and what DuckDB reads of it where DuckDB knows the type. One to
three files hold one column, each in a type of the same family. All values must come out as they are; only where a
family says so may single rows be set aside, and then by the column's name.

=========================  =====================================================================================
family                     types, mixed freely between files
=========================  =====================================================================================
nothing                    null, beside int32
truth                      bool
integers                   int8, int16, int32, int64, uint8, uint16, uint32
large integers             uint64
signs                      int64, uint64 (rows beyond int64 are set aside)
floats                     halffloat, float, double
numbers                    int64, double (rows beyond 2**53 are set aside)
decimals                   decimal32, decimal64, decimal128, decimal256
decimals and integers      decimal128, int32, uint8
texts                      string, large_string, string_view, dictionaries of int8, uint8, int16, int64 indices
ordered categories         dictionaries in order, of int8 and uint16 indices
bytes                      binary, large_binary, binary_view, fixed_size_binary, dictionaries
days                       date32, date64
days and clock times       date32, timestamp[us]
clock times                timestamp[s], [ms], [us], also stored as INT96
nanoseconds                timestamp[ns], timestamp[us] (rows beyond the years of nanoseconds are set aside)
moments                    timestamp[ms], [us] in four time zones
times of day               time32[s], time32[ms], time64[us], time64[ns]
durations                  duration[s], [ms], [us], [ns]
extensions                 arrow.uuid; arrow.json; arrow.bool8
=========================  =====================================================================================

Each alone, and inside of list, large_list, list_view, large_list_view, fixed_size_list, struct, map, list of structs
and struct of lists.
"""

from __future__ import annotations

import datetime
import decimal
import math
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.output.shards import ShardSettings, ShardWriter
from distilbeam.transforms.provenance import ROW, Provenance, Reject

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "+05:30")
EPOCH = datetime.datetime(1970, 1, 1)
FAMILIES: dict[str, list[pa.DataType]] = {
    "nothing": [pa.null(), pa.int32()],
    "truth": [pa.bool_()],
    "integers": [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()],
    "large integers": [pa.uint64()],
    "signs": [pa.int64(), pa.uint64()],
    "floats": [pa.float16(), pa.float32(), pa.float64()],
    "numbers": [pa.int64(), pa.float64()],
    "decimals": [pa.decimal32(7, 2), pa.decimal64(15, 4), pa.decimal128(20, 3), pa.decimal256(40, 5)],
    "decimals and integers": [pa.decimal128(9, 2), pa.int32(), pa.uint8()],
    "texts": [
        *(pa.string(), pa.large_string(), pa.string_view()),
        *(pa.dictionary(index, pa.string()) for index in (pa.int8(), pa.uint8(), pa.int16(), pa.int64())),
    ],
    "ordered categories": [pa.dictionary(index, pa.string(), True) for index in (pa.int8(), pa.uint16())],
    "bytes": [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), pa.dictionary(pa.int8(), pa.binary())],
    "days": [pa.date32(), pa.date64()],
    "days and clock times": [pa.date32(), pa.timestamp("us")],
    "clock times": [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")],
    "nanoseconds": [pa.timestamp("ns"), pa.timestamp("us")],
    "moments": [pa.timestamp(unit, zone) for unit in ("ms", "us") for zone in ZONES],
    "times of day": [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")],
    "durations": [pa.duration(unit) for unit in ("s", "ms", "us", "ns")],
    "uuid": [pa.uuid()],
    "json": [pa.json_()],
    "bool8": [pa.bool8()],
}
LOSSY = ("signs", "numbers", "nanoseconds")
NESTED: dict[str, tuple[Callable[[pa.DataType], pa.DataType], Callable[[st.SearchStrategy[Any]], Any]]] = {
    "alone": (lambda kind: kind, lambda values: values),
    "list": (pa.list_, lambda values: st.lists(values, max_size=3)),
    "large_list": (pa.large_list, lambda values: st.lists(values, max_size=3)),
    "list_view": (pa.list_view, lambda values: st.lists(values, max_size=3)),
    "large_list_view": (pa.large_list_view, lambda values: st.lists(values, max_size=3)),
    "fixed_size_list": (lambda kind: pa.list_(kind, 2), lambda values: st.lists(values, min_size=2, max_size=2)),
    "struct": (
        lambda kind: pa.struct([("a", kind), ("b.c", pa.int8())]),
        lambda values: st.fixed_dictionaries({"a": values, "b.c": st.integers(0, 9)}),
    ),
    "map": (
        lambda kind: pa.map_(pa.string(), kind),
        lambda values: st.dictionaries(st.sampled_from("xyz"), values).map(lambda pairs: list(pairs.items())),
    ),
    "list of structs": (
        lambda kind: pa.list_(pa.struct([("a", kind)])),
        lambda values: st.lists(st.fixed_dictionaries({"a": values}), max_size=3),
    ),
    "struct of lists": (
        lambda kind: pa.struct([("a", pa.list_(kind))]),
        lambda values: st.fixed_dictionaries({"a": st.none() | st.lists(values, max_size=3)}),
    ),
}


def of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of a type, as ``pyarrow.array`` takes them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    if pa.types.is_null(kind):
        return st.none()
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_integer(kind):
        signed = pa.types.is_signed_integer(kind)
        low, high = (
            (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1) if signed else (0, 2**kind.bit_width - 1)
        )
        return st.sampled_from([low, high, 0]) | st.integers(low, high)
    if pa.types.is_floating(kind):
        floats = st.floats(width=kind.bit_width)
        return floats.map(np.float16) if kind.bit_width == 16 else floats
    if pa.types.is_decimal(kind):
        most = 10**kind.precision - 1
        return st.integers(-most, most).map(lambda digits: decimal.Decimal(digits).scaleb(-kind.scale, WIDE))
    if pa.types.is_fixed_size_binary(kind):
        return st.binary(min_size=3, max_size=3)
    if "binary" in str(kind):
        return st.binary(max_size=5)
    if "string" in str(kind):
        return st.text(max_size=5)
    if pa.types.is_date(kind):
        return st.dates()
    if pa.types.is_timestamp(kind):
        if kind.unit == "ns":
            return st.integers(-(2**62), 2**62)
        moments = st.datetimes(EPOCH.replace(year=2), EPOCH.replace(year=9998))
        step = datetime.timedelta(seconds=1) / per_second[kind.unit]
        return moments.map(lambda moment: (moment - EPOCH) // step)
    if pa.types.is_time(kind):
        step = 1000 if kind.unit == "ns" else 1  # Python knows no nanoseconds
        return st.integers(0, 86_400 * per_second[kind.unit] // step - 1).map(lambda value: value * step)
    return st.integers(-(10**6), 10**6).map(lambda value: value * (1000 if kind.unit == "ns" else 1))  # durations


WIDE = decimal.Context(prec=100)


def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def plain(value: Any) -> Any:
    """A value so that what means the same is equal, whatever its type is."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, uuid.UUID):
        return value.bytes
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def through(source: Path, output: Path, batch_rows: int) -> tuple[list[Path], list[Reject]]:
    """What comes out of the files of a folder, as a job reads and writes them."""
    given = ReadSettings(path=str(source), split_bytes=1, batch_rows=batch_rows)
    paths, rejects = [], []
    for split in plan_splits(given):
        writer = None
        for batch in read_split(split, given):
            rejects += Provenance.of(batch).rejects
            batch = batch.drop_columns([ROW])
            if writer is None:
                writer = ShardWriter(str(output), str(split.ordinal), Provenance.strip(batch.schema), ShardSettings())
            writer.write(batch)
        paths += [output / record.path for record in writer.close()] if writer else []
    return paths, rejects


def in_duckdb(path: Path) -> dict[int, Any] | None:
    """What DuckDB reads, by number; None where it does not know the type."""
    try:
        return {n: plain(value) for n, value in duckdb.sql(f"SELECT n, v FROM '{path}'").fetchall()}
    except (duckdb.Error, ValueError, OverflowError):
        return None


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_values_come_out_as_they_are(family: str, data: st.DataObject) -> None:
    names = ["alone"] if isinstance(FAMILIES[family][0], pa.BaseExtensionType) else [*NESTED]
    nested = data.draw(st.sampled_from(["alone"] * 5 + names), "nested")
    nest, nest_values = NESTED[nested]
    count = data.draw(st.integers(1, 3), "files")
    kinds = [data.draw(st.sampled_from(FAMILIES[family]), "type") for _ in range(count)]
    if "view" in nested:  # Arrow converts none of these
        kinds = [
            kinds[0] if not pa.types.is_dictionary(kinds[0]) and "view" not in str(kinds[0]) else pa.string()
        ] * count
    has_schema = data.draw(st.sampled_from([True, True, False]), "Arrow's schema")
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        output.mkdir()
        expected: dict[int, Any] = {}
        others: dict[int, Any] | None = {}
        for number, kind in enumerate(kinds):
            values = of(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else st.none() | of(kind)
            if kind == pa.json_():
                values = st.sampled_from(['{"a": 1}', "[]", "null"])
            if kind == pa.uuid():
                values = st.binary(min_size=16, max_size=16)
            rows = nest_values(values) if nested == "fixed_size_list" else st.none() | nest_values(values)
            drawn = data.draw(st.lists(rows, min_size=1, max_size=6), "rows")
            if nested == "fixed_size_list":
                drawn = [row for row in drawn if row is not None]
            numbers = list(range(10 * number, 10 * number + len(drawn)))
            table = pa.table({"n": numbers, "text": ["t"] * len(drawn), "v": column(nest(kind), drawn)})
            path = source / f"{number}.parquet"
            try:
                pq.write_table(
                    table,
                    path,
                    row_group_size=data.draw(st.integers(1, 6), "rows in a group"),
                    use_dictionary="dictionary" in str(kind) or data.draw(st.booleans(), "dictionary"),
                    store_schema=has_schema,
                    use_deprecated_int96_timestamps=family == "clock times" and data.draw(st.booleans(), "INT96"),
                )
            except pa.ArrowException:
                reject()  # of views, for one, Arrow does not write every slice
            read = pq.read_table(path, coerce_int96_timestamp_unit="us")["v"].to_pylist()
            expected |= dict(zip(numbers, map(plain, read), strict=True))
            if others is not None:
                found = in_duckdb(path)
                others = None if found is None else others | found
        paths, rejects = through(source, output, data.draw(st.integers(1, 7), "rows in a batch"))
        assert all("column 'v'" in reject.reason for reject in rejects)
        assert not rejects or family in LOSSY, rejects
        tables = [pq.read_table(path) for path in paths]
        result = {
            n: plain(value)
            for table in tables
            for n, value in zip(table["n"].to_pylist(), table["v"].to_pylist(), strict=True)
        }
        assert len(result) + len(rejects) == len(expected)
        assert result == {n: value for n, value in expected.items() if n in result}
        assert len({table.schema for table in tables}) <= 1
        blind = family == "durations" or "decimal256" in str(
            [table.schema for table in tables]
        )  # of which DuckDB sees other numbers
        if others is not None and not blind:
            seen: dict[int, Any] = {}
            for path in paths:
                seen |= in_duckdb(path) or {}
            if len(seen) == len(result):
                assert seen == {n: value for n, value in others.items() if n in seen}
