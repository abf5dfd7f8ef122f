"""Types in messages: told by their kind where their names come from JSON lines, whose keys are data, and never long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.column_types import shown_type
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.output.increments import Misfit, plan_increment
from distilbeam.transforms.provenance import Provenance

KEY = "Jane Roe is ill"


def lines(path: Path, *values: Any) -> str:
    path.write_text("".join(json.dumps({"text": "t", "v": value}) + "\n" for value in values))
    return str(path)


def parquet(path: Path, values: pa.Array) -> str:
    pq.write_table(pa.table({"text": ["t"] * len(values), "v": values}), path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (pa.struct({KEY: pa.int8()}), "struct"),
        (pa.list_(pa.struct({KEY: pa.int8()})), "list of struct"),
        (pa.large_list(pa.list_(pa.struct({KEY: pa.int8()}), 2)), "list of list of struct"),
        (pa.map_(pa.string(), pa.struct({KEY: pa.int8()})), "map of struct"),
        (pa.list_(pa.int64()), "list<item: int64>"),
        (pa.timestamp("us", "UTC"), "timestamp[us, tz=UTC]"),
    ],
)
def test_kinds(kind: pa.DataType, shown: str) -> None:
    assert shown_type(kind, tell=False) == shown
    assert shown_type(kind) == str(kind)


def test_length() -> None:
    wide = pa.struct({f"column_{number}": pa.int8() for number in range(10_000)})
    assert len(shown_type(wide)) < 250


def test_of_columns_that_disagree(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {KEY: 1})
    lines(tmp_path / "b.jsonl", [{KEY: 1}])
    with pytest.raises(InputError, match=r"column 'v' is struct in .* but list of struct in ") as raised:
        plan_splits(ReadSettings(path=str(tmp_path)))
    assert KEY not in str(raised.value)


def test_of_lines_and_files_with_a_schema(tmp_path: Path) -> None:
    paths = [lines(tmp_path / "a.jsonl", {KEY: 1}), parquet(tmp_path / "b.parquet", pa.array([[1]]))]
    with pytest.raises(InputError, match=r"column 'v' is struct in .* but list<\w+: int64> in ") as raised:
        plan_splits(ReadSettings(path=paths))
    assert KEY not in str(raised.value)
    paths = [parquet(tmp_path / "b.parquet", pa.array([{"a": 1}])), parquet(tmp_path / "c.parquet", pa.array([1]))]
    with pytest.raises(InputError, match=r"column 'v' is struct<a: int64> in .* but int64 in "):
        plan_splits(ReadSettings(path=paths))


def test_of_rejects(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {KEY: 1}, {KEY: "x"}, [1])
    settings = ReadSettings(path=str(tmp_path))
    batches = [batch for split in plan_splits(settings) for batch in read_split(split, settings)]
    reasons = [reject.reason for batch in batches for reject in Provenance.of(batch).rejects]
    assert reasons == ["the value of column 'v' is not of type struct"] * 2


def test_of_rejects_of_files_beside_lines(tmp_path: Path) -> None:
    paths = [lines(tmp_path / "a.jsonl", {KEY: 1, "n": 1})]
    paths.append(parquet(tmp_path / "b.parquet", pa.array([{"n": 2**64 - 1}], pa.struct({"n": pa.uint64()}))))
    settings = ReadSettings(path=paths)
    batches = [batch for split in plan_splits(settings) for batch in read_split(split, settings)]
    (reason,) = [reject.reason for batch in batches for reject in Provenance.of(batch).rejects]
    assert "from struct<n: uint64> into struct as it is" in reason


def test_of_files_that_are_added(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {KEY: 1})
    settings = ReadSettings(path=str(tmp_path))
    schema = plan_splits(settings)[0].schema
    other = ReadSettings(path=parquet(tmp_path / "other.parquet", pa.array([7])))
    with pytest.raises(Misfit, match=r"column 'v' is struct in the output, but int64 in ") as raised:
        plan_increment(other, [], schema, covered={})
    assert KEY not in str(raised.value)
    (tmp_path / "other.parquet").unlink()
    lines(tmp_path / "b.jsonl", [{KEY: 1}])
    with pytest.raises(Misfit, match=r"column 'v' is struct in the output, but list of struct in ") as raised:
        plan_increment(settings, [], schema, covered={})
    assert KEY not in str(raised.value)
