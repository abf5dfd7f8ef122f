"""Documents in files become record batches."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import partial
from typing import Any, Protocol, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from . import coders, notebooks  # noqa: F401 - registers the coder of record batches, lets IPython build pipelines
from .discretion import discreet
from .errors import SettingsError
from .input.limits import plan_splits
from .input.read_settings import ReadSettings
from .input.reading import finished_batch, read_split
from .input.splits import Split, with_totals
from .metrics import count, counting_for
from .provenance import MAX_DEATHS, Provenance
from .watchdog import WATCHDOG

__all__ = ["ReadDocuments", "give_ledger"]

_LOG = logging.getLogger(__name__)


class _Ledger(Protocol):
    """What reading asks of a ``Ledger``."""

    def plan(self, settings: ReadSettings) -> list[tuple[Split, bool]]: ...
    def begin(self, split: str) -> int: ...
    def end(self, split: str) -> None: ...


@dataclass(eq=False)
class ReadDocuments(beam.PTransform):
    """Reads documents from files as ``pyarrow.RecordBatch`` of bounded rows and bytes.

    Parquet, Arrow IPC, Avro, JSON lines, CSV, TSV (without quoting) and plain text (a document on each line); those of
    lines also with .gz, .zst, .bz2 or .xz. The list of files is made when the job runs. Every batch has the same
    columns: those of the files, those of hive partitions in the path (``key=value`` folders; they fill a column of this
    name where a file has none, and must not say otherwise where it has), and ``_row``. Rows that cannot be read are
    listed in the batch's ``Provenance``. A batch never holds rows of two files, so a model passes over many files of
    one document each row by row: join such files before.

    Args:
        path: file, glob or folder, or several, on any store that fsspec knows. Below a folder, names that begin with
            ``_`` or ``.`` are left out.
        text: the text column, or several that a model will join; a field of a struct is named by its path, such as
            ``review.body``, unless a column has that name. So it is for ``keep`` and ``id``.
        keep: the columns to keep; None for all. Text columns not among them are read for the model only. A field of a
            struct becomes a column that is named by its path.
        format: ``parquet``, ``jsonl``, ``csv``, ``tsv``, ``text``, ``arrow`` (IPC files and streams, Feather) or
            ``avro``; by default the file name tells, or else the first bytes.
        nulls: what becomes of a row without text: ``reject`` or ``keep``.
        id: a column that names rows in rejects.
        separator: what joins several text columns.
        types: Arrow types of columns, such as ``{"stars": "double"}``. CSV and TSV columns are strings otherwise, and
            those of JSON lines are inferred from all files, up to 4 GiB of them spread over all. Keys that only occur
            elsewhere are not read unless they are named here: the manifest names them as ``unread``, or the job ends
            if ``strict``. A value that fits with no other of its column makes its line a reject.
        split_bytes: about how much one split reads.
        batch_rows: rows in a batch, at most.
        batch_bytes: bytes in a batch, at most, unless a single row has more.
        max_line_bytes: a longer line is a reject.
        decode_bytes: memory that decoding a Parquet, Arrow or Avro file may take, besides four times what the columns
            of a row group or batch take in the file, and that the window of a compressed file may; what needs more is a
            bad file.
        bad_files: what becomes of a file that is damaged, wholly or from some row on: ``fail`` ends the job, ``reject``
            sets aside what cannot be read: each row where a footer tells their number, else one reject that stands for
            all. It counts as many rows as the rest of the file may have held, or as the other files hold; where
            neither tells, it is within no percentage of ``max_rejects``.
        rejects_include_text: whether a reject holds the text of the line.
        columns: names of the columns of CSV and TSV files without a header, all of them and in order, such as
            ``["id", "text"]`` or ``"id,text"``.
        csv_delimiter: character between the fields of CSV files, such as ``;`` or a tab.
        csv_quote: character around fields of CSV files that hold delimiters, line ends or quotes; empty if quotes are
            text.
        csv_escape: character before one that is text, in CSV files that escape; by default none, two quotes are one.
        strict: whether a key of a JSON object that no column takes ends the job.
        limit: rows to read, the first ones of the input, rejects among them; None for all.
        ledger: what is done already, as ``WriteFeatures.ledger`` gives it. ``WriteFeatures`` gives one by itself to the
            ``ReadDocuments`` before it, as long as each step between them has one input.

    Raises:
        SettingsError: a setting is wrong, or it is applied to a PCollection and not to a pipeline.
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
    decode_bytes: int = ReadSettings.decode_bytes
    bad_files: str = ReadSettings.bad_files
    rejects_include_text: bool = ReadSettings.rejects_include_text
    columns: str | Sequence[str] | None = ReadSettings.columns
    csv_delimiter: str = ReadSettings.csv_delimiter
    csv_quote: str = ReadSettings.csv_quote
    csv_escape: str = ReadSettings.csv_escape
    strict: bool = ReadSettings.strict
    limit: int | None = ReadSettings.limit
    ledger: _Ledger | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.settings = ReadSettings(**{field.name: getattr(self, field.name) for field in fields(ReadSettings)})
        self.job = ""  # whose counts what is read raises, see ``metrics``

    def expand(self, begin: Any) -> Any:
        if not isinstance(begin, beam.pvalue.PBegin):
            raise SettingsError(
                "ReadDocuments reads the files that it is told when it is made, and takes no PCollection; apply it to "
                "the pipeline: pipeline | ReadDocuments(path)"
            )
        return (
            begin
            | "Start" >> beam.Create([None])
            | "Plan" >> beam.ParDo(_Plan(self.settings, self.ledger, self.job))
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_Read(self.settings, self.ledger, self.job)).with_output_types(pa.RecordBatch)
        )


