"""Rows and dicts of a PCollection: their text as a record batch, and the same again with new fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints.row_type import RowTypeConstraint

from . import row_fields
from .errors import SettingsError
from .featurization import Failure, FeatureSpec
from .names import columns_like
from .row_fields import FEATURE_TYPES, nullable, portable_fields

__all__ = ["check_fields", "check_row", "extended", "output_type", "text_batch", "weight"]


def check_fields(fields: RowTypeConstraint, text: Sequence[str], added: Sequence[str]) -> None:
    """Raise if rows lack a text field or have a field that is to be added.

    Raises:
        SettingsError: naming the field and the cure.
    """
    known = dict(fields._fields)
    for name in text:
        if name not in known:
            raise SettingsError(f"the rows have no text field {name!r}; their fields are {', '.join(known)}")
        kind = known[name]
        if kind is not Any and isinstance(kind, type) and not issubclass(str, kind):
            raise SettingsError(f"the text field {name!r} is of type {kind.__name__}; it must be a string")
    for name in added:
        if name in known:
            raise SettingsError(f"the rows have a field {name!r} already; set `prefix` to name the features otherwise")


def output_type(fields: RowTypeConstraint, spec: FeatureSpec) -> RowTypeConstraint:
    """The schema of the rows with the features' fields, null where a row has no text or could not be processed."""
    added = [(column, nullable(FEATURE_TYPES[name])) for column, name in zip(spec.columns, spec.names, strict=True)]
    return RowTypeConstraint.from_fields([*portable_fields(fields), *added])


def check_row(row: Mapping[str, Any], text: Sequence[str], added: Sequence[str]) -> None:
    """Raise as ``check_fields`` does, for a row of which nothing was known when the pipeline was built.

    Raises:
        SettingsError: naming the field and the cure.
    """
    for name in text:
        if name not in row:
            raise SettingsError(
                f"a row has no text field {name!r}; {columns_like(name, list(map(str, row)))}; set text to the fields "
                "that hold it"
            )
    for name in added:
        if name in row:
            raise SettingsError(f"a row has a field {name!r} already; set `prefix` to name the features otherwise")


def weight(element: Any, columns: Sequence[str]) -> int:
    """What a row or dict counts for where rows are gathered into batches: 1, and more if its texts are long."""
    if isinstance(element, Mapping):
        return row_fields.weight(map(element.get, columns))
    return row_fields.weight(getattr(element, name, None) for name in columns)


def text_batch(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> tuple[pa.RecordBatch, dict[int, Failure]]:
    """The text fields of rows as a record batch, and the rows whose texts cannot be read, with the reason.

    Those have only nulls in the batch: a text that is no string, or one that UTF-8 cannot hold. A dict without a field
    has no text in it, as if the field were null.
    """
    texts = [[row.get(name) for row in rows] for name in columns]
    failed: dict[int, Failure] = {}
    try:
        if all(set(map(type, column)) <= {str, type(None)} for column in texts):
            return _batch(texts, columns), failed
    except UnicodeError:
        pass
    for name, column in zip(columns, texts, strict=True):
        for position, text in enumerate(column):
            if (failure := _failure(name, text)) is not None:
                failed.setdefault(position, failure)
    for column in texts:
        for position in failed:
            column[position] = None
    return _batch(texts, columns), failed


def extended(rows: Sequence[Mapping[str, Any]], features: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The fields of each row, and the features of its position as plain Python values."""
    names = features.schema.names
    for row, values in zip(rows, zip(*map(_values, features.columns), strict=True), strict=True):
        fields = dict(row)
        fields.update(zip(names, values, strict=True))
        yield fields


def _batch(texts: Sequence[Sequence[str | None]], columns: Sequence[str]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(column, pa.string()) for column in texts], list(columns))


def _failure(name: str, text: Any) -> Failure | None:
    if text is not None and not isinstance(text, str):
        return "text", "TypeError", f"the text field {name!r} is of type {type(text).__name__}; it must be a string"
    try:
        (text or "").encode()
    except UnicodeError as error:
        return "text", type(error).__name__, f"the text field {name!r} holds what UTF-8 cannot encode"
    return None


def _values(column: pa.Array) -> Sequence[Any]:
    """What ``to_pylist`` gives, without an object of Arrow for every number."""
    kind = column.type
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        rows: Iterator[Any] = zip(*map(_values, column.flatten()), strict=True)
        values: list[Any] = [dict(zip(names, row, strict=True)) for row in rows]
        return _with_nulls(values, column)
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        numbers = column.flatten().to_numpy(zero_copy_only=False)  # without those of null lists
        if pa.types.is_fixed_size_list(kind):
            found = iter(numbers.reshape(-1, kind.list_size).tolist())
            return [next(found) if valid else None for valid in _valid(column)]
        ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy()).tolist()
        flat = numbers.tolist()
        values = [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return _with_nulls(values, column)
    if column.null_count or not pa.types.is_primitive(kind):
        listed: list[Any] = column.to_pylist()
        return listed
    plain: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return plain


def _with_nulls(values: list[Any], column: pa.Array) -> list[Any]:
    if not column.null_count:
        return values
    return [value if valid else None for value, valid in zip(values, _valid(column), strict=True)]


def _valid(column: pa.Array) -> list[bool]:
    valid: list[bool] = column.is_valid().to_numpy(zero_copy_only=False).tolist()
    return valid
