"""Texts and kept columns inside of structs, against what pyarrow and DuckDB find at the same path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.nested import add_nested, find_path
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.provenance import Provenance

ROWS = [
    {"id": n, "review": {"body": f"body {n}", "stars": n, "by": {"name": f"N{n}", "age": n}}, "x": "y"}
    for n in range(9)
]
ROWS[3]["review"] = None
ROWS[4]["review"] = {"body": None, "stars": 4, "by": None}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path / "a.parquet", row_group_size=4)
    return path / "a.parquet"


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path / "a.arrow"


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    (path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / "a.jsonl"


def write_avro(path: Path, rows: list[dict[str, Any]]) -> Path:
    def record(called: str, /, **fields: Any) -> Any:
        listed = [{"name": key, "type": ["null", kind]} for key, kind in fields.items()]
        return {"type": "record", "name": called, "fields": listed}

    by = record("By", name="string", age="int")
    schema = record("Row", id="int", review=record("Review", body="string", stars="int", by=by), x="string")
    with open(path / "a.avro", "wb") as sink:
        fastavro.writer(sink, schema, rows)
    return path / "a.avro"


WRITERS = [write_parquet, write_arrow, write_jsonl, write_avro]
Write = Callable[[Path, list[dict[str, Any]]], Path]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("split_bytes", [50, 1 << 20])
def test_a_text_in_a_struct(tmp_path: Path, read: Any, write: Write, split_bytes: int) -> None:
    path = write(tmp_path, ROWS)
    found = read(
        path, text="review.body", keep=["id", "review.by.name"], id="id", nulls="keep", split_bytes=split_bytes
    )
    reviews = [row["review"] or {} for row in ROWS]
    names = [(review.get("by") or {}).get("name") for review in reviews]
    truth = [(n, name, review.get("body")) for n, (name, review) in enumerate(zip(names, reviews, strict=True))]
    assert [tuple(row.values()) for row in found.rows] == truth
    assert list(found.rows[0]) == ["id", "review.by.name", "review.body"]
    strict = read(path, text="review.body", keep=["id"])
    assert [row["review.body"] for row in strict.rows] == [text for _, _, text in truth if text is not None]
    assert [error for _, error in strict.bad] == ["NullText"] * 2


def test_parquet_reads_what_pyarrow_and_duckdb_find(tmp_path: Path, read: Any) -> None:
    path = write_parquet(tmp_path, ROWS)
    found = read(path, text="review.body", keep=["review.stars"], nulls="keep")
    truth = duckdb.sql(f"SELECT review.stars, review.body FROM '{path}'").fetchall()
    assert [tuple(row.values()) for row in found.rows] == truth
    assert pq.read_table(path, columns=["review.body"]).column(0).to_pylist() == [body for _, body in truth]


@pytest.mark.parametrize("write", WRITERS)
def test_without_columns_to_keep_the_struct_is_kept_and_not_doubled(tmp_path: Path, read: Any, write: Write) -> None:
    found = read(write(tmp_path, ROWS), text="review.body", nulls="keep")
    assert [row["review"] for row in found.rows] == [row["review"] for row in ROWS]
    assert [row["review.body"] for row in found.rows] == [(row["review"] or {}).get("body") for row in ROWS]
    provenance = Provenance.of(found.batches[0])
    assert provenance is not None
    assert provenance.transient == ("review.body",)  # not written: the struct has it
    assert all(field.metadata is None for field in found.batches[0].schema)


@pytest.mark.parametrize("write", WRITERS[:3])
def test_a_column_whose_name_holds_the_dot_goes_before(tmp_path: Path, read: Any, write: Write) -> None:
    rows = [{"review.body": "top", "review": {"body": "nested"}}]
    assert read(write(tmp_path, rows), text="review.body", keep=[]).rows == [{"review.body": "top"}]
    rows = [{"a.b": {"c": "yes"}, "a": {"x": 1}}]
    assert read(write(tmp_path, rows), text="a.b.c", keep=[]).rows == [{"a.b.c": "yes"}]


@pytest.mark.parametrize("write", WRITERS)
def test_an_id_in_a_struct_names_rejects(tmp_path: Path, read: Any, write: Write) -> None:
    found = read(write(tmp_path, ROWS), text="review.body", id="review.stars", keep=[])
    assert [(reject.id, reject.error) for reject in found.rejects] == [(None, "NullText"), ("4", "NullText")]


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_no_text_or_no_field_is_told(tmp_path: Path, read: Any, write: Write) -> None:
    path = write(tmp_path, ROWS)
    with pytest.raises(InputError, match=r"text column 'review.stars' of .* is int(32|64), not a string"):
        read(path, text="review.stars")
    fields = "FIELD" if path.suffix == ".jsonl" else r"'review.body', 'review.stars', 'review.by'"
    with pytest.raises(InputError, match=rf"no column 'review.nothing' .*'review' is a struct.*{fields}") as told:
        read(path, text="review.nothing")
    with pytest.raises(InputError, match=rf"text column 'review' of .* is struct.*not a string.*{fields}"):
        read(path, text="review")
    with pytest.raises(InputError, match=r"no column 'x.y'"):
        read(path, text="x.y")
    assert "stars" not in str(told.value) or path.suffix != ".jsonl"


def test_only_the_field_is_read(tmp_path: Path, read: Any) -> None:
    """The weight of a split is that of the field, not of the struct around it."""
    rows = [{"review": {"body": "b", "html": "h" * 5000 + str(n)}} for n in range(500)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50, compression=None, use_dictionary=False)
    plans = [plan_splits(ReadSettings(path=str(path), text=text, keep=[])) for text in ("review.body", "review.html")]
    assert plans[0][0].size * 50 < plans[1][0].size
    assert read(path, text="review.body", keep=[]).rows == [{"review.body": "b"}] * 500


def test_json_lines_of_another_shape_are_rejects(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"r": {"b": "one", "more": 1}}\n{"r": "no struct"}\n{"r": {"b": 5}}\n{"r": {}}\n{"r": {"b": "two"}}\n'
    )
    found = read(tmp_path, text="r.b", keep=[])
    assert found.rows == [{"r.b": "one"}, {"r.b": "two"}]
    assert found.bad == [(2, "TypeError"), (3, "TypeError"), (4, "NullText")]


def test_paths() -> None:
    inner = pa.struct([("b", pa.struct([("c", pa.int8())])), ("b.c", pa.string())])
    schema = pa.schema([("a", inner), ("l", pa.list_(inner)), ("top.b", pa.int8())])
    assert find_path(schema, "a.b") == (("a", "b"), inner.field("b").type)
    assert find_path(schema, "a.b.c") == (("a", "b", "c"), pa.int8())
    for name in ("l.b", "a", "top.b", "a.", ".a", "a.z", "z.a"):
        assert find_path(schema, name) is None
    batch = pa.RecordBatch.from_pylist([{"a": {"b": {"c": 1}, "b.c": "x"}}, {"a": None}], pa.schema([("a", inner)]))
    assert add_nested(batch, ["a.b.c", "z"]).column("a.b.c").to_pylist() == [1, None]
