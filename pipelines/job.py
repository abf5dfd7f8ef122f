"""A job from documents to committed features, and the functions behind the commands."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from distilbeam.transforms.checks import check_keywords
from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.errors import DistilbeamError, SettingsError, UnknownSettingError
from distilbeam.transforms.features import WriteFeatures
from distilbeam.transforms.fitness import check_spec
from distilbeam.transforms.inference import Classify, Embed, Featurize, Tokenize, settings_of
from distilbeam.transforms.input.read_settings import column_names
from distilbeam.transforms.metrics import counting, named
from distilbeam.transforms.output.increments import Changes, compare, holding
from distilbeam.transforms.output.losses import Losses, lost_rows
from distilbeam.transforms.output.manifest import Manifest, SplitRecord, find_manifest, load_manifest
from distilbeam.transforms.storage.filesystems import check_url

from . import worker
from .beam_options import as_pipeline_options, refuse_beam_settings
from .failures import recover
from .opening import features_of
from .options import is_direct, is_in_process
from .preview import Preview, preview
from .progress import FINISHED, TITLES, Planned, Progress, in_notebook
from .quiet import tracebacks_kept_back

__all__ = ["Preview", "Summary", "classify", "embed", "featurize", "run", "tokenize"]

_log = logging.getLogger(__name__)

_FAILED = ("FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job has done.

    Attributes:
        output: the folder it has written.
        rows: rows of the output.
        rejects: rows set aside.
        tokens: tokens of all rows, special tokens included.
        truncated: rows of which the model has seen only the beginning.
        seconds: how long the job ran.
        tokens_per_second: tokens of this run over ``seconds``; None if nothing ran, or it is not known how much.
        padding: share of padding in what the model computed; None where that was not measured.
        rows_computed: rows of the output that this run has written, without those that it kept; None where that was
            not measured.
        tokens_computed: tokens of these rows; None where that was not measured.
        splits: splits of the input.
        resumed: splits that an earlier run had finished; None where that was not measured.
        shards: files of the output.
        bytes: bytes of these files.
        losses: what damaged files have lost beside the rejects.
        unread: keys of JSON objects that are no columns of the output.
        changes: how the output differs from the one it went on from; None unless the run was incremental.
        format: ``parquet`` or ``jsonl``.
    """

    output: str
    rows: int
    rejects: int
    tokens: int
    truncated: int
    seconds: float
    tokens_per_second: float | None
    padding: float | None
    splits: int
    resumed: int | None
    shards: int
    bytes: int
    unread: tuple[str, ...] = ()
    losses: Losses = field(default_factory=Losses)
    changes: Changes | None = None
    format: str = "parquet"
    rows_computed: int | None = None
    tokens_computed: int | None = None

    @property
    def features(self) -> str:
        """Folder with the features alone, which any reader opens whole."""
        return features_of(self.output)

    @property
    def read(self) -> int:
        """Rows of the input."""
        return self.rows + self.rejects

    def __str__(self) -> str:
        from .display import plain, show_summary

        return plain(partial(show_summary, self))

    def _repr_html_(self) -> str:
        from .html import html_of_summary

        return html_of_summary(self)


def embed(model: str | Path, **settings: Any) -> Summary | None:
    """Write one vector for each text: ``run(Embed(model, ...), ...)``, each setting going where it belongs."""
    return _run(Embed, model, settings)


def classify(model: str | Path, **settings: Any) -> Summary | None:
    """Write a label and its score for each text: ``run(Classify(model, ...), ...)``."""
    return _run(Classify, model, settings)


def tokenize(model: str | Path, **settings: Any) -> Summary | None:
    """Write token ids and counts for each text: ``run(Tokenize(model, ...), ...)``."""
    return _run(Tokenize, model, settings)


def featurize(model: str | Path, **settings: Any) -> Summary | None:
    """Write any features of each text in one pass: ``run(Featurize(model, ...), ...)``."""
    return _run(Featurize, model, settings)


