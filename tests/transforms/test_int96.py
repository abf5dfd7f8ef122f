"""Times that are stored as INT96: as they are, in every year and to the last digit, or refused by name."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.planning import plan_splits, read_schema
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split

FAR = [datetime.datetime(9999, 12, 31), datetime.datetime(1, 1, 1), None, datetime.datetime(1677, 9, 21, 0, 12, 43)]
NEAR = [datetime.datetime(2024, 5, 6, 7, 8, 9, 123456), datetime.datetime(1969, 12, 31, 23, 59, 59, 999999)]
US = pa.timestamp("us")


def write(path: Path, column: pa.Array, **settings: Any) -> None:
    table = pa.table({"text": ["t"] * len(column), "at": column})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, **settings)


def read(path: Path, **settings: Any) -> pa.Table:
    settings = {"path": str(path), **settings}
    splits = plan_splits(ReadSettings(**settings))
    batches = [batch for split in splits for batch in read_split(split, ReadSettings(**settings))]
    schema = read_schema(splits[0])
    return pa.Table.from_batches([batch.select(schema.names).cast(schema) for batch in batches], schema)


@pytest.mark.parametrize("stored", [True, False])  # whether Arrow's schema, which says nanoseconds, lies in the file
def test_times_of_all_years(tmp_path: Path, stored: bool) -> None:
    write(tmp_path / "a.parquet", pa.array(FAR + NEAR, US), store_schema=stored, row_group_size=2)
    found = read(tmp_path, split_bytes=1, batch_rows=1)["at"]
    assert found.type == US
    assert found.to_pylist() == FAR + NEAR
    assert found.to_pylist() == [at for (at,) in duckdb.sql(f"SELECT \"at\" FROM '{tmp_path}/a.parquet'").fetchall()]


NESTED = {
    "list": pa.array([[at] for at in FAR] + [NEAR, None, []], pa.list_(US)),
    "struct": pa.array([{"a": at, "b": 1} for at in FAR] + [None], pa.struct({"a": US, "b": pa.int64()})),
    "map": pa.array([[("k", at)] for at in FAR] + [[], None], pa.map_(pa.string(), US)),
    "list of structs": pa.array([[{"a": at} for at in FAR], []], pa.list_(pa.struct({"a": US}))),
}


@pytest.mark.parametrize("name", NESTED)
def test_times_inside_of_other_columns(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.parquet", NESTED[name])
    assert read(tmp_path)["at"].to_pylist() == NESTED[name].to_pylist()
    fine = pa.array([None, *range(1, len(NESTED[name]))], pa.timestamp("ns"))
    write(tmp_path / "a.parquet", pa.array([[at] for at in fine.to_pylist()], pa.list_(pa.timestamp("ns"))))
    with pytest.raises(InputError, match=r"a\.parquet': column 'at' holds a time with nanoseconds.*types`"):
        read(tmp_path)
    kind = pa.list_(pa.timestamp("ns"))
    assert read(tmp_path, types={"at": kind})["at"].to_pylist() == [[at] for at in fine.to_pylist()]


@pytest.mark.parametrize("nanoseconds", [1, -1, 999, 1_714_979_289_123_456_789, -1_500])
def test_nanoseconds_are_kept_or_refused(tmp_path: Path, nanoseconds: int) -> None:
    column = pa.array([0, nanoseconds, None] * 100).cast(pa.timestamp("ns"))
    write(tmp_path / "a.parquet", column, row_group_size=7)
    with pytest.raises(InputError, match=r"column 'at' holds a time with nanoseconds, which microseconds would lose"):
        read(tmp_path, batch_rows=5)
    assert len(read(tmp_path, keep=[])) == 300  # what is not read is not looked at
    found = read(tmp_path, batch_rows=5, types={"at": pa.timestamp("ns")})
    assert found["at"].combine_chunks().equals(column)


DIGITS = pa.array([1, 1_714_979_289_123_456_789, None], pa.timestamp("ns"))


@pytest.mark.parametrize("keep", [["m.at"], ["m.b", "m.at"], ["m.deep.at"], ["m", "m.at"]])
def test_fields_of_structs_keep_their_digits_or_are_refused(tmp_path: Path, keep: list[str]) -> None:
    inner = pa.StructArray.from_arrays([DIGITS], ["at"])
    struct = pa.StructArray.from_arrays([DIGITS, pa.array([1, 2, 3]), inner], ["at", "b", "deep"])
    pq.write_table(
        pa.table({"text": ["t"] * 3, "m": struct}), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True
    )
    said = keep[0] if keep[0] != "m.b" else "m.at"
    with pytest.raises(InputError, match=rf"column '{said}' holds a time with nanoseconds"):
        read(tmp_path, keep=keep)
    types = {name: DIGITS.type if name.endswith("at") else struct.type for name in keep if name != "m.b"}
    found = read(tmp_path, keep=keep, types=types)
    assert found[keep[-1]].combine_chunks().equals(DIGITS)


def test_fields_of_structs_are_not_read_for_the_times_of_others(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays([DIGITS, pa.array([1, 2, 3])], ["at", "b"])
    pq.write_table(
        pa.table({"text": ["t"] * 3, "m": struct}), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True
    )
    assert read(tmp_path, keep=["m.b"])["m.b"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("at", FAR[:2])
def test_years_that_nanoseconds_cannot_tell_are_refused_where_these_are_asked_for(tmp_path: Path, at: Any) -> None:
    write(tmp_path / "a.parquet", pa.array([*NEAR, at], US))
    with pytest.raises(InputError, match=r"column 'at' holds a time outside of the years 1677 to 2262"):
        read(tmp_path, types={"at": pa.timestamp("ns")})


def test_beside_files_of_other_units(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array(NEAR, US))
    pq.write_table(
        pa.table({"text": ["t"], "at": pa.array([NEAR[0]], pa.timestamp("ms"))}),
        tmp_path / "b.parquet",
        coerce_timestamps="ms",
        allow_truncated_timestamps=True,
    )
    pq.write_table(pa.table({"text": ["t"], "at": pa.array([1], pa.timestamp("ns"))}), tmp_path / "c.parquet")
    found = read(tmp_path)["at"].cast(pa.int64()).to_pylist()
    near = [1_714_979_289_123_456_000, -1_000]
    assert found == [*near, near[0] - 456_000, 1]
