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
from distilbeam.transforms.schema_rows import check_fields, extend, output_type, text_batch, weight, without_text


class Review(NamedTuple):
    id: int
    review: str | None


@dataclass
class Post:
    id: int
    review: str | None


ROWS = [beam.Row, Review, Post]
FIELDS = RowTypeConstraint.from_fields([("id", int), ("review", str)])


@pytest.mark.parametrize("row", ROWS)
def test_texts_of_rows(row: Any) -> None:
    batch = text_batch([row(id=1, review="a"), row(id=2, review=None), row(id=3, review="中")], ["review"])
    assert batch.to_pydict() == {"review": ["a", None, "中"]}
    assert batch.schema.field("review").type == pa.string()
    assert text_batch([], ["review"]).num_rows == 0


@pytest.mark.parametrize("text", [3, b"private words", ["private words"], 2.5])
def test_a_row_whose_field_is_not_text_has_none(text: Any) -> None:
    rows = [beam.Row(review="fine", title="a"), beam.Row(review=text, title="b"), beam.Row(review="good", title=None)]
    batch = text_batch(rows, ["review", "title"])
    assert batch.to_pydict() == {"review": ["fine", None, "good"], "title": ["a", None, None]}
    assert without_text(rows, ["review", "title"]) == 0


def test_a_text_that_utf8_cannot_hold_has_no_text() -> None:
    rows = [beam.Row(review=text) for text in ("fine", "lone \ud800", None, "good")]
    assert text_batch(rows, ["review"])["review"].to_pylist() == ["fine", None, None, "good"]
    assert without_text(rows, ["review"]) == 1


@pytest.mark.parametrize("row", ROWS)
def test_rows_keep_their_fields_and_get_the_features_of_their_position(row: Any) -> None:
    features = pa.record_batch({"label": ["A", None], "score": pa.array([0.5, None], pa.float32())})
    rows = list(extend([row(id=1, review="a"), row(id=2, review=None)], ("id", "review"), features))
    assert rows == [
        beam.Row(id=1, review="a", label="A", score=0.5),
        beam.Row(id=2, review=None, label=None, score=None),
    ]


def test_fields_are_checked() -> None:
    check_fields(FIELDS, ["review"], ["label"])
    with pytest.raises(SettingsError, match="no text field 'text'; their fields are id, review"):
        check_fields(FIELDS, ["text"], ["label"])
    with pytest.raises(SettingsError, match="have a field 'id' already; set prefix"):
        check_fields(FIELDS, ["review"], ["id"])
    with pytest.raises(SettingsError, match="the text field 'id' is of type int; it must be a string"):
        check_fields(FIELDS, ["id"], ["label"])


@pytest.mark.parametrize("kind", [str, str | None, Any, object])
def test_fields_that_may_hold_text(kind: Any) -> None:
    check_fields(RowTypeConstraint.from_fields([("review", kind)]), ["review"], ["label"])


def test_long_texts_weigh_more() -> None:
    assert [weight(["a", "b"], beam.Row(a=a, b="x")) for a in ("", None, 5, "y" * 4095, "y" * 50_000_000)] == [
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