def run(
    transform: Featurize,
    *,
    input: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    text: str | Sequence[str] = "text",
    keep: Sequence[str] | None = None,
    id: str | None = None,
    format: str = "auto",
    types: Mapping[str, str] | None = None,
    separator: str = " ",
    nulls: str = "reject",
    split_bytes: int | None = None,
    batch_rows: int | None = None,
    batch_bytes: int | None = None,
    max_line_bytes: int | None = None,
    decode_bytes: int | None = None,
    columns: str | Sequence[str] | None = None,
    csv_delimiter: str = ",",
    csv_quote: str = '"',
    csv_escape: str = "",
    bad_files: str = "fail",
    if_exists: str = "error",
    incremental: bool = False,
    since: str | os.PathLike[str] | None = None,
    if_changed: str = "error",
    max_rejects: int | str | None = "1%",
    rejects_include_text: bool = False,
    strict: bool = False,
    limit: int | None = None,
    dry_run: bool = False,
    output_format: str = "parquet",
    compression: str = "auto",
    vector_type: str = "fixed",
    max_shard_bytes: int | None = None,
    beam_options: PipelineOptions | Mapping[str, Any] | Sequence[str] | None = None,
    progress: str | None = None,
) -> Summary | Preview | None:
    """Read documents, compute their features and write them.

    Args:
        transform: what to compute, such as ``Embed("./minilm")``.
        input: files, folders or globs, as paths or URLs.
        output: folder to write, as path or URL.
        text: columns with the text, joined by ``separator``; a field of a struct as ``review.body``.
        keep: columns to keep; all if None. A field of a struct becomes a column that is named by its path.
        id: column that names a row in the rejects.
        format: ``auto``, ``parquet``, ``jsonl``, ``csv``, ``tsv``, ``text``, ``arrow`` or ``avro``.
        types: types of columns as Arrow names them, such as ``{"stars": "int64", "at": "timestamp[us, tz=UTC]"}``.
        separator: what joins several text columns.
        nulls: ``reject`` or ``keep`` rows without a text.
        split_bytes: bytes of text in a split, the unit of work and of retry.
        batch_rows: rows of a record batch, which are sorted together.
        batch_bytes: bytes of a record batch, at most.
        max_line_bytes: a longer line is rejected.
        decode_bytes: memory that decoding a Parquet, Arrow or Avro file may take, besides four times a row group or
            batch in the file, and that the window of a compressed file may.
        columns: names of the columns of CSV and TSV files without a header, such as ``"id,text"``.
        csv_delimiter: character between the fields of CSV files.
        csv_quote: character around fields of CSV files; empty if quotes are text.
        csv_escape: character before one that is text in CSV files; by default none, two quotes are one.
        bad_files: what becomes of a damaged file: ``fail`` ends the job, ``reject`` sets aside what cannot be read,
            each row where a footer tells their number, else one reject that counts as the rows it stands for.
        if_exists: what to do with an output that is there: ``error``, ``overwrite`` or ``resume``.
        incremental: keep the output in step with a growing input: only new and changed files are read, and rows of
            files that are gone leave it. It works on a first run too, and resumes one that was cut off.
        since: an earlier output, as path or URL; files that it has, or that it was itself spared, are passed over, so
            that this output holds the new and changed files alone. The earlier outputs before it may be deleted.
        if_changed: what to do where the model or settings are not those of what the job goes on from: ``error``, or
            ``overwrite`` to start anew. The old output stays until the new one is complete.
        max_rejects: rows that may be set aside, a count, a share such as ``1%``, or None for any number.
        rejects_include_text: whether rejects hold the text.
        strict: whether a key of a JSON object that no column takes ends the job; else the summary names it.
        limit: rows to read, the first ones of the input, for a try; such an output is not gone on from without it.
        dry_run: only plan: tell what would be read and written, and write nothing.
        output_format: ``parquet`` or ``jsonl``.
        compression: of the files written: ``auto``, ``zstd``, ``gzip``, ``none``; for Parquet also ``snappy``, ``lz4``.
        vector_type: how Parquet declares vectors: ``fixed`` for fixed-size lists, ``list`` for lists, as Beam's own
            ``ReadFromParquet(as_rows=True)`` and YAML need; lists always where ``nulls`` keeps rows without a text.
        max_shard_bytes: largest file that is written.
        beam_options: options of Apache Beam: flags as on the command line, a dict such as
            ``{"runner": "FlinkRunner"}``, or its ``PipelineOptions``. Without a runner the job runs in this process.
            In a list, options that only a job server knows come after ``"--"``.
        progress: ``none``, ``log``, ``bar`` or ``auto``; None for a bar in a notebook and nothing elsewhere.

    Returns:
        What the job has done, or a ``Preview`` of what it would do if it is a dry run; None if a runner elsewhere goes
        on with it, or has written where this machine cannot look.

    Raises:
        DistilbeamError: a setting, an input, the model or the output is wrong, or too many rows were rejected.
    """
    output, since = check_url(output), None if since is None else check_url(since)
    options = as_pipeline_options(beam_options)
    local, here = is_direct(options), is_in_process(options)
    transform = _reading(transform, text, separator)
    if local:
        check_spec(Checkpoint.open(transform.model, transform.engine.model_sha256), transform.spec)
    if output_format == "parquet" and transform.settings.get("embedding_dtype") == "float16":
        _log.warning(
            "vectors are written as float16; Spark, Delta and Daft before 0.7 cannot open such a file, whatever "
            "column is read: set `embedding_dtype='float32'` where they are to"
        )
    recurring = incremental or since is not None
    if recurring and limit is not None:
        raise SettingsError("`limit` reads the first rows alone; leave it out, or `incremental` and `since`")
    writing = WriteFeatures(
        output,
        format=output_format,
        if_exists=_commit_mode(if_exists, recurring, if_changed),
        max_rejects=max_rejects,
        compression=compression,
        vector_type=vector_type,
        **_given(max_shard_bytes=max_shard_bytes),
    )
    ledger = writing.ledger(
        transform.settings,
        incremental=incremental,
        since=since,
        if_changed=if_changed,
        models=[transform.identity],
    )
    before = (_records(output), _records(since)) if recurring else None
    key = uuid.uuid4().hex
    documents = ReadDocuments(
        input,
        text=text,
        keep=keep,
        id=id,
        format=None if format == "auto" else format,
        types=types,
        separator=separator,
        nulls=nulls,
        rejects_include_text=rejects_include_text,
        strict=strict,
        limit=limit,
        bad_files=bad_files,
        columns=columns,
        csv_delimiter=csv_delimiter,
        csv_quote=csv_quote,
        csv_escape=csv_escape,
        ledger=Planned(ledger, key) if here else ledger,
        **_given(
            split_bytes=split_bytes,
            batch_rows=batch_rows,
            batch_bytes=batch_bytes,
            max_line_bytes=max_line_bytes,
            decode_bytes=decode_bytes,
        ),
    )
    if dry_run:
        writing.check_output()
        checkpoint = Checkpoint.open(transform.model, transform.engine.model_sha256)
        return preview(
            documents,
            transform.spec,
            output,
            dimensions=checkpoint.dimensions(transform.spec.pooling),
            labels=checkpoint.labels,
            records=before and (*before[0], *before[1]),
            ledger=ledger,
        )
    start = time.monotonic()
    title = TITLES.get(type(transform).__name__.lower(), "featurizing")
    with counting() as live, named(live) as job, Progress(_shown(progress) if here else "none", title, live=live):
        documents.job = transform.job = job
        pipeline = _pipeline(options, local)
        _ = pipeline | documents | transform | writing
        try:
            state = _outcome(pipeline, options, local)
        finally:
            finished = FINISHED.pop(key, None)
    if state is None:
        return None
    if state in _FAILED:
        raise DistilbeamError(f"the job has ended in the state {state}; the runner's log tells why")
    try:
        manifest = load_manifest(output)
    except DistilbeamError:
        if local:
            raise
        # The workers can reach places that this machine cannot.
        return None
    seconds = time.monotonic() - start
    summary = (
        _watched(manifest, output, seconds, live.read())
        if here
        else _unwatched(manifest, output, seconds, resumed=ledger.resume)
    )
    if not here and not ledger.resume:
        finished = frozenset()  # nothing could be kept
    if finished is not None:
        summary = _of_this_run(summary, [record for record in manifest.records if record.split not in finished])
    if before is None:
        return summary
    return replace(summary, changes=compare(before[0], manifest.records, before[1], finished))


