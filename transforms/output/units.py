"""Rows of which nobody knows where they come from: each bundle of them is a split of its own, of no plan."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from distilbeam.transforms.provenance import ROW, Provenance

from .records import SplitRecord
from .shards import ShardSettings
from .split_writer import SplitWriter
from .writable import set_aside

__all__ = ["UnitWriter", "write_no_rows"]


class UnitWriter:
    """Writes the rows of one bundle to staged files.

    Args:
        output: path or URL of the output folder.
        shards: what shapes the files.
        models: identity of each stage with a model, in order.
    """

    def __init__(self, output: str, shards: ShardSettings, models: Sequence[Mapping[str, Any]] = ()) -> None:
        split = uuid.uuid4().hex
        self._writer = SplitWriter(output, split, shards)
        self._format = shards.format
        # Splits are counted from 1 in a plan, so 0 of them is none.
        self._provenance = Provenance("", split, splits=0, sequence=-1, models=tuple(map(dict, models)))

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows, and the rejects that the batch brings.

        Raises:
            OutputError: their columns differ from those before, or they cannot be written.
        """
        before, brought = self._provenance, Provenance.of(batch)
        rejects = brought.rejects if brought else ()
        self._provenance = replace(
            before,
            sequence=before.sequence + 1,
            seen=before.seen + batch.num_rows + len(rejects),
            rejects=rejects,
        )
        if ROW not in batch.schema.names:
            rows = np.arange(before.seen, before.seen + batch.num_rows)
            batch = batch.append_column(ROW, pa.array(rows, pa.int64()))
        self._writer.write(*set_aside(batch, self._provenance, self._format))

    def finish(self) -> SplitRecord:
        """Completes the files; the record has an id by what it holds, so that equal bundles give equal outputs."""
        record = self._writer.finish(self._provenance)
        contents = json.dumps([[file.sha256 for file in record.shards], record.rejects, record.seen])
        return replace(record, split=hashlib.sha256(contents.encode()).hexdigest()[:32])

    def abort(self) -> None:
        """Removes what was staged, as far as the store can be reached."""
        self._writer.abort()


def write_no_rows(
    output: str, shards: ShardSettings, models: Sequence[Callable[[], Mapping[str, Any]]], schema: pa.Schema
) -> SplitRecord:
    """A unit without rows, so that an output of none tells its columns all the same."""
    writer = UnitWriter(output, shards, [model() for model in models])
    writer.write(pa.RecordBatch.from_pylist([], schema))
    return writer.finish()
