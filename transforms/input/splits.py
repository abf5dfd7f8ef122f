"""The unit of work and of retry: a split, made of parts of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from operator import attrgetter

__all__ = ["Part", "Split", "with_totals"]

_COUNTED = ("parquet", "arrow")  # formats whose ranges are rows that their footers have counted


@dataclass(frozen=True, slots=True)
class Part:
    """A range of one file.

    Attributes:
        source: path or URL of the file.
        format: ``parquet``, ``jsonl``, ``csv``, ``tsv``, ``text``, ``arrow`` or ``avro``.
        size: bytes of the file when the plan was made.
        version: what changes when the file does (ETag, checksum or modification time), as text.
        compression: None, ``gzip``, ``zstd``, ``bzip2`` or ``xz``.
        start: first byte of a line file, or first row of a Parquet, Arrow or Avro file.
        stop: end of that range; None for the whole file. A line belongs to the part in which it starts.
        partitions: hive partition values from the path, as (name, value) pairs.
        limit: rows to read of it, good and bad, where not its end tells where to stop; None for all.
    """

    source: str
    format: str
    size: int
    version: str
    compression: str | None = None
    start: int = 0
    stop: int | None = None
    partitions: tuple[tuple[str, str], ...] = ()
    limit: int | None = None


_values = attrgetter(*(field.name for field in fields(Part) if field.name != "limit"))


def _identity(part: Part) -> tuple[object, ...]:
    """What tells a part from others; without a limit it is that of versions that knew none."""
    values: tuple[object, ...] = _values(part)
    return values if part.limit is None else (*values, part.limit)


@dataclass(frozen=True, slots=True)
class Split:
    """Parts of files that are read, retried and written together.

    Attributes:
        parts: ranges of files, in order.
        ordinal: position in the plan, from 0.
        splits: number of splits in the plan.
        schema: Arrow IPC of the schema that every batch of the plan has, so that all shards agree.
        size: estimated bytes of text, for progress.
        reading: digest of the settings that decide what becomes of the rows.
        record: ``id-fingerprint`` of the record that an output has of the split, if it needs no reading; of the parts
            the first is then enough.
        base: what the plan saw of the output, as ``Base.seen``; None if it was made without one.
        seen: rows that the record tells of, good and bad; None without a record.
        total: rows of the whole plan as far as they are known, and bytes of the splits of which they are not; None
            where neither is known.
        dtypes: for each stage with a model, the precision that ``auto`` stands for, since the output has rows in it;
            empty if the worker may choose.
    """

    parts: tuple[Part, ...]
    ordinal: int
    splits: int
    schema: bytes
    size: int
    reading: str = ""
    record: str = ""
    base: tuple[int, int] | None = None
    seen: int | None = None
    total: tuple[int, int] | None = None
    dtypes: tuple[str, ...] = ()

    @property
    def rows(self) -> int | None:
        """Rows, good and bad, where a record or the footers of Parquet or Arrow tell them; else None."""
        if self.record:
            return self.seen
        if any(part.format not in _COUNTED or part.stop is None for part in self.parts):
            return None
        return sum((part.stop or 0) - part.start for part in self.parts)

    @property
    def id(self) -> str:
        """32 hexadecimal digits, equal for equal parts, schema and reading, whatever else is in the plan.

        They are computed from all parts at every call, so call it once.
        """
        if self.record:
            return self.record.partition("-")[0]
        parts = json.dumps([_identity(part) for part in self.parts]).encode()
        return hashlib.sha256(b"\0".join((parts, self.reading.encode(), self.schema))).hexdigest()[:32]


def with_totals(splits: Iterable[Split]) -> list[Split]:
    """The splits of a plan, each with how much there is in all, so that a worker can tell a few rejects from many."""
    splits = list(splits)
    counts = [split.rows for split in splits]
    if any(count is None and split.record for count, split in zip(counts, splits, strict=True)):
        return splits
    rows = sum(count or 0 for count in counts)
    size = sum(split.size for count, split in zip(counts, splits, strict=True) if count is None)
    return [replace(split, total=(rows, size)) for split in splits]