def _run(kind: type[Featurize], model: str | Path, settings: dict[str, Any]) -> Any:  # a Preview only of a dry run
    ours = inspect.signature(run).parameters.keys() - {"transform"}
    name = kind.__name__.lower()
    known = {*settings_of(kind), *ours}
    refuse_beam_settings(f"{name}()", settings.keys() - known)
    check_keywords(f"{name}()", settings, known)
    missing = [each for each in ("features", "input", "output") if each in known and each not in settings]
    if missing:
        raise UnknownSettingError(f"{name}() needs {' and '.join(f'`{each}`' for each in missing)}")
    transform = kind(model, **{each: value for each, value in settings.items() if each not in ours})
    return run(transform, **{each: value for each, value in settings.items() if each in ours})


def _outcome(pipeline: beam.Pipeline, options: PipelineOptions, local: bool) -> str | None:
    """The state in which a pipeline has ended; None if it runs on elsewhere."""
    failure: DistilbeamError | None = None
    try:
        with tracebacks_kept_back():
            result = pipeline.run()
            if not local and options.view_as(StandardOptions).no_wait_until_finish:
                return None
            return str(result.wait_until_finish())
    except Exception as error:
        failure = recover(error)
        if failure is None:
            raise
        if logging.root.isEnabledFor(logging.DEBUG):
            raise failure from error
    # Out of the handler, since what the runner made of it on the way says nothing more, in a hundred lines and more.
    raise failure


