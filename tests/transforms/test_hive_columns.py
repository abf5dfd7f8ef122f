"""Values that folders give beside columns of the same name in some files, against DuckDB."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.planning import plan_splits, read_schema
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.output.increments import Misfit, plan_increment


def put(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def read(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    made = ReadSettings(path=str(folder), **settings)
    batches = [batch for split in plan_splits(made) for batch in read_split(split, made)]
    return [
        {key: value for key, value in row.items() if key != "_row"} for batch in batches for row in batch.to_pylist()
    ]


VALUES = {
    "string": (pa.string(), "e/n", "d e"),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), "en", "de"),
    "int32": (pa.int32(), 2023, 2024),
    "double": (pa.float64(), 0.5, 1.25),
    "bool": (pa.bool_(), True, False),
    "date": (pa.date32(), datetime.date(2023, 12, 31), datetime.date(2024, 2, 29)),
    "timestamp": (pa.timestamp("us"), datetime.datetime(2023, 1, 1, 5, 6, 7), datetime.datetime(2024, 1, 1)),
    "decimal": (pa.decimal128(9, 2), decimal.Decimal("1.50"), decimal.Decimal("2.25")),
}


@pytest.mark.parametrize("name", VALUES)
def test_files_without_the_column_have_the_value_of_their_folder(tmp_path: Path, name: str) -> None:
    kind, one, other = VALUES[name]
    folders = [
        f"k={quote(str(value), safe='').replace('True', 'true').replace('False', 'false')}" for value in (one, other)
    ]
    put(tmp_path / folders[0] / "a.parquet", {"text": ["a"]})
    put(tmp_path / folders[1] / "b.parquet", {"text": ["b", "c"], "k": pa.array([other, None], kind)})
    rows = sorted(read(tmp_path), key=lambda row: str(row["text"]))
    assert rows == [{"text": "a", "k": one}, {"text": "b", "k": other}, {"text": "c", "k": other}]
    if name in ("string", "dictionary", "int32"):  # of which DuckDB shows the text as Python does
        options = "union_by_name=true, hive_partitioning=true, hive_types={'k': VARCHAR}"
        query = f"SELECT text, k::VARCHAR FROM read_parquet('{tmp_path}/*/*.parquet', {options}) ORDER BY text"
        assert duckdb.sql(query).fetchall() == [(row["text"], str(row["k"])) for row in rows]


def test_what_the_folder_does_not_know_stays(tmp_path: Path) -> None:
    put(tmp_path / "k=__HIVE_DEFAULT_PARTITION__" / "a.parquet", {"text": ["a", "b"], "k": [5, None]})
    put(tmp_path / "k=__HIVE_DEFAULT_PARTITION__" / "b.parquet", {"text": ["c"]})
    assert [row["k"] for row in read(tmp_path)] == [5, None, None]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "tsv"])
def test_a_file_and_its_folder_that_contradict_each_other_are_named(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "k=2"
    folder.mkdir()
    path = folder / f"a.{format}"
    for value in (2, 3):
        if format == "parquet":
            pq.write_table(pa.table({"text": ["a"], "k": [value]}), path)
        else:
            lines = {
                "jsonl": f'{{"text": "a", "k": {value}}}\n',
                "csv": f"text,k\na,{value}\n",
                "tsv": f"text\tk\na\t{value}\n",
            }
            path.write_text(lines[format])
        if value == 2:
            assert [str(row["k"]) for row in read(tmp_path)] == ["2"]
    with pytest.raises(
        InputError, match=r"column 'k' of '.*k=2/a\.\w+' has other values than its folder k=2 says; rename"
    ):
        read(tmp_path)
    assert read(tmp_path, keep=["text"]) == [{"text": "a"}]


def test_a_folder_whose_value_is_none_of_the_columns_type_is_named(tmp_path: Path) -> None:
    put(tmp_path / "k=1" / "a.parquet", {"text": ["a"], "k": [1]})
    put(tmp_path / "k=one" / "b.parquet", {"text": ["b"]})
    with pytest.raises(
        InputError, match=r"column 'k' is int64, but the value that the folders of '.*k=one/b\.parquet'"
    ):
        read(tmp_path)


def test_a_folder_whose_value_would_lose_digits_is_named(tmp_path: Path) -> None:
    put(tmp_path / "k=1" / "a.parquet", {"text": ["a"], "k": [1.0]})
    put(tmp_path / "k=9007199254740993" / "b.parquet", {"text": ["b"]})
    with pytest.raises(InputError, match=r"column 'k' is double, but the value that the folders of '.*b\.parquet'"):
        read(tmp_path)


def test_lines_of_text_are_no_value_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "text=x" / "lang=en").mkdir(parents=True)
    (tmp_path / "text=x" / "lang=en" / "a.txt").write_text("one\ntwo\n")
    assert read(tmp_path) == [{"text": "one", "lang": "en"}, {"text": "two", "lang": "en"}]


def test_on_a_later_day(tmp_path: Path) -> None:
    put(tmp_path / "k=1" / "a.parquet", {"text": ["a"], "k": [1]})
    settings = ReadSettings(path=str(tmp_path))
    (split,) = plan_splits(settings)
    assert read_schema(split).field("k").type == pa.int64()
    put(tmp_path / "k=2" / "b.parquet", {"text": ["b"]})
    splits, _ = plan_increment(settings, [], split.schema, covered={})
    rows = [row for split in splits for batch in read_split(split, settings) for row in batch.to_pylist()]
    assert [(row["text"], row["k"]) for row in rows] == [("a", 1), ("b", 2)]
    put(tmp_path / "k=two" / "b.parquet", {"text": ["b"]})
    with pytest.raises(Misfit, match=r"column 'k' is int64 in the output, but the value that the folders of '.*k=two"):
        plan_increment(settings, [], split.schema, covered={})
