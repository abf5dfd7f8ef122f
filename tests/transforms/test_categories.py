"""Columns of categories that outgrow the indices they came with: read, written, and opened by others as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.input.column_types import settled_type, without_dictionaries
from distilbeam.transforms.input.planning import plan_splits, read_schema
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.output.increments import Misfit, plan_increment
from distilbeam.transforms.output.shards import ShardSettings, ShardWriter
from distilbeam.transforms.provenance import ROW, Provenance

INDICES = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


def categories(values: list[str], index: pa.DataType, ordered: bool = False, null_every: int = 10) -> pa.Array:
    kept = [value if at % null_every else None for at, value in enumerate(values, 1)]
    positions = {value: at for at, value in enumerate(dict.fromkeys(value for value in kept if value is not None))}
    indices = pa.array([None if value is None else positions[value] for value in kept], index)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(positions)), ordered=ordered)


def copy(source: Path, output: Path, **shards: Any) -> list[Path]:
    """What a job keeps of the files of a folder, in as many files as there are splits."""
    output.mkdir()
    paths = []
    for split in plan_splits(ReadSettings(path=str(source), split_bytes=1)):
        batches = [batch.drop_columns([ROW]) for batch in read_split(split, ReadSettings(path=str(source)))]
        schema = Provenance.strip(batches[0].schema)
        writer = ShardWriter(str(output), f"{split.ordinal:03d}", schema, ShardSettings(**shards), ("text",))
        for batch in batches:
            writer.write(batch)
        paths += [output / record.path for record in writer.close()]
    return paths


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_files_and_row_groups_with_more_categories_together_than_their_indices_tell_apart(
    tmp_path: Path, index: pa.DataType, ordered: bool
) -> None:
    many = 90 if index.bit_width == 8 else 400
    source = tmp_path / "in"
    source.mkdir()
    expected = []
    for file in range(4):
        schema = pa.schema({"text": pa.string(), "shop": pa.dictionary(index, pa.string(), ordered)})
        with pq.ParquetWriter(source / f"{file}.parquet", schema) as writer:
            for group in range(2):
                shops = categories([f"{file} {group} {n}" for n in range(many)], index, ordered)
                writer.write_table(pa.table([pa.array(["t"] * many), shops], schema=schema))
                expected += shops.to_pylist()
    paths = copy(source, tmp_path / "out")
    folder = tmp_path / "out"
    assert pq.read_table(folder)["shop"].to_pylist() == expected
    assert pq.read_table(paths[0]).schema.field("shop").type == pa.dictionary(pa.int32(), pa.string(), ordered)
    frame = pd.read_parquet(folder)
    assert isinstance(frame["shop"].dtype, pd.CategoricalDtype)  # categories come back as categories
    assert [None if pd.isna(shop) else shop for shop in frame["shop"]] == expected
    assert pl.read_parquet(folder)["shop"].to_list() == expected
    found = duckdb.sql(f"SELECT shop FROM read_parquet('{folder}/*.parquet') ORDER BY filename, file_row_number")
    assert [shop for (shop,) in found.fetchall()] == expected


def in_list(array: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(range(len(array) + 1), pa.int32()), array)


NESTED: dict[str, Callable[[pa.Array], pa.Array]] = {
    "struct": lambda array: pa.StructArray.from_arrays([array], ["shop"]),
    "list": in_list,
    "list of structs": lambda array: in_list(pa.StructArray.from_arrays([array], ["shop"])),
    "map": lambda array: pa.MapArray.from_arrays(
        pa.array(range(len(array) + 1), pa.int32()), pa.array(range(len(array))), array
    ),
}


@pytest.mark.parametrize("nested", NESTED)
def test_categories_inside_of_other_columns(tmp_path: Path, nested: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    expected = []
    for file in range(3):
        shops = NESTED[nested](categories([f"{file} {n}" for n in range(100)], pa.int8()))
        if file == 2:
            shops = shops.cast(without_dictionaries(shops.type))
        pq.write_table(pa.table({"text": ["t"] * 100, "shops": shops}), source / f"{file}.parquet")
        expected += shops.to_pylist()
    copy(source, tmp_path / "out")
    assert pq.read_table(tmp_path / "out")["shops"].to_pylist() == expected
    assert len(pd.read_parquet(tmp_path / "out")) == 300


@pytest.mark.parametrize("limit", [256 << 20, 4000])
def test_batches_of_ones_own_are_merged_into_readable_files(tmp_path: Path, limit: int) -> None:
    """One row group of many batches, each with few categories of its own; those of int8 tell 127 apart."""
    batches = [
        pa.record_batch({"shop": categories([f"{at} {n}" for n in range(100)], pa.int8()), "n": [at] * 100})
        for at in range(5)
    ]
    writer = ShardWriter(str(tmp_path), "a", batches[0].schema, ShardSettings(max_bytes=limit))
    for batch in batches:
        writer.write(batch)
    writer.close()
    expected = [shop for batch in batches for shop in batch["shop"].to_pylist()]
    assert pq.read_table(tmp_path)["shop"].to_pylist() == expected
    assert pd.read_parquet(tmp_path)["shop"].notna().sum() == 450


VALUES = {
    "large_string": pa.array(["a", "b"], pa.large_string()),
    "string_view": pa.array(["a", "b"], pa.string_view()),
    "binary": pa.array([b"\xff", b"b"]),
    "binary_view": pa.array([b"a", b"b"]).cast(pa.binary_view()),
    "fixed_size_binary": pa.array([b"ab", b"cd"], pa.binary(2)),
    "int64": pa.array([5, 6]),
    "double": pa.array([0.5, 1.5]),
    "bool": pa.array([True, False]),
    "date": pa.array([1, 2], pa.int32()).cast(pa.date32()),
    "timestamp": pa.array([1, 2]).cast(pa.timestamp("us", "Europe/Berlin")),
    "duration": pa.array([1, 2]).cast(pa.duration("ms")),
    "decimal": pa.array([1, 2]).cast(pa.decimal128(21, 2)),
    "null among the categories": pa.array(["a", None]),
    "null among numbers": pa.array([1, None]),
}


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", VALUES)
def test_categories_of_every_type_of_value(tmp_path: Path, name: str, format: str) -> None:
    values = VALUES[name]
    array = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.int8()), values)
    expected = [values[at].as_py() if at is not None else None for at in (1, 0, None, 1)]
    batch = pa.record_batch({"n": range(4), "c": array, "d": in_list(array)} if "view" not in name else {"c": array})
    writer = ShardWriter(str(tmp_path), "a", batch.schema, ShardSettings(format=format))
    writer.write(batch)
    (record,) = writer.close()
    if format == "parquet":
        found = pq.read_table(tmp_path / record.path)
        assert found["c"].to_pylist() == expected
        assert "d" not in found.column_names or found["d"].to_pylist() == [[value] for value in expected]
    else:
        assert record.rows == 4


def test_an_output_with_narrow_indices_is_not_gone_on_with(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["t"], "shop": categories(["a"], pa.int8())}), tmp_path / "a.parquet")
    settings = ReadSettings(path=str(tmp_path))
    (split,) = plan_splits(settings)
    assert plan_increment(settings, [], split.schema, covered={})[0]
    before = pa.schema({"text": pa.string(), "shop": pa.dictionary(pa.int8(), pa.string())})
    with pytest.raises(Misfit, match=r"column 'shop' is dictionary<.*indices=int8.* set `if_exists='overwrite'`"):
        plan_increment(settings, [], before.serialize().to_pybytes(), covered={})


def test_types_of_ones_own_are_widened_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["t"], "shop": ["a"]}), tmp_path / "a.parquet")
    kind = pa.dictionary(pa.uint8(), pa.string())
    (split,) = plan_splits(ReadSettings(path=str(tmp_path), types={"shop": kind}))
    assert read_schema(split).field("shop").type == pa.dictionary(pa.int32(), pa.string())
    assert settled_type(kind) == pa.dictionary(pa.int32(), pa.string())
