"""PCollections with a Beam schema: their text as a record batch, their rows with new fields."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_type_hints

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.typehints.row_type import RowTypeConstraint

from .errors import SettingsError
from .featurization import FeatureSpec

__all__ = ["check_fields", "extend", "output_type", "text_batch", "weight", "without_text"]

_TYPES: dict[str, Any] = {
    "embedding": Sequence[np.float32],
    "label": str,
    "score": np.float32,
    "scores": Mapping[str, np.float32],  # no row type, since the names of the labels may be known on the worker alone
    "input_ids": Sequence[np.int32],
    "token_count": np.int32,
    "truncated": bool,
}


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
            raise SettingsError(f"the rows have a field {name!r} already; set prefix to name the features otherwise")


def output_type(fields: RowTypeConstraint, spec: FeatureSpec) -> RowTypeConstraint:
    """The schema of the rows with the features' fields.

    Every type of Python that Beam's schemas have comes out as that, also where Beam itself takes it for an unknown one:
    ``X | None``, and annotations that are strings.
    """
    hints = _hints(fields)
    own = [(name, _portable(hints.get(name, kind))) for name, kind in fields._fields]
    # Null where a row has no text or could not be processed.
    added = [(column, _union(_TYPES[name], None)) for column, name in zip(spec.columns, spec.names, strict=True)]
    return RowTypeConstraint.from_fields([*own, *added])


def weight(columns: Sequence[str], row: Any) -> int:
    """What a row counts for where rows are gathered into batches: 1, and more if its text is long."""
    return 1 + sum(len(text) for name in columns if isinstance(text := getattr(row, name), str)) // 4096


def text_batch(elements: Sequence[Any], columns: Sequence[str]) -> pa.RecordBatch:
    """The text fields of rows as a record batch.

    A row with a text that is no string, or one that UTF-8 cannot hold, has only nulls.
    """
    texts = [[getattr(row, name) for name in columns] for row in elements]
    texts = [row if all(text is None or isinstance(text, str) for text in row) else [None] * len(row) for row in texts]
    try:
        return _batch(texts, columns)
    except UnicodeError:
        return _batch([row if all(map(_is_utf8, row)) else [None] * len(row) for row in texts], columns)


def without_text(elements: Sequence[Any], columns: Sequence[str]) -> int:
    """Number of rows whose text fields are all null."""
    return sum(all(getattr(row, name) is None for name in columns) for row in elements)


def extend(elements: Sequence[Any], names: Sequence[str], features: pa.RecordBatch) -> Iterator[beam.Row]:
    """Each row, with the fields ``names``, and the features of its position."""
    columns = {name: features.column(name).to_pylist() for name in features.schema.names}
    for position, row in enumerate(elements):
        fields = {name: getattr(row, name) for name in names}
        yield beam.Row(**fields, **{name: column[position] for name, column in columns.items()})


def _hints(fields: RowTypeConstraint) -> dict[str, Any]:
    """What annotations stand for that are strings, as under ``from __future__ import annotations``."""
    if not any(isinstance(kind, str) for _, kind in fields._fields):
        return {}
    try:
        return get_type_hints(fields.user_type)
    except Exception:  # a name that is not defined where the class is
        return {}


def _portable(kind: Any) -> Any:
    """The type as Beam's schemas know it: ``Union[X, None]`` for ``X | None``, which they take for an unknown one."""
    if isinstance(kind, types.UnionType):
        return _union(*map(_portable, kind.__args__))
    if isinstance(kind, types.GenericAlias):
        origin: Any = kind.__origin__
        return origin[tuple(map(_portable, kind.__args__))]
    return kind


def _union(*kinds: Any) -> Any:
    return Union[kinds]  # noqa: UP007 - another type than that of X | Y until Python 3.14


def _batch(rows: list[list[Any]], columns: Sequence[str]) -> pa.RecordBatch:
    values = zip(*rows, strict=True) if rows else [()] * len(columns)
    return pa.record_batch([pa.array(texts, pa.string()) for texts in values], list(columns))


def _is_utf8(text: str | None) -> bool:
    try:
        (text or "").encode()
    except UnicodeError:
        return False
    return True
