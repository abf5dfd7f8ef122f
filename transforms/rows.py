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
    names = (*spec.features, "token_count", "truncated")
    return RowTypeConstraint.from_fields([*fields._fields, *((spec.prefix + name, _TYPES[name]) for name in names)])


def text_batch(elements: Sequence[Any], columns: Sequence[str]) -> pa.RecordBatch:
    """The text fields of rows as a record batch."""
    try:
        return pa.record_batch(
            {name: pa.array([getattr(row, name) for row in elements], pa.string()) for name in columns}
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError) as error:
        # The original message may quote a text.
        raise InputError(f"a text field of the rows is not text ({type(error).__name__})") from None


def extend(elements: Sequence[Any], features: pa.RecordBatch) -> Iterator[beam.Row]:
    """Each row with the features of its position."""
    columns = {name: features.column(name).to_pylist() for name in features.schema.names}
    for position, row in enumerate(elements):
        fields = {name: getattr(row, name) for name in _names(row)}
        yield beam.Row(**fields, **{name: column[position] for name, column in columns.items()})


def _names(row: Any) -> Sequence[str]:
    if isinstance(row, beam.Row):
        return list(row.as_dict())
    return [name for name, _ in RowTypeConstraint.from_user_type(type(row))._fields]
