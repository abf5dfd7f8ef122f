"""Rows with a Beam schema: their text as a batch, and the rows again with new fields."""

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.dataframe.schemas import generate_proxy
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import schema_from_element_type

from distilbeam.transforms.errors import SettingsError
from distilbeam.transforms.featurization import FEATURES, FeatureSpec
from distilbeam.transforms.row_fields import fields_of
from distilbeam.transforms.schema_rows import (
    check_fields,
    check_row,
    extended,
    output_type,
    text_batch,
    weight,
)


class Review(NamedTuple):
    id: int
    review: str | None


@dataclass
class Post:
    id: int
    review: str | None


ROWS = [beam.Row, Review, Post]
FIELDS = RowTypeConstraint.from_fields([("id", int), ("review", str)])


@pytest.mark.parametrize("row", [*ROWS, dict])
def test_texts_of_rows(row: Any) -> None:
    elements = [row(id=1, review="a"), row(id=2, review=None), row(id=3, review="中")]
    rows = [fields_of(element) for element in elements]
    assert rows == [{"id": 1, "review": "a"}, {"id": 2, "review": None}, {"id": 3, "review": "中"}]
    if row is not dict:
        assert rows == [fields_of(element, ("id", "review")) for element in elements]
    batch, failed = text_batch(rows, ["review"])
    assert batch.to_pydict() == {"review": ["a", None, "中"]}
    assert batch.schema.field("review").type == pa.string()
    assert not failed
    assert text_batch([], ["review"])[0].num_rows == 0


@pytest.mark.parametrize("element", ["text", 3, ("a", "b"), ["a"], None, Post])
def test_what_is_no_row_has_no_fields(element: Any) -> None:
    assert fields_of(element) is None


@pytest.mark.parametrize("text", [3, b"private words", ["private words"], 2.5])
def test_a_row_whose_field_is_not_text_has_none(text: Any) -> None:
    rows = [{"review": "fine", "title": "a"}, {"review": text, "title": "b"}, {"review": "good", "title": None}]
    batch, failed = text_batch(rows, ["review", "title"])
    assert batch.to_pydict() == {"review": ["fine", None, "good"], "title": ["a", None, None]}
    reason = f"the text field 'review' is of type {type(text).__name__}; it must be a string"
    assert failed == {1: ("text", "TypeError", reason)}


def test_a_text_that_utf8_cannot_hold_has_no_text() -> None:
    rows = [{"review": text} for text in ("fine", "lone \ud800", None, "good")]
    batch, failed = text_batch(rows, ["review"])
    assert batch["review"].to_pylist() == ["fine", None, None, "good"]
    assert [(position, error) for position, (_, error, _) in failed.items()] == [(1, "UnicodeEncodeError")]


