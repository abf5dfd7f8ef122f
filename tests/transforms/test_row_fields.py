"""What elements may be, and rows that become batches of bounded rows and bytes."""

import collections.abc
from typing import Any, NamedTuple, TypedDict

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from distilbeam.transforms.errors import SettingsError
from distilbeam.transforms.row_fields import RowsToBatches, are_dicts, rows_to_batches, weight, wrong_type

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


class Review(NamedTuple):
    id: int
    text: str


class Fields(TypedDict):
    id: int


def batches(rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> list[pa.RecordBatch]:
    making = RowsToBatches(schema, None)
    making.start_bundle()
    found = [batch for row in rows for batch in making.process(row)]
    return found + [last.value for last in making.finish_bundle()]


def test_batches_are_bounded_in_rows() -> None:
    rows = [{"id": number, "text": "a"} for number in range(10_000)]
    found = batches(rows)
    assert [batch.num_rows for batch in found] == [4096, 4096, 1808]
    assert [row for batch in found for row in batch.to_pylist()] == rows


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.string(), "a" * (1 << 20)),
        (pa.binary(), b"a" * (1 << 20)),
        (pa.list_(pa.string()), ["a" * 1024] * 1024),
        (pa.list_(pa.float64()), [0.5] * (1 << 17)),
        (pa.list_(pa.float64()), np.zeros(1 << 17)),
        (pa.struct({"inner": pa.string()}), {"inner": "a" * (1 << 20)}),
        (pa.list_(pa.struct({"inner": pa.binary()})), [{"inner": bytes(1 << 19)}] * 2),
    ],
    ids=lambda each: str(each) if isinstance(each, pa.DataType) else type(each).__name__,
)
def test_batches_are_bounded_in_bytes(kind: pa.DataType, value: Any) -> None:
    """A batch of 4096 such rows would take 4 GiB."""
    found = batches(
        [{"id": number, "value": value} for number in range(40)], SCHEMA.remove(1).append(pa.field("value", kind))
    )
    assert [each for batch in found for each in batch["id"].to_pylist()] == list(range(40))
    assert all(batch.nbytes <= 17 << 20 for batch in found)
    assert len(found) == 3


def test_a_row_that_is_larger_than_a_batch_goes_alone() -> None:
    found = batches([{"id": 1, "text": "a"}, {"id": 2, "text": "a" * (20 << 20)}, {"id": 3, "text": "a"}])
    assert [batch["id"].to_pylist() for batch in found] == [[1], [2], [3]]


def test_a_row_of_numbers_counts_for_one() -> None:
    assert weight([1, 2.5, None, True, "text", np.float32(1)]) == 1


def element_type(kind: Any) -> Any:
    """The type as a PCollection has it."""
    return (beam.Pipeline() | beam.Create([1]) | beam.Map(lambda one: one).with_output_types(kind)).element_type


WRONG = [
    (str, str),
    (tuple[int, str], tuple),
    (tuple[int, ...], tuple),
    (list[str], list),
    (set[str], set),
    (frozenset[str], frozenset),
    (str | None, str),
    (int | str, None),
    (list[int] | None, list),
    (pa.Table, pa.Table),
]


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["no schema", "schema"])
@pytest.mark.parametrize(("kind", "named"), WRONG)
def test_what_is_neither_batch_nor_row_nor_dict(kind: Any, named: type | None, schema: pa.Schema | None) -> None:
    found = wrong_type(element_type(kind))
    assert found is not None
    assert named is None or found is named
    with pytest.raises(SettingsError, match=f"an element is a {found.__name__}; WriteFeatures takes"):
        rows_to_batches(element_type(kind), schema, [])


@pytest.mark.parametrize(
    "kind",
    [
        Any,
        object,
        beam.Row,
        Review,
        Review | None,
        pa.RecordBatch | None,
        str | Review,
        dict,
        dict[str, int],
        collections.abc.Mapping[str, int],
        Fields,
        pa.RecordBatch,
    ],
)
def test_what_may_be_one_of_them(kind: Any) -> None:
    assert wrong_type(element_type(kind)) is None


@pytest.mark.parametrize("kind", [dict, dict[str, int], collections.abc.Mapping[str, int], Fields])
def test_dicts_need_a_schema_to_be_written(kind: Any) -> None:
    kind = element_type(kind)
    assert are_dicts(kind)
    with pytest.raises(SettingsError, match="dicts do not tell the types of their columns"):
        rows_to_batches(kind, None, [])
    made = rows_to_batches(kind, SCHEMA, [])
    assert made is not None
    assert made.schema == SCHEMA
