"""One split at a time: its batches become staged files and a record."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distilbeam.transforms.errors import OutputError
from distilbeam.transforms.provenance import ROW, Provenance
from distilbeam.transforms.rejects import rejects_table
from distilbeam.transforms.storage import filesystems

from .commit import PART
from .records import (
    STAGING,
    FileRecord,
    PartRecord,
    SplitRecord,
    Statistics,
    describe_schema,
    feature_columns,
    identity,
)
from .shards import ShardSettings, ShardWriter, model_metadata, parquet_bytes
from .staging import stage_record
from .vectors import stored_schema, vector_columns

__all__ = ["ALL_BATCHES", "IN_ORDER", "SplitWriter"]

IN_ORDER = (
    "batches of a split must arrive in order and in one bundle, so there must be no Reshuffle, GroupByKey or other "
    "step that regroups elements between ReadDocuments and WriteFeatures"
)
"""What a pipeline must keep to, as the end of a message."""

ALL_BATCHES = (
    "every batch must arrive, also one without rows, since it tells what was read and rejected: filter the rows of "
    "batches, as beam.Map(lambda batch: batch.filter(...)) does, and drop no batch"
)
"""What a step of the user's must keep to, as the end of a message."""


class SplitWriter:
    """Writes the batches of one split to staged files.

    Args:
        output: path or URL of the output folder.
        split: id of the split.
        shards: what shapes the files.
    """

    def __init__(self, output: str, split: str, shards: ShardSettings) -> None:
        self._output = output
        self._split = split
        self._settings = shards
        # Another attempt at the split may be under way; each has files of its own, and each record names whole ones.
        self._stem = f"{STAGING}/{split}-{uuid.uuid4().hex[:12]}"
        self._rejects_path = f"{self._stem}-rejects.parquet"
        self._schema: pa.Schema | None = None
        self._shards: ShardWriter | None = None
        self._models: tuple[dict[str, Any], ...] = ()
        self._sequence = 0
        self._parts: list[PartRecord] = []
        self._statistics = Statistics()
        self._rejects: list[pa.Table] = []
        self._dropped = self._added = 0

    def write(self, batch: pa.RecordBatch, provenance: Provenance) -> None:
        """Adds the next batch.

        Raises:
            OutputError: it is not the next one, its columns or model differ from those before, or it cannot be written.
        """
        if provenance.sequence != self._sequence:
            missing = f"{ALL_BATCHES}, or " if provenance.sequence > self._sequence else ""
            raise OutputError(
                f"batch {provenance.sequence} of split {provenance.ordinal} came where batch {self._sequence} was due; "
                f"{missing}{IN_ORDER}"
            )
        self._sequence += 1
        self._dropped += provenance.dropped
        self._added += provenance.added
        self._count(provenance)
        unwanted = {ROW, *provenance.transient} & set(batch.schema.names)
        batch = batch.drop_columns(sorted(unwanted)) if unwanted else batch
        self._check(batch.schema, provenance)
        if batch.num_rows:
            self._writer(batch.schema, provenance).write(batch)
            self._statistics += _statistics(batch, self._models)
        if provenance.rejects:
            table = rejects_table(provenance)
            part = pa.array([len(self._parts) - 1] * table.num_rows, pa.int32())
            self._rejects.append(table.append_column(PART, part))

    def finish(self, provenance: Provenance) -> SplitRecord:
        """Completes the files and stages the record of the split.

        Args:
            provenance: that of the last batch.
        """
        # A split without rows has a shard without rows; the commit keeps one if the whole output has none.
        writer = self._shards or (None if self._schema is None else self._writer(self._schema, provenance))
        shards = writer.close(empty=True) if writer else ()
        record = SplitRecord(
            split=self._split,
            ordinal=provenance.ordinal,
            splits=provenance.splits,
            parts=tuple(self._parts),
            reading=provenance.reading,
            shards=shards,
            rejects_file=self._write_rejects(),
            statistics=self._statistics,
            schema=describe_schema(self._stored_schema()),
            models=self._models,
            writer=self._settings.as_dict(),
            input=provenance.schema,
            unread=provenance.unread,
            dropped=self._dropped,
            added=self._added,
            base=provenance.base,
        )
        if record.splits:  # of a plan, by which a later job can find it
            stage_record(self._output, record)
        return record

    def abort(self) -> None:
        """Removes what was staged, as far as the store can be reached."""
        if self._shards:
            self._shards.abort()
        with suppress(Exception):
            filesystems.delete(filesystems.join(self._output, self._rejects_path))

    def _writer(self, schema: pa.Schema, provenance: Provenance) -> ShardWriter:
        """The writer of the rows, begun if need be."""
        if self._shards is None:
            schema = model_metadata(self._models, Provenance.strip(schema))
            vectors = vector_columns(self._models)
            self._shards = ShardWriter(self._output, self._stem, schema, self._settings, provenance.text, vectors)
        return self._shards

    def _stored_schema(self) -> pa.Schema:
        """The schema of the files."""
        schema = self._schema or pa.schema([])
        if self._settings.format != "parquet":
            return schema
        return stored_schema(schema, vector_columns(self._models), self._settings.vector_type)

    def _count(self, provenance: Provenance) -> None:
        """Keeps the counts of each part, which grow from batch to batch."""
        if provenance.part not in (len(self._parts), len(self._parts) - 1):
            raise OutputError(
                f"split {provenance.ordinal}: part {provenance.part} came after {len(self._parts)} parts; {IN_ORDER}"
            )
        new = provenance.part == len(self._parts) and bool(provenance.source)
        if new and _lies_in(provenance.source, self._output):
            raise OutputError(
                f"the input {provenance.source!r} lies in the output folder {self._output!r}, so features would be "
                "read as documents; choose another output folder, or an input that leaves it out"
            )
        part = PartRecord(
            provenance.source,
            provenance.seen,
            provenance.lines,
            provenance.relative,
            provenance.size,
            provenance.version,
            provenance.start,
            provenance.stop,
            provenance.lost,
        )
        self._parts[provenance.part :] = [part]

    def _check(self, schema: pa.Schema, provenance: Provenance) -> None:
        if self._schema is None:
            self._schema = schema
        elif not schema.equals(self._schema):
            names = sorted({field.name for field in {*schema} ^ {*self._schema}}) or ["their order"]
            raise OutputError(
                f"split {provenance.ordinal}, batch {provenance.sequence}: the columns are not those of the batches "
                f"before ({', '.join(names[:5])}); every batch must have the same columns and types"
            )
        if not self._models:
            self._models = provenance.models
        elif identity(provenance.models) != identity(self._models):
            raise OutputError(
                f"split {provenance.ordinal}, batch {provenance.sequence}: made by another model or settings than the "
                "batches before"
            )

    def _write_rejects(self) -> FileRecord | None:
        if not self._rejects:
            return None
        table = pa.concat_tables(self._rejects)
        data = parquet_bytes(table)
        filesystems.write_bytes(filesystems.join(self._output, self._rejects_path), data)
        return FileRecord(self._rejects_path, table.num_rows, len(data), "")


def _statistics(batch: pa.RecordBatch, models: Sequence[Mapping[str, Any]]) -> Statistics:
    """Sums over the columns that the models added."""
    names = feature_columns(models, batch.schema.names)
    tokens, truncated, labels = (
        batch.column(names[feature]) if feature in names else None for feature in ("token_count", "truncated", "label")
    )
    return Statistics(
        tokens=None if tokens is None else pc.sum(tokens, min_count=0).as_py(),
        truncated=None if truncated is None else pc.sum(truncated, min_count=0).as_py(),
        labels=None
        if labels is None
        else {count["values"]: count["counts"] for count in pc.value_counts(labels.drop_null()).to_pylist()},
    )


def _lies_in(source: str, folder: str) -> bool:
    """Whether a file lies below a folder of the same store."""
    there, path = filesystems.resolve(source)
    here, root = filesystems.resolve(folder)
    return type(there) is type(here) and path.startswith(root.rstrip("/") + "/")
