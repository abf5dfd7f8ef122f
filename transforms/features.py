"""Writing features: record batches -> shards of each split -> one committed output."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from .discretion import discreet
from .errors import InputError, OutputError, SettingsError
from .output.claims import other_job
from .output.commit import begin, commit, was_overtaken
from .output.history import Base
from .output.ledger import Ledger
from .output.records import SplitRecord
from .output.shards import ShardSettings
from .output.split_writer import ALL_BATCHES, IN_ORDER, SplitWriter
from .output.staging import OutputState, finished_record
from .output.units import UnitWriter, write_no_rows
from .output.writable import set_aside
from .provenance import Provenance
from .rejects import RejectLimit, RejectWatch, parse_max_rejects
from .row_fields import rows_to_batches, wrong_element
from .storage import filesystems
from .upstream import Upstream, look_upstream

__all__ = ["SplitWriter", "WriteFeatures"]


@dataclass(eq=False)
class WriteFeatures(beam.PTransform):
    """Batches, rows or dicts -> one folder of Parquet or JSON Lines; gives one dict that sums it up.

    It takes record batches, as ``ReadDocuments`` and the transforms with a model give them, rows with a Beam schema,
    and dicts, whose columns ``schema`` names. What does not come from ``ReadDocuments`` is written bundle by bundle,
    and a later run cannot tell what of it is done, so it cannot resume. A row or dict with a value that is not of its
    column's type becomes a reject. One whose text is None, or that a model has failed on, is written with null
    features: ``with_exception_handling()`` sets the latter apart, and ``beam.Filter`` drops the former. (What becomes
    of documents in files without a text ``ReadDocuments(nulls=...)`` tells.)

        rows = pipeline | beam.Create([beam.Row(id=1, text="good film")]) | Embed("./minilm") | WriteFeatures("out")

    Steps of your own may stand between ``ReadDocuments`` and this one. They may drop, add and change the rows of a
    batch, which is counted, as long as they give one batch for each batch, with its schema's metadata. Where they make
    rows or dicts of batches (with ``schema``), these are written as rows from anywhere.

    ``OUT/features/*.parquet`` holds the rows. Nothing else lies there, so that any reader takes the folder, or a glob.
    ``OUT/_rejects/*.parquet`` holds the rows set aside; ``OUT/_distilbeam/manifest.json``, written last, names all
    files. Nothing is visible before every split of the input was written.

    The dict has the keys ``output`` and ``manifest`` (paths or URLs), ``commit`` (its number), ``format``; ``rows``,
    ``rejects``, ``dropped`` and ``added`` (rows, by steps of your own), ``splits``, ``shards``, ``bytes`` (counts);
    ``tokens``, ``truncated``, ``labels`` (sums over the rows, None without such a feature; of several models, the first
    that gives it); ``models`` (checkpoint and settings of each, in order) and ``computes`` (each device and dtype met,
    with its number of splits).

    Args:
        path: path or URL of the output folder.
        format: ``parquet`` or ``jsonl``.
        if_exists: what to do where the folder holds an output: ``error``, ``overwrite``, or ``resume`` to keep the
            splits that a cut-off run has finished. Settings must be those of that run, and so should be steps of your
            own, which are not compared. The files may have changed since: what is as it was is kept, what is new is
            done, and what is gone leaves the output.
        max_rejects: rows that may be set aside: a count, a percentage of the rows read, or None for any number.
        max_shard_bytes: largest file.
        schema: names and Arrow types of the columns of dicts, or of fields of rows whose type Arrow does not know. The
            features need not be in it.
        compression: ``auto`` (zstd for Parquet, none for JSON Lines), ``zstd``, ``gzip``, ``none``, and for Parquet
            ``snappy`` or ``lz4``.
        vector_type: how Parquet declares vectors: ``fixed`` for fixed-size lists (lists where a vector may be null, as
            ``nulls="keep"`` allows), or ``list`` for lists, as Beam's own ``ReadFromParquet(as_rows=True)`` takes them.

    Raises:
        SettingsError: a setting is wrong.
        OutputExistsError: the folder holds an output and ``if_exists`` is ``error``; when the pipeline is built if the
            folder can be reached from there, else when the job begins.
        OutputError, RejectLimitError: in the job; nothing new is visible then. Of two jobs that write to one folder at
            once, one commits and the other fails so.
    """

    path: str | os.PathLike[str]
    _: KW_ONLY
    format: str = "parquet"
    if_exists: str = "error"
    max_rejects: int | str | None = "1%"
    max_shard_bytes: int = 256 << 20
    compression: str = "auto"
    schema: pa.Schema | None = None
    vector_type: str = "fixed"

    def __post_init__(self) -> None:
        super().__init__()
        if self.if_exists not in ("error", "overwrite", "resume"):
            raise SettingsError(f"`if_exists` is {self.if_exists!r}; it must be one of error, overwrite, resume")
        self._limit = parse_max_rejects(self.max_rejects)
        self._shards = ShardSettings(self.format, self.compression, self.max_shard_bytes, self.vector_type)
        self._output = _absolute(self.path)
        self._gave_ledger = False

    def ledger(
        self,
        *settings: Mapping[str, Any],
        incremental: bool = False,
        since: str | os.PathLike[str] | None = None,
        if_changed: str = "error",
        models: Sequence[Callable[[], Mapping[str, Any]]] = (),
    ) -> Ledger:
        """What ``ReadDocuments(ledger=...)`` asks which splits need work, and notes in this output.

        Args:
            settings: ``settings`` of each transform with a model, in order.
            incremental: keep the output in step with a growing input: only new and changed files are read, and what is
                gone leaves the output. ``if_exists`` is then to be ``resume``, or ``overwrite`` to start anew.
            since: another output, as path or URL; files that it has, or that it was itself spared, are passed over.
            if_changed: what to do where model or settings are not those of the output or of ``since``: ``error``, or
                ``overwrite`` to start anew, which ``if_exists`` must allow.
            models: ``identity`` of each transform with a model, in order, so that another model under the same name is
                noticed before the work and not at the commit.

        Raises:
            SettingsError: the settings contradict each other.
        """
        if if_changed not in ("error", "overwrite"):
            raise SettingsError(f"`if_changed` is {if_changed!r}; it must be one of error, overwrite")
        if if_changed == "overwrite" and self.if_exists != "overwrite":
            raise SettingsError(
                f"`if_changed` is 'overwrite', but `if_exists` is {self.if_exists!r}, which replaces nothing; set "
                "`if_exists='overwrite'`; what has not changed is kept all the same"
            )
        if (incremental or since is not None) and self.if_exists == "error":
            raise SettingsError("`incremental` and `since` go on from an output; set `if_exists='resume'`")
        earlier = None if since is None else _absolute(since)
        if earlier is not None and earlier.rstrip("/") == self._output.rstrip("/"):
            raise SettingsError(
                f"`since` and the output are the same folder, {earlier!r}; set `incremental` to grow it"
            )
        resume = self.if_exists == "resume" or if_changed == "overwrite"
        self._gave_ledger = True
        return Ledger(
            self._output,
            settings,
            self._shards,
            resume=resume,
            incremental=incremental,
            since=earlier,
            overwrite_changed=if_changed == "overwrite",
            models=tuple(models),
        )

    def check_output(self) -> None:
        """Raises OutputExistsError if the folder holds what must stay."""
        with suppress(InputError):  # the folder may be out of reach from here; the commit looks again
            OutputState.read(self._output, replace=self.if_exists == "overwrite").refuse_existing(self.if_exists)

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[dict[str, Any]]:
        self.check_output()
        if not batches.is_bounded:
            raise SettingsError(
                "WriteFeatures commits one finished output, and this PCollection is unbounded; write it with another "
                "sink, such as beam.io.WriteToParquet with windows, or read a bounded input"
            )
        upstream = look_upstream(batches)
        to_batches = None
        if not upstream.is_ours:
            to_batches = rows_to_batches(batches.element_type, self.schema, upstream.fields)
        if to_batches is not None:
            upstream = upstream.of_rows(self.if_exists == "resume")
        upstream.refuse_filters()
        self._go_on(upstream)
        base = beam.pvalue.AsSingleton(
            batches.pipeline
            | "Start" >> beam.Create([None])
            | "Begin" >> beam.ParDo(_Begin(self._output, self.if_exists, uuid.uuid4().hex)).with_output_types(Base)
        )
        writing = _WriteSplits(self._output, self._shards, self._limit, upstream)
        nothing = None
        if to_batches is not None:
            models = tuple(stage.identity for stage in upstream.stages)
            nothing = partial(write_no_rows, self._output, self._shards, models, to_batches.schema)
        committing = _Commit(self._output, self.if_exists, self._limit, nothing)
        batches = batches | "To one window" >> beam.WindowInto(beam.window.GlobalWindows())
        if to_batches is not None:
            batches = batches | "To batches" >> beam.ParDo(to_batches).with_output_types(pa.RecordBatch)
        return (
            batches
            | "Write splits" >> beam.ParDo(writing, base).with_output_types(SplitRecord)
            | "Collect records" >> beam.CombineGlobally(_Collect())
            | "Commit" >> beam.ParDo(committing, base).with_output_types(dict)
        )

    def _go_on(self, upstream: Upstream) -> None:
        """Lets the reader ask this output which splits are finished, and note those it begins.

        Raises:
            SettingsError: the job is to resume, and there is nobody to be told.
        """
        resume = self.if_exists == "resume"
        if upstream.reading is None:
            if resume and not self._gave_ledger:
                raise SettingsError(
                    "`if_exists` is 'resume', but no ReadDocuments is found before WriteFeatures that could pass over "
                    "what is finished; give it ReadDocuments(ledger=writing.ledger(settings of each transform with a "
                    "model)), or set `if_exists='overwrite'` to compute all again"
                )
            return
        stages = upstream.stages
        # Not by ledger(), which is the user's.
        upstream.attach(
            Ledger(
                self._output,
                tuple(stage.settings for stage in stages),
                self._shards,
                resume=resume,
                models=tuple(stage.identity for stage in stages),
            )
        )


class _Begin(beam.DoFn):
    """Looks at the output on a worker; as a side input of the writer it comes before the model is loaded."""

    def __init__(self, output: str, if_exists: str, job: str) -> None:
        self._output = output
        self._if_exists = if_exists
        self._job = job

    @discreet
    def process(self, element: None) -> Iterator[Base]:
        yield begin(self._output, self._if_exists, self._job)


class _WriteSplits(beam.DoFn):
    """Batches -> one record for each split, in the bundle that brings them."""

    def __init__(
        self, output: str, shards: ShardSettings, limit: RejectLimit, upstream: Upstream | None = None
    ) -> None:
        self._output = output
        self._shards = shards
        self._limit = limit
        self._strict = upstream is not None and upstream.is_ours
        self._read_here = upstream is not None and upstream.reading is not None
        self._models = tuple(stage.identity for stage in upstream.stages) if upstream is not None else ()
        self._identities: list[Mapping[str, Any]] | None = None
        self._rows = Metrics.counter("distilbeam", "rows_written")
        self._rejects = Metrics.counter("distilbeam", "rows_rejected")
        self._files = Metrics.counter("distilbeam", "shards_written")

    def setup(self) -> None:
        self._open: dict[str, SplitWriter] = {}
        self._unit: UnitWriter | None = None  # of the batches of this bundle that come without provenance
        self._found: OutputState | None = None
        self._watch = RejectWatch(self._limit)

    def start_bundle(self) -> None:
        self._abort()  # of a bundle that failed in another step

    @discreet
    def process(self, batch: pa.RecordBatch, base: Base) -> Iterator[SplitRecord]:
        try:
            record = self._write(batch)
        except BaseException as error:
            self._abort()
            if isinstance(error, (InputError, OutputError)) and self._overtaken(base, batch):
                raise other_job(self._output) from error
            raise
        if record is not None:
            self._count(record)
            yield record

    @discreet
    def finish_bundle(self) -> list[Any]:
        if self._open:
            count = len(self._open)
            self._abort()
            raise OutputError(f"a bundle ended in the middle of {count} splits; {ALL_BATCHES}, or {IN_ORDER}")
        if self._unit is None:
            return []
        record = self._unit.finish()
        self._unit = None
        self._count(record)
        return [beam.window.GlobalWindows.windowed_value_at_end_of_window(record)]

    def teardown(self) -> None:
        self._abort()

    def _count(self, record: SplitRecord) -> None:
        self._rows.inc(record.rows)
        self._rejects.inc(record.rejects)
        self._files.inc(len(record.shards))

    def _write(self, batch: pa.RecordBatch) -> SplitRecord | None:
        if not isinstance(batch, pa.RecordBatch):
            raise SettingsError(wrong_element(type(batch)))
        provenance = Provenance.of(batch)
        if (provenance is None or not provenance.splits) and not self._read_here:
            if self._unit is None:
                if self._identities is None:
                    self._identities = [model() for model in self._models]
                self._unit = UnitWriter(self._output, self._shards, self._identities)
            self._unit.write(batch)
            return None
        provenance = _provenance(batch)
        if provenance.finished:
            if self._found is None:
                self._found = OutputState.read(self._output)
            return finished_record(self._found, provenance, self._shards)
        writer = self._open.get(provenance.split)
        if writer is None:
            writer = self._open[provenance.split] = SplitWriter(self._output, provenance.split, self._shards)
        provenance = provenance.counted(batch.num_rows)
        if self._strict and (provenance.dropped or provenance.added):
            raise OutputError(
                f"batch {provenance.sequence} of split {provenance.ordinal} has lost {provenance.dropped} rows and got "
                f"{provenance.added} on its way to WriteFeatures, where no step of the user's lies"
            )
        batch, provenance = set_aside(batch, provenance, self._shards.format)
        self._watch.add(provenance, batch.num_rows + provenance.dropped)
        writer.write(batch, provenance)
        if not provenance.last:
            return None
        record = writer.finish(provenance)
        del self._open[provenance.split]
        return record

    def _overtaken(self, base: Base, batch: pa.RecordBatch) -> bool:
        """Whether the commit of another job may have removed what was staged here."""
        with suppress(InputError, OutputError):  # there may be no provenance
            return was_overtaken(self._output, base.earliest(_provenance(batch).base))
        return False

    def _abort(self) -> None:
        for writer in self._open.values():
            writer.abort()
        if self._unit is not None:
            self._unit.abort()
        self._open, self._unit = {}, None


class _Collect(beam.CombineFn):
    """All elements as one list."""

    def create_accumulator(self) -> list[SplitRecord]:
        return []

    def add_input(self, accumulator: list[SplitRecord], element: SplitRecord) -> list[SplitRecord]:
        accumulator.append(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[SplitRecord]]) -> list[SplitRecord]:
        return [record for accumulator in accumulators for record in accumulator]

    def extract_output(self, accumulator: list[SplitRecord]) -> list[SplitRecord]:
        return accumulator


class _Commit(beam.DoFn):
    """Commits the records of all splits, or what ``nothing`` writes where there are none."""

    def __init__(
        self, output: str, if_exists: str, limit: RejectLimit, nothing: Callable[[], SplitRecord] | None = None
    ) -> None:
        self._output = output
        self._if_exists = if_exists
        self._limit = limit
        self._nothing = nothing

    @discreet
    def process(self, records: list[SplitRecord], base: Base) -> Iterator[dict[str, Any]]:
        if not records and self._nothing is not None:
            records = [self._nothing()]
        manifest = commit(self._output, records, if_exists=self._if_exists, limit=self._limit, base=base)
        yield manifest.summary(self._output)


def _provenance(batch: pa.RecordBatch) -> Provenance:
    provenance = Provenance.of(batch)
    if provenance is None:
        raise OutputError(
            "a step between ReadDocuments and WriteFeatures has lost the schema metadata of its batches, which tells "
            "where rows come from and which were rejected; keep it, such as by "
            "result.replace_schema_metadata(batch.schema.metadata)"
        )
    return provenance


def _absolute(path: str | os.PathLike[str]) -> str:
    """A local path independent of the working folder; URLs as they are, once checked."""
    output = os.fspath(path)
    filesystems.resolve(output)
    return output if "://" in output else os.path.abspath(output)  # noqa: PTH100
