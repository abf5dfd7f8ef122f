"""Setting aside rows that a file format cannot hold, before they are written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distilbeam.transforms.errors import OutputError
from distilbeam.transforms.halving import find_failing
from distilbeam.transforms.provenance import ROW, Provenance, Reject

from .jsonlines import to_jsonl

__all__ = ["set_aside"]

_NAMES = {"parquet": "Parquet", "jsonl": "JSON Lines"}


def set_aside(batch: pa.RecordBatch, provenance: Provenance, format: str) -> tuple[pa.RecordBatch, Provenance]:
    """The rows that can be written, and the provenance with the others as rejects of the stage ``write``.

    Those are rows with text that is no UTF-8, which no reader would take, with times that the format cannot tell, and
    with nulls where the column allows none. Only columns that may hold such a value are looked at.

    Args:
        batch: rows with their positions in ``ROW``.
        provenance: that of the batch; its ``transient`` columns are not written.
        format: ``parquet`` or ``jsonl``.

    Raises:
        OutputError: a column is of a type that the format does not have.
    """
    names = [field.name for field in batch.schema if field.name != ROW and field.name not in provenance.transient]
    texts = [name for name in names if _holds(batch.schema.field(name), _is_text)]
    doubtful = _holds_odd_time if format == "jsonl" else _holds_doubt
    odd = [
        name
        for name in names
        # Whether a column that may hold no null does so is known without a look at its values.
        if _holds(batch.schema.field(name).with_nullable(not batch.column(name).null_count), doubtful)
    ]
    if not batch.num_rows or not (texts or odd):
        return batch, provenance

    def fails(rows: npt.NDArray[np.int64] | None, texts: list[str], odd: list[str]) -> str | None:
        try:
            if texts:
                columns = batch.select(texts)
                (columns if rows is None else _part(columns, rows)).validate(full=True)
            if odd:
                columns = batch.select(odd)
                _encode(columns if rows is None else _part(columns, rows), format)
        except OutputError:
            raise
        except Exception as error:
            return type(error).__name__
        return None

    if fails(None, texts, odd) is None:
        return batch, provenance
    bad = find_failing(np.arange(batch.num_rows), lambda rows: fails(rows, texts, odd), known=True)
    rejects = []
    for row, error in sorted(bad.items()):
        alone = np.array([row])
        column = next(
            name
            for name in (*texts, *odd)
            if fails(alone, [name] if name in texts else [], [name] if name in odd else [])
        )
        reason = f"the value of column {column!r} cannot be written as {_NAMES[format]}"
        rejects.append(_reject(batch, row, error, reason, provenance))
    good = np.setdiff1d(np.arange(batch.num_rows), list(bad))
    provenance = provenance.reject(*rejects)
    return provenance.attach(_part(batch, good)), provenance


def _reject(batch: pa.RecordBatch, row: int, error: str, reason: str, provenance: Provenance) -> Reject:
    names = batch.schema.names
    return Reject.of(
        "write",
        error,
        reason,
        row=batch.column(ROW)[row].as_py() if ROW in names else None,
        id=batch.column(provenance.id)[row] if provenance.id in names else None,
    )


def _encode(batch: pa.RecordBatch, format: str) -> None:
    if format == "jsonl":
        to_jsonl(batch)
    elif batch.num_rows:
        # Arrow would write a null list as an empty one, or as a list of nulls, where the column allows no null.
        if any(column.null_count and not field.nullable for field, column in zip(batch.schema, batch, strict=True)):
            raise pa.ArrowInvalid("a null where none is allowed")
        pq.write_table(pa.table(batch), pa.MockOutputStream(), compression="none", use_dictionary=False)


def _part(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Some rows, with nothing left of the others."""
    part = batch.take(pa.array(rows))
    for index, field in enumerate(part.schema):
        if pa.types.is_dictionary(field.type):
            column = part.column(index)
            used, indices = np.unique(column.indices.drop_null().to_numpy(), return_inverse=True)
            every = np.zeros(len(column), dtype=np.int64)
            every[column.indices.is_valid().to_numpy(zero_copy_only=False)] = indices
            small = pa.DictionaryArray.from_arrays(
                pa.array(every, field.type.index_type, mask=column.indices.is_null().to_numpy(zero_copy_only=False)),
                column.dictionary.take(pa.array(used)),
                ordered=field.type.ordered,
            )
            part = part.set_column(index, field, small)
    return part


def _holds(field: pa.Field, wanted: Callable[[pa.Field], bool]) -> bool:
    """Whether the column, or anything inside of it, is as wanted."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        return _holds(pa.field(field.name, kind.storage_type, field.nullable), wanted)
    if wanted(field):
        return True
    if pa.types.is_dictionary(kind):
        return _holds(pa.field("", kind.value_type), wanted)
    if pa.types.is_map(kind):
        return _holds(pa.field("", kind.key_type), wanted) or _holds(kind.item_field, wanted)
    return any(_holds(kind.field(index), wanted) for index in range(kind.num_fields))


def _is_text(field: pa.Field) -> bool:
    kind = field.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_doubt(field: pa.Field) -> bool:
    """Whether Parquet may be unable to hold a value: it stores seconds as milliseconds, and checks for nulls."""
    return not field.nullable or (pa.types.is_timestamp(field.type) and field.type.unit == "s")


def _holds_odd_time(field: pa.Field) -> bool:
    """Whether there may be a time of which JSON could not tell a year of four digits, or an hour of the day."""
    return bool(pa.types.is_timestamp(field.type) or pa.types.is_date(field.type) or pa.types.is_time(field.type))
