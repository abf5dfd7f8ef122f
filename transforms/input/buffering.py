"""Rows that wait until they fill a batch of bounded rows and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["RowBuffer", "empty_batch", "joined"]


class RowBuffer:
    """Rows that wait until they fill a batch. The last batch is held back, for it will tell the totals."""

    def __init__(self, schema: pa.Schema, batch_rows: int, batch_bytes: int):
        self.empty = empty_batch(schema)
        self._rows = batch_rows
        self._bytes = batch_bytes
        self._batches: list[pa.RecordBatch] = []
        self._sizes = np.zeros(0)

    def add(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._batches.append(batch)
            self._sizes = np.concatenate([self._sizes, _row_bytes(batch)])

    def pop(self) -> pa.RecordBatch | None:
        """The next full batch, if more rows are there than fit into it."""
        fit = int(np.searchsorted(np.cumsum(self._sizes[: self._rows + 1]), self._bytes, side="right"))
        fit = max(1, min(fit, self._rows))
        if fit >= len(self._sizes):
            return None
        self._sizes = self._sizes[fit:]
        taken: list[pa.RecordBatch] = []
        while fit:  # only what is taken is copied: a huge row may be waiting behind it
            first, *others = self._batches
            taken.append(first.slice(0, fit))
            self._batches = others if first.num_rows <= fit else [first.slice(fit), *others]
            fit -= taken[-1].num_rows
        return joined(taken)

    def rest(self) -> pa.RecordBatch:
        """All rows that wait."""
        return joined(self._batches) if self._batches else self.empty


def _row_bytes(batch: pa.RecordBatch) -> Any:
    """(rows,) bytes of each row; nested columns count as their average."""
    sizes = np.zeros(batch.num_rows)
    for column in batch.columns:
        if str(column.type) in ("string", "large_string", "binary", "large_binary"):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
        else:
            sizes += column.nbytes / max(len(column), 1)
    return sizes


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all rows; a single one is not copied."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """A batch without rows."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