def _commit_mode(if_exists: str, recurring: bool, if_changed: str) -> str:
    """What the commit may do with an output that is there."""
    if if_changed == "overwrite" and if_exists == "overwrite":
        raise SettingsError(
            "`if_exists` and `if_changed` are both 'overwrite'; `if_exists` alone starts anew in any case"
        )
    if if_changed == "overwrite" and not recurring and if_exists != "resume":
        raise SettingsError(
            "`if_changed` is 'overwrite', but the job goes on from nothing; set `incremental`, `since` or "
            "`if_exists='resume'`"
        )
    if if_changed == "overwrite":
        return "overwrite"
    return "resume" if recurring and if_exists == "error" else if_exists


def _records(output: str | None) -> tuple[SplitRecord, ...]:
    """What an output has, as far as this machine can look."""
    with suppress(DistilbeamError):
        manifest = find_manifest(output) if output else None
        return manifest.records if manifest else ()
    return ()


def _pipeline(options: PipelineOptions, local: bool) -> beam.Pipeline:
    try:
        # Without being told so, Beam would first try to download a runner.
        return beam.Pipeline(runner=_runner(options) if local else None, options=options)
    except (AttributeError, ImportError, ValueError) as error:
        raise SettingsError(" ".join(str(error).split())) from None


def _runner(options: PipelineOptions) -> FnApiRunner:
    """Beam's runner for one machine, with workers that log as this process does."""
    if is_in_process(options):
        return FnApiRunner()
    # In this mode it would start workers by a command of its own; in the other one, by that of the environment.
    options.view_as(DirectOptions).direct_running_mode = "in_memory"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(worker.command_line()))


def _reading(transform: Featurize, text: str | Sequence[str], separator: str) -> Featurize:
    """The transform with the text columns in its own settings, so that the output says what it was made of."""
    spec = transform.spec
    columns = column_names("text", text)
    transform = copy.copy(transform)
    transform.spec = replace(
        spec,
        text=spec.text or columns,
        separator=separator if spec.separator is None else spec.separator,
    )
    return transform


def _shown(progress: str | None) -> str:
    if progress is None:
        return "auto" if in_notebook() else "none"
    if progress not in (allowed := ("none", "log", "bar", "auto")):
        raise SettingsError(f"`progress` is {progress!r}; it must be one of {', '.join(allowed)}")
    return progress


def _given(**sizes: int | None) -> dict[str, Any]:
    return {name: size for name, size in sizes.items() if size is not None}


def _watched(manifest: Manifest, output: str, seconds: float, live: Mapping[str, int]) -> Summary:
    """The summary of a job that has run in this process."""
    return replace(
        _summary(manifest, output, seconds),
        tokens_per_second=live["tokens"] / seconds if live["tokens"] else None,
        padding=1 - live["tokens"] / live["slots"] if live["slots"] else None,
        resumed=live["finished_splits"],
    )


def _unwatched(manifest: Manifest, output: str, seconds: float, *, resumed: bool) -> Summary:
    """The summary of a job of which only the output is known."""
    summary = _summary(manifest, output, seconds)
    if resumed:
        return summary
    return replace(summary, tokens_per_second=summary.tokens / seconds if summary.tokens else None, resumed=0)


def _of_this_run(summary: Summary, records: Sequence[SplitRecord]) -> Summary:
    """The summary with the counts of the records that this run has made."""
    return replace(
        summary,
        rows_computed=sum(record.rows for record in records),
        tokens_computed=sum(record.statistics.tokens or 0 for record in records),
    )


def _summary(manifest: Manifest, output: str, seconds: float) -> Summary:
    done = manifest.statistics
    return Summary(
        output=output,
        rows=manifest.rows,
        rejects=manifest.rejects,
        tokens=done.tokens or 0,
        truncated=done.truncated or 0,
        seconds=seconds,
        tokens_per_second=None,
        padding=None,
        splits=len(holding(manifest.records)),
        resumed=None,
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        unread=manifest.unread,
        losses=lost_rows(manifest.records),
        format=manifest.writer["format"],
    )
