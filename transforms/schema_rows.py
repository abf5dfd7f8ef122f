"""PCollections with a Beam schema: their text as a record batch, their rows with new fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.typehints.row_type import RowTypeConstraint

from .errors import InputError, SettingsError
from .featurization import FeatureSpec

__all__ = ["check_fields", "extend", "output_type", "text_batch"]

# Null where a row has no text or could not be processed.
_TYPES: dict[str, Any] = {
    "embedding": Sequence[np.float32] | None,
    "label": str | None,
    "score": np.float32 | None,
    "scores": Mapping[str, np.float32] | None,
    "input_ids": Sequence[np.int32] | None,
    "token_count": np.int32 | None,
    "truncated": bool | None,
}


def check_fields(fields: RowTypeConstraint, text: Sequence[str], added: Sequence[str]) -> None:
    """Raise if rows lack a text field or have a field that is to be added.

    Raises:
        SettingsError: naming the field and the cure.
    """
    known = [name for name, _ in fields._fields]
    for name in text:
        if name not in known:
            raise SettingsError(f"the rows have no text field {name!r}; their fields are {', '.join(known)}")
    for name in added:
        if name in known:
            raise SettingsError(f"the rows have a field {name!r} already; set prefix to name the features otherwise")


def output_type(fields: RowTypeConstraint, spec: FeatureSpec) -> RowTypeConstraint:
    """The schema of the rows with the features' fields."""
    added = [(column, _TYPES[name]) for column, name in zip(spec.columns, spec.names, strict=True)]
    return RowTypeConstraint.from_fields([*fields._fields, *added])


def text_batch(elements: Sequence[Any], columns: Sequence[str]) -> pa.RecordBatch:
    """The text fields of rows as a record batch; a text that UTF-8 cannot hold is null.

    Raises:
        InputError: a value is not a string.
    """
    return pa.record_batch({name: _strings([getattr(row, name) for row in elements], name) for name in columns})


def without_text(elements: Sequence[Any], columns: Sequence[str]) -> int:
    """Number of rows whose text fields are all null."""
    return sum(all(getattr(row, name) is None for name in columns) for row in elements)


def extend(elements: Sequence[Any], names: Sequence[str], features: pa.RecordBatch) -> Iterator[beam.Row]:
    """Each row, with the fields ``names``, and the features of its position."""
    columns = {name: features.column(name).to_pylist() for name in features.schema.names}
    for position, row in enumerate(elements):
        fields = {name: getattr(row, name) for name in names}
        yield beam.Row(**fields, **{name: column[position] for name, column in columns.items()})


def _strings(values: list[Any], name: str) -> pa.Array:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise InputError(f"the text field {name!r} of a row is a {type(value).__name__}; it must be a string")
    try:
        return pa.array(values, pa.string())
    except UnicodeError:
        return pa.array([value if value is not None and _is_utf8(value) else None for value in values], pa.string())


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True
