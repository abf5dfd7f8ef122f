"""Fields of rows and dicts, and their types in Beam's schemas and in Arrow."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union, get_type_hints

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.portability.api import schema_pb2
from apache_beam.typehints import typehints
from apache_beam.typehints.arrow_type_compatibility import arrow_schema_from_beam_schema
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import schema_from_element_type
from apache_beam.utils.timestamp import Timestamp

from .discretion import discreet
from .errors import InputError, SettingsError
from .halving import find_failing
from .provenance import Provenance, Reject

__all__ = [
    "FEATURE_TYPES",
    "RowsToBatches",
    "are_dicts",
    "arrow_schema",
    "fields_of",
    "nullable",
    "portable_fields",
    "rows_to_batches",
    "weight",
    "wrong_element",
    "wrong_type",
]

FEATURE_TYPES: dict[str, Any] = {
    "embedding": Sequence[np.float32],
    "label": str,
    "score": np.float32,
    "scores": Mapping[str, np.float32],  # no row type, since the names of the labels may be known on the worker alone
    "input_ids": Sequence[np.int32],
    "token_count": np.int32,
    "truncated": bool,
}
"""Types of the fields that features are."""

_BATCH_WEIGHT = 4096
"""Rows of a batch, fewer where they are long; see ``weight``."""

_SCALARS = frozenset({type(None), bool, int, float})
_INSTANTS = ("beam:logical_type:micros_instant:v1", "beam:logical_type:millis_instant:v1")


def nullable(kind: Any) -> Any:
    """The type or null, as Beam's schemas know it."""
    return _union(kind, None)


def portable_fields(fields: RowTypeConstraint) -> list[tuple[str, Any]]:
    """Names and types of the fields, each as Beam's schemas know it.

    They take ``X | None`` and annotations that are strings, as under ``from __future__ import annotations``, for types
    that they do not know.
    """
    hints: dict[str, Any] = {}
    if any(isinstance(kind, str) for _, kind in fields._fields):
        try:
            hints = get_type_hints(fields.user_type)
        except Exception:  # a name that is not defined where the class is
            hints = {}
    return [(name, _portable(hints.get(name, kind))) for name, kind in fields._fields]


