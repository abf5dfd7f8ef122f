"""Documents in files become record batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from . import coders  # noqa: F401 - registers the coder of record batches
from .metrics import LIVE
from .planning import plan_splits
from .provenance import Provenance
from .read_settings import ReadSettings
from .reading import finished_batch, read_split
from .splits import Split

__all__ = ["ReadDocuments"]

Skip = Callable[[Sequence[Split]], Collection[str]]


@dataclass(eq=False)
class ReadDocuments(beam.PTransform):
    """Reads documents from files as ``pyarrow.RecordBatch`` of bounded rows and bytes.

    Parquet, JSON lines, CSV, TSV (without quoting) and plain text (a document on each line); the line formats also
    with .gz or .zst. The list of files is made when the job runs. Every batch has the same columns: those of the
    files, those of hive partitions in the path (``key=value`` folders; a column in the files goes before), and
    ``_row``. Rows that cannot be read are listed in the batch's ``Provenance``. A batch never holds rows of two files,
    so a model passes over many files of one document each row by row: join such files before.

    Args:
        path: file, glob or folder, or several, on any store that fsspec knows. Below a folder, names that begin with
            ``_`` or ``.`` are left out.
        text: the text column, or several that a model will join.
        keep: the columns to keep; None for all. Text columns not among them are read for the model only.
        format: ``parquet``, ``jsonl``, ``csv``, ``tsv`` or ``text``; by default the file name tells.
        nulls: what becomes of a row without text: ``reject`` or ``keep``.
        id: a column that names rows in rejects.
        separator: what joins several text columns.
        types: Arrow types of columns, such as ``{"stars": "double"}``. CSV and TSV columns are strings otherwise, and
            those of JSON lines are inferred from the first megabyte of up to 16 files; keys that occur only
            later are not read unless they are named here, and a value of another type makes its line a reject.
        split_bytes: about how much one split reads.
        batch_rows: rows in a batch, at most.
        batch_bytes: bytes in a batch, at most, unless a single row has more.
        max_line_bytes: a longer line is a reject.
        rejects_include_text: whether a reject holds the text of the line.
        skip: given the plan, the ids of splits that need no reading.

    Raises:
        SettingsError: a setting is wrong.
    """

    path: str | Sequence[str]
    text: str | Sequence[str] = ReadSettings.text
    keep: Sequence[str] | None = ReadSettings.keep
    _: KW_ONLY
    format: str | None = ReadSettings.format
    nulls: str = ReadSettings.nulls
    id: str | None = ReadSettings.id
    separator: str = ReadSettings.separator
    types: Mapping[str, str | pa.DataType] | None = None
    split_bytes: int = ReadSettings.split_bytes
    batch_rows: int = ReadSettings.batch_rows
    batch_bytes: int = ReadSettings.batch_bytes
    max_line_bytes: int = ReadSettings.max_line_bytes
    rejects_include_text: bool = ReadSettings.rejects_include_text
    skip: Skip | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.settings = ReadSettings(**{field.name: getattr(self, field.name) for field in fields(ReadSettings)})

    def expand(self, begin: Any) -> Any:
        return (
            begin
            | "Start" >> beam.Create([None])
            | "Plan" >> beam.ParDo(_Plan(self.settings, self.skip))
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_Read(self.settings)).with_output_types(pa.RecordBatch)
        )


class _Plan(beam.DoFn):
    def __init__(self, settings: ReadSettings, skip: Skip | None):
        self._settings = settings
        self._skip = skip

    def process(self, element: None) -> Iterator[tuple[Split, bool]]:
        splits = plan_splits(self._settings)
        finished = frozenset(self._skip(splits)) if self._skip else frozenset()
        for split in splits:
            yield split, split.id in finished


class _Read(beam.DoFn):
    def __init__(self, settings: ReadSettings):
        self._settings = settings
        self._documents = Metrics.counter("distilbeam", "documents_read")
        self._bytes = Metrics.counter("distilbeam", "bytes_read")
        self._rejects = Metrics.counter("distilbeam", "read_rejects")

    def process(self, element: tuple[Split, bool]) -> Iterator[pa.RecordBatch]:
        split, finished = element
        for batch in [finished_batch(split, self._settings)] if finished else read_split(split, self._settings):
            self._documents.inc(batch.num_rows)
            self._bytes.inc(batch.nbytes)
            self._rejects.inc(len(cast(Provenance, Provenance.of(batch)).rejects))
            yield batch
        if not finished:
            LIVE.add(finished_bytes=split.size)