def give_ledger(reading: Any, ledger: _Ledger, steps: Sequence[str] = ()) -> _Ledger:
    """The ledger of ``ReadDocuments`` as it was applied to a pipeline: the given one from now on, if it had none.

    A pipeline is taken down only when it is run, and until then its steps can learn of what comes after them.

    Args:
        reading: the reader in the graph.
        ledger: what it asks which splits are finished.
        steps: names of the user's steps between it and the writer, which nobody compares with those of before.
    """
    for part in reading.parts:
        step = getattr(part.transform, "fn", None)
        if isinstance(step, _Plan | _Read):
            step._ledger = ledger = step._ledger or ledger
        if isinstance(step, _Plan):
            step._steps = tuple(dict.fromkeys((*step._steps, *steps)))
    return ledger


class _Plan(beam.DoFn):
    def __init__(self, settings: ReadSettings, ledger: _Ledger | None, job: str = ""):
        self._settings = settings
        self._ledger = ledger
        self._job = job
        self._steps: tuple[str, ...] = ()

    @discreet
    def process(self, element: None) -> Iterator[tuple[Split, bool]]:
        if self._ledger is not None:
            with counting_for(self._job):
                plan = self._ledger.plan(self._settings)
        else:
            plan = [(split, False) for split in plan_splits(self._settings)]
        if self._steps and any(finished for _, finished in plan):
            _LOG.warning(
                "splits that are finished are kept as the steps %s have left them; if these have changed since, set "
                "`if_exists='overwrite'`",
                ", ".join(map(repr, self._steps)),
            )
        splits = with_totals(split for split, _ in plan)
        yield from zip(splits, (finished for _, finished in plan), strict=True)


class _Read(beam.DoFn):
    def __init__(self, settings: ReadSettings, ledger: _Ledger | None, job: str = ""):
        self._settings = settings
        self._ledger = ledger
        self._job = job
        self._documents = Metrics.counter("distilbeam", "documents_read")
        self._bytes = Metrics.counter("distilbeam", "bytes_read")
        self._rejects = Metrics.counter("distilbeam", "read_rejects")
        self._told = ledger is not None  # else the commit tells

    @discreet
    def process(self, element: tuple[Split, bool]) -> Iterator[pa.RecordBatch]:
        split, finished = element
        if finished:
            yield from self._emit(split, [finished_batch(split, self._settings)], attempt=1)
            return
        name = split.id
        attempt = self._ledger.begin(name) if self._ledger is not None else 1
        try:
            with WATCHDOG.blaming(partial(_blame, self._ledger, name)):
                yield from self._emit(split, read_split(split, self._settings), attempt)
        finally:  # also where a later step has failed, which closes this generator; not where the process has died
            # One that kills its worker stays known as such: it may have to be done again.
            if self._ledger is not None and attempt <= MAX_DEATHS:
                self._ledger.end(name)
        with counting_for(self._job):
            count(finished_bytes=split.size)

    def _emit(self, split: Split, batches: Iterable[pa.RecordBatch], attempt: int) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            provenance = cast(Provenance, Provenance.of(batch))
            self._documents.inc(batch.num_rows)
            self._bytes.inc(batch.nbytes)
            self._rejects.inc(len(provenance.rejects))
            if provenance.unread and not self._told:
                self._told = True
                _LOG.warning(
                    "objects in %r have keys that are no columns, since the plan had not met them; to read them give "
                    "their types with `types`, or list the columns to `keep`",
                    provenance.source,
                )
            yield _noted(replace(provenance, rows=batch.num_rows), split, attempt).attach(batch)


def _blame(ledger: _Ledger | None, split: str) -> None:
    """Notes that the process ends because of a split: no other cause is possible, so it counts as often as it must."""
    for _ in range(MAX_DEATHS - 1 if ledger is not None else 0):
        ledger.begin(split)  # type: ignore[union-attr]


def _noted(provenance: Provenance, split: Split, attempt: int) -> Provenance:
    """The provenance with what only the job knows of the split, most of it told but once."""
    if not provenance.last:
        return replace(provenance, attempt=attempt)
    schema = "" if provenance.finished else base64.b64encode(split.schema).decode()
    size = split.size if split.rows is None else 0
    return replace(provenance, attempt=attempt, record=split.record, schema=schema, base=split.base, bytes=size)
