"""The unit of work and of retry: a split, made of parts of files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from operator import attrgetter

__all__ = ["Part", "Split"]


@dataclass(frozen=True, slots=True)
class Part:
    """A range of one file.

    Attributes:
        source: path or URL of the file.
        format: ``parquet``, ``jsonl``, ``csv``, ``tsv`` or ``text``.
        size: bytes of the file when the plan was made.
        version: what changes when the file does (ETag, checksum or modification time), as text.
        compression: None, ``gzip`` or ``zstd``.
        start: first byte of a line file, or first row of a Parquet file.
        stop: end of that range; None for the whole file. A line belongs to the part in which it starts.
        partitions: hive partition values from the path, as (name, value) pairs.
    """

    source: str
    format: str
    size: int
    version: str
    compression: str | None = None
    start: int = 0
    stop: int | None = None
    partitions: tuple[tuple[str, str], ...] = ()


_values = attrgetter(*(field.name for field in fields(Part)))


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
    """

    parts: tuple[Part, ...]
    ordinal: int
    splits: int
    schema: bytes
    size: int
    reading: str = ""
    record: str = ""
    base: tuple[int, int] | None = None

    @property
    def id(self) -> str:
        """32 hexadecimal digits, equal for equal parts, schema and reading, whatever else is in the plan.

        They are computed from all parts at every call, so call it once.
        """
        if self.record:
            return self.record.partition("-")[0]
        parts = json.dumps([_values(part) for part in self.parts]).encode()
        return hashlib.sha256(b"\0".join((parts, self.reading.encode(), self.schema))).hexdigest()[:32]