VECTORS = [[0.5, -1.25], None, [3.0, 0.0], [0.0, 2.0]]
COLUMNS = [
    pa.array(VECTORS, pa.list_(pa.float32(), 2)),
    pa.array(VECTORS, pa.list_(pa.float16(), 2)),
    pa.array(VECTORS, pa.list_(pa.float32())),
    pa.array([[1, 2, 3], [], None, [4]], pa.list_(pa.int32())),
    pa.array([{"A": 0.5, "B": 0.25}, None, {"A": 1.0, "B": None}, {"A": 0.0, "B": 0.75}]),
    pa.array([0.1, None, 3.5, 2.0], pa.float32()),
    pa.array([1, 2, None, 3], pa.int32()),
    pa.array([True, False, None, True]),
    pa.array(["A", None, "B", "A"]),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
def test_rows_keep_their_fields_and_get_the_features_of_their_position(column: pa.Array) -> None:
    """Against Arrow's own Python values, also of slices."""
    for part in (column, column.slice(1, 2), column.slice(2), column.slice(0, 1), column.slice(0, 0)):
        features = pa.record_batch({"feature": part, "again": part})
        rows = [{"id": number} for number in range(len(part))]
        expected = [{"id": number, "feature": v, "again": v} for number, v in enumerate(part.to_pylist())]
        assert list(extended(rows, features)) == expected


def test_a_row_without_a_schema_is_checked() -> None:
    check_row({"id": 1, "review": None}, ["review"], ["label"])
    with pytest.raises(SettingsError, match="no text field 'text'; of its 2 columns 'texts' is named most like it"):
        check_row({"id": 1, "texts": "private"}, ["text"], ["label"])
    with pytest.raises(SettingsError, match="a field 'id' already; set `prefix`"):
        check_row({"id": 1, "review": "a"}, ["review"], ["id"])


def test_fields_are_checked() -> None:
    check_fields(FIELDS, ["review"], ["label"])
    with pytest.raises(SettingsError, match="no text field 'text'; their fields are id, review"):
        check_fields(FIELDS, ["text"], ["label"])
    with pytest.raises(SettingsError, match="have a field 'id' already; set `prefix`"):
        check_fields(FIELDS, ["review"], ["id"])
    with pytest.raises(SettingsError, match="the text field 'id' is of type int; it must be a string"):
        check_fields(FIELDS, ["id"], ["label"])


@pytest.mark.parametrize("kind", [str, str | None, Any, object])
def test_fields_that_may_hold_text(kind: Any) -> None:
    check_fields(RowTypeConstraint.from_fields([("review", kind)]), ["review"], ["label"])


def test_long_texts_weigh_more() -> None:
    rows = [row(a=text, b="x") for row in (dict, beam.Row) for text in ("", None, 5, "y" * 4095, "y" * 50_000_000)]
    assert [weight(row, ["a", "b"]) for row in rows] == 2 * [
        *(1, 1, 1, 2),
        12_208,
    ]


def test_the_schema_of_the_output() -> None:
    fields = dict(output_type(FIELDS, FeatureSpec(FEATURES, prefix="m_"))._fields)
    assert list(fields) == ["id", "review", *("m_" + name for name in (*FEATURES, "token_count", "truncated"))]
    schema = output_type(FIELDS, FeatureSpec(FEATURES))
    coder = beam.coders.RowCoder.from_type_hint(schema, None)
    row = beam.Row(
        id=1,
        review="a",
        embedding=[0.5, 1.5],
        label="A",
        score=0.25,
        scores={"A": 0.25, "B": 0.75},
        input_ids=[2, 3],
        token_count=2,
        truncated=False,
    )
    decoded = coder.decode(coder.encode(row))
    assert (list(decoded.embedding), decoded.scores, list(decoded.input_ids)) == ([0.5, 1.5], row.scores, [2, 3])
    empty = beam.Row(**(dict.fromkeys(row.as_dict()) | {"id": 1, "review": "a"}))
    assert coder.decode(coder.encode(empty)).embedding is None
    assert np.float32(0.25) == decoded.score


FULL = {
    "embedding": [0.5, 1.5],
    "label": "A",
    "score": 0.25,
    "scores": {"A": 0.25, "B": 0.75},
    "input_ids": [2, 3],
    "token_count": 2,
    "truncated": False,
}


@pytest.mark.parametrize("kind", [Post, make_dataclass("Late", [("id", "int"), ("review", "str | None")])])
def test_every_field_has_a_type_that_other_languages_know(kind: Any) -> None:
    schema = schema_from_element_type(output_type(RowTypeConstraint.from_user_type(kind), FeatureSpec(FEATURES)))
    found = {field.name: field.type for field in schema.fields}
    assert set(found) == {"id", "review", *FULL}
    assert {field.WhichOneof("type_info") for field in found.values()} == {"atomic_type", "array_type", "map_type"}
    assert [name for name, field in found.items() if not field.nullable] == ["id"]


def test_the_union_of_a_nested_type() -> None:
    fields = RowTypeConstraint.from_fields([("tags", list[str | None])])
    (field, *_) = schema_from_element_type(output_type(fields, FeatureSpec(("label",)))).fields
    assert field.type.array_type.element_type.WhichOneof("type_info") == "atomic_type"


def test_rows_go_into_parquet_and_data_frames(tmp_path: Path) -> None:
    schema = output_type(RowTypeConstraint.from_user_type(Post), FeatureSpec(FEATURES))
    rows = [beam.Row(id=1, review="a", **FULL), beam.Row(id=2, review=None, **dict.fromkeys(FULL))]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = pipeline | beam.Create(rows).with_output_types(schema)
        _ = found | beam.io.WriteToParquet(str(tmp_path / "rows"), file_name_suffix=".parquet")
    # What ``to_dataframe`` makes of it, which pandas 3 does not let us import.
    assert list(generate_proxy(schema).columns) == ["id", "review", *FULL]
    (file,) = tmp_path.glob("rows*")
    table = pq.read_table(file).sort_by("id")
    assert table.schema.field("embedding").type.value_type == pa.float32()
    assert table.schema.field("token_count").type == pa.int32()
    first, second = table.to_pylist()
    assert first | {"scores": dict(first["scores"])} == {"id": 1, "review": "a", **FULL}
    assert second == {"id": 2, "review": None, **dict.fromkeys(FULL)}