def _portable(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        return _union(*map(_portable, kind.__args__))
    if isinstance(kind, types.GenericAlias):
        origin: Any = kind.__origin__
        return origin[tuple(map(_portable, kind.__args__))]
    return kind


def _union(*kinds: Any) -> Any:
    return Union[kinds]  # noqa: UP007 - another type than that of X | Y until Python 3.14


def fields_of(element: Any, names: Sequence[str] | None = None) -> Mapping[str, Any] | None:
    """Values of a row by field; None where the element is neither a row nor a dict.

    Args:
        element: a ``beam.Row``, NamedTuple, dataclass or dict.
        names: the fields it has, if its PCollection has a schema.
    """
    if isinstance(element, beam.Row) and (names is None or tuple(vars(element)) == names):
        return vars(element)
    if names is not None:
        return {name: getattr(element, name) for name in names}
    if isinstance(element, Mapping):
        return element
    if isinstance(element, tuple) and hasattr(element, "_fields"):
        return dict(zip(element._fields, element, strict=True))
    if dataclasses.is_dataclass(element) and not isinstance(element, type):
        return {field.name: getattr(element, field.name) for field in dataclasses.fields(element)}
    return None


def weight(values: Iterable[Any]) -> int:
    """What a row of these values counts for where rows are gathered into batches: 1, and 1 more for each 4 KiB."""
    return (4096 + sum(map(_size, values))) // 4096


def _size(value: Any) -> int:
    """About how many bytes a value takes in a column."""
    if value is None or isinstance(value, bool | int | float):
        return 0 if value is None else 8
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, list) and _SCALARS.issuperset(map(type, value)):
        return 8 * len(value)  # as vectors are
    if isinstance(fields := fields_of(value), Mapping):
        return sum(map(_size, fields)) + sum(map(_size, fields.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return sum(map(_size, value))
    size = getattr(value, "nbytes", 8)  # of arrays
    return size if isinstance(size, int) else 8


def arrow_schema(fields: Sequence[tuple[str, Any]], given: pa.Schema | None = None) -> pa.Schema:
    """The columns of rows with these fields, those of ``given`` before all others of their name.

    Raises:
        SettingsError: a field is of a type that Arrow does not have; it names the field and the cure.
    """
    found = {field.name: field for field in given or ()}
    for name, kind in fields:
        if name not in found:
            found[name] = pa.field(name, _arrow_type(name, kind))
    order = [*dict(fields), *(name for name in found if name not in dict(fields))]
    return pa.schema([found[name] for name in order])


def _arrow_type(name: str, kind: Any) -> pa.DataType:
    (field,) = schema_from_element_type(RowTypeConstraint.from_fields([(name, kind)])).fields
    if field.type.WhichOneof("type_info") == "logical_type" and field.type.logical_type.urn in _INSTANTS:
        return pa.timestamp("us", "UTC")
    try:
        # Only the type: a null in a field that should have none is for the reader to judge.
        return arrow_schema_from_beam_schema(schema_pb2.Schema(fields=[field], id="one")).field(0).type
    except (NotImplementedError, ValueError, TypeError):
        raise SettingsError(
            f"the type of the field {name!r} is not known to Arrow; give it by WriteFeatures(schema=pa.schema([...])), "
            "or leave the field out"
        ) from None


def are_dicts(kind: Any) -> bool:
    """Whether the type of elements is one of dicts."""
    if isinstance(kind, typehints.DictHint.DictConstraint | typehints.MappingHint.MappingTypeConstraint):
        return True
    return isinstance(kind, type) and issubclass(kind, Mapping)


def wrong_type(kind: Any) -> type | None:
    """The type of elements if it is known, and is none of batches, rows or dicts."""
    if isinstance(kind, typehints.UnionHint.UnionConstraint):
        members = [wrong_type(member) for member in kind.inner_types() if member is not type(None)]
        return next(iter(members), None) if all(members) else None
    for constraint, made in _COLLECTIONS.items():
        if isinstance(kind, constraint):
            return made
    if not isinstance(kind, type) or issubclass(kind, pa.RecordBatch) or are_dicts(kind):
        return None
    # Beam types what Create makes of timestamped values as if they were still wrapped.
    unknown = kind in (object, beam.Row, beam.window.TimestampedValue)
    return None if unknown or RowTypeConstraint.from_user_type(kind) is not None else kind


_COLLECTIONS: dict[type, type] = {
    typehints.TupleHint.TupleConstraint: tuple,
    typehints.TupleHint.TupleSequenceConstraint: tuple,
    typehints.ListHint.ListConstraint: list,
    typehints.SetHint.SetTypeConstraint: set,
    typehints.FrozenSetHint.FrozenSetTypeConstraint: frozenset,
}


def wrong_element(kind: type) -> str:
    """What is told of an element that cannot be written."""
    return (
        f"an element is a {kind.__name__}; WriteFeatures takes pyarrow record batches, rows with a Beam schema "
        "(NamedTuple, dataclass, or beam.Row with known fields), and dicts or other rows with "
        "WriteFeatures(schema=pa.schema([...]))"
    )


def rows_to_batches(kind: Any, schema: pa.Schema | None, added: Sequence[tuple[str, Any]]) -> RowsToBatches | None:
    """What makes batches of the elements of a PCollection; None where they are batches, or nothing is known of them.

    Args:
        kind: type of the elements.
        schema: columns that the user has named.
        added: fields that features are.

    Raises:
        SettingsError: the elements can be neither written nor made into batches.
    """
    if isinstance(kind, type) and kind is not object and issubclass(pa.RecordBatch, kind):
        return None
    fields = RowTypeConstraint.from_user_type(kind) or kind
    if isinstance(fields, RowTypeConstraint):
        return RowsToBatches(arrow_schema(portable_fields(fields), schema), tuple(name for name, _ in fields._fields))
    if (wrong := wrong_type(fields)) is not None:
        raise SettingsError(wrong_element(wrong))
    if schema is not None:
        return RowsToBatches(arrow_schema(added, schema), None)
    if are_dicts(fields):
        raise SettingsError(
            "dicts do not tell the types of their columns; give WriteFeatures(schema=pa.schema([...])) all but those "
            "of the features, or make rows with a Beam schema of them, such as NamedTuples"
        )
    return None


class RowsToBatches(beam.DoFn):
    """Rows or dicts -> record batches of one schema, in the global window; batches go through.

    A row with a value that is not of its column's type is left out, and told by a reject of the batch.

    Args:
        schema: columns and types.
        names: the fields of a row; None where the PCollection has no schema.
    """

    def __init__(self, schema: pa.Schema, names: tuple[str, ...] | None) -> None:
        self.schema = schema
        self._names = names

    def start_bundle(self) -> None:
        self._rows: list[Mapping[str, Any]] = []
        self._weight = 0

    @discreet
    def process(self, element: Any) -> Iterator[pa.RecordBatch]:
        if isinstance(element, pa.RecordBatch):
            yield element
            return
        fields = fields_of(element, self._names)
        if fields is None:
            raise SettingsError(wrong_element(type(element)))
        if self._names is None and (unknown := fields.keys() - set(self.schema.names)):
            raise SettingsError(
                f"a row has a field {min(map(str, unknown))!r} that `schema` lacks; name it there, or leave it out"
            )
        added = weight(map(fields.get, self.schema.names))
        if self._rows and self._weight + added > _BATCH_WEIGHT:
            self._weight = 0
            yield self._batch()
        self._rows.append(fields)
        self._weight += added

    @discreet
    def finish_bundle(self) -> Iterator[Any]:
        if self._rows:
            yield beam.window.GlobalWindows.windowed_value_at_end_of_window(self._batch())

    def _batch(self) -> pa.RecordBatch:
        rows, self._rows = self._rows, []
        batch, rejects = _fitting(rows, self.schema)
        # Splits are counted from 1 in a plan: 0 of them, since nobody knows where these rows come from.
        return Provenance("", "", splits=0, rejects=rejects).attach(batch) if rejects else batch


def _fitting(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> tuple[pa.RecordBatch, tuple[Reject, ...]]:
    """The rows whose values fit into the columns, and the others as rejects."""
    columns: list[pa.Array] = []
    bad: dict[int, Reject] = {}
    for field in schema:
        try:
            columns.append(_column(field, rows))
        except Exception:  # of whatever kind: values may be of any class
            bad = {**_misfits(field, rows), **bad}
    if len(columns) < len(schema):
        rows = [row for position, row in enumerate(rows) if position not in bad]
        columns = [_fitting_column(field, rows) for field in schema]
    return pa.record_batch(columns, schema=schema), tuple(bad[position] for position in sorted(bad))


def _misfits(field: pa.Field, rows: Sequence[Mapping[str, Any]]) -> dict[int, Reject]:
    def failure(part: npt.NDArray[np.int64]) -> str | None:
        try:
            _column(field, [rows[position] for position in part])
        except Exception as error:
            return type(error).__name__
        return None

    return {
        position: Reject.of(
            "write",
            error,
            f"the field {field.name!r} holds a value of type {type(rows[position].get(field.name)).__name__} that is "
            f"no {field.type}; its type is given by WriteFeatures(schema=pa.schema([...]))",
        )
        for position, error in find_failing(np.arange(len(rows)), failure, known=True).items()
    }


def _fitting_column(field: pa.Field, rows: Sequence[Mapping[str, Any]]) -> pa.Array:
    try:
        return _column(field, rows)
    except Exception as error:  # each alone is well, as of more values than a dictionary has indices for
        raise InputError(
            f"the field {field.name!r} holds values that together are no {field.type} ({type(error).__name__}); give "
            "its type by WriteFeatures(schema=pa.schema([...]))"
        ) from None


def _column(field: pa.Field, rows: Sequence[Mapping[str, Any]]) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    if pa.types.is_timestamp(field.type):
        values = [value.to_utc_datetime(has_tz=True) if isinstance(value, Timestamp) else value for value in values]
    column = pa.array(values, field.type)
    # Arrow widens the indices of a dictionary that has too many values.
    return column if column.type == field.type else column.cast(field.type)
