"""What runs on a worker: batches or rows in, the same with features out, by the one model of the process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.utils.windowed_value import WindowedValue

from . import schema_rows
from .discretion import discreet
from .encoder import Encoder, EngineSettings
from .errors import SettingsError
from .featurization import Failure, FeatureSpec, featurize_with_failures, without_rows
from .isolation import IsolatedEncoder
from .metrics import counting_for
from .provenance import MAX_DEATHS, Provenance
from .row_fields import fields_of
from .watchdog import WATCHDOG

__all__ = ["FAILED", "FeaturizeBatches", "FeaturizeRows", "wrong_element"]

_log = logging.getLogger(__name__)

FAILED = "failed"
"""Tag of the output with the rows that could not be processed, where they are asked for."""

_MOST_WAITING = 4096
"""Rows that are gathered before they are computed, fewer where texts are long."""


def wrong_element(kind: type) -> str:
    """What is told of an element that is neither a batch nor a row."""
    cure = ""
    if issubclass(kind, str):
        cure = "; make rows of strings by beam.Map(lambda text: beam.Row(text=text))"
    elif issubclass(kind, pa.Table):
        cure = "; make batches of tables by beam.FlatMap(lambda table: table.to_batches(4096))"
    elif issubclass(kind, tuple):
        cure = "; make rows of tuples, such as beam.Map(lambda pair: beam.Row(key=pair[0], text=pair[1]))"
    return (
        f"an element is a {kind.__name__}; features are computed for pyarrow record batches, as ReadDocuments gives "
        f"them, for dicts, and for rows with named fields (beam.Row, NamedTuple, dataclass){cure}"
    )


class _Worker(beam.DoFn):
    """Holds the encoder that all stages of the process share."""

    def __init__(
        self,
        model: str,
        engine: EngineSettings,
        spec: FeatureSpec,
        stall_timeout: float,
        apart: bool = False,
        job: str = "",
    ) -> None:
        self._apart = apart
        self._job = job
        self._told: set[tuple[str, str]] = set()
        self._model = model
        self._engine = engine
        self._spec = spec
        self._stall_timeout = stall_timeout
        self._encoders: dict[EngineSettings, Encoder] = {}
        self._isolated: dict[EngineSettings, IsolatedEncoder] = {}
        self._documents = Metrics.counter("distilbeam", "documents")
        self._tokens = Metrics.counter("distilbeam", "tokens")
        self._truncated = Metrics.counter("distilbeam", "truncated")
        self._rejected = Metrics.counter("distilbeam", "rejected_by_model")

    # No property, since Beam looks at every attribute when a pipeline is built, and would load the model there and send
    # it. Not in setup(): a job whose splits are all finished needs no model.
    def encoder(self, engine: EngineSettings) -> Encoder:
        if engine not in self._encoders:
            self._encoders[engine] = Encoder.shared(self._model, engine)
        return self._encoders[engine]

    def featurize(
        self, batch: pa.RecordBatch, provenance: Provenance | None = None
    ) -> tuple[pa.RecordBatch, dict[int, Failure]]:
        """The batch with its features, and why rows failed, by position.

        It is computed in a process of its own where its split has died twice.
        """
        if provenance is None:
            encoder: Encoder | IsolatedEncoder = self.encoder(self._engine)
            what = f"{batch.num_rows} rows"
        else:
            engine = self._engine
            if dtypes := provenance.dtypes[len(provenance.models) :]:
                engine = replace(engine, pinned=dtypes[0] or None)
            # Next to a split that has died twice, as in a bundle that is tried again, once is a sign.
            suspect = provenance.attempt > (1 if self._isolated else MAX_DEATHS)
            encoder = self.isolated(engine) if suspect else self.encoder(engine)
            what = f"batch {provenance.sequence} of split {provenance.ordinal} ({provenance.source!r})"
        with WATCHDOG.watch(what, self._stall_timeout), counting_for(self._job):
            return featurize_with_failures(batch, self._spec, encoder)

    def isolated(self, engine: EngineSettings) -> IsolatedEncoder:
        if engine not in self._isolated:
            _log.info("work on a split was begun before and did not end; its rows run in a process of their own")
            self._isolated[engine] = IsolatedEncoder.shared(self._model, engine, self._spec, self._stall_timeout)
        return self._isolated[engine]

    def teardown(self) -> None:
        self._encoders = {}  # the last stage lets the model go
        for encoder in self._isolated.values():
            encoder.release()
        self._isolated = {}

    def _featurized(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """A batch of a PCollection of batches."""
        provenance = Provenance.of(batch)
        if provenance is not None and provenance.finished:
            yield without_rows(batch, self._spec)  # and without the model
            return
        result, failed = self.featurize(batch, provenance)
        if provenance is None:
            self._tell(failed)
            if self._apart and failed:
                for row, failure in failed.items():
                    yield beam.pvalue.TaggedOutput(FAILED, _letter(batch.slice(row, 1), failure))
                result = result.filter(pa.array([row not in failed for row in range(batch.num_rows)]))
        self._count(result, len(failed))
        yield result

    def _count(self, result: pa.RecordBatch, failed: int) -> None:
        counts = result.column(self._spec.prefix + "token_count").to_numpy(zero_copy_only=False)
        self._documents.inc(result.num_rows)
        self._tokens.inc(int(np.nansum(counts)))
        self._truncated.inc(result.column(self._spec.prefix + "truncated").true_count)
        self._rejected.inc(failed)

    def _tell(self, failed: Mapping[int, Failure]) -> None:
        """Says once of each kind of failure what nothing in the output will tell."""
        for stage, error, reason in failed.values():
            if (stage, error) in self._told:
                continue
            self._told.add((stage, error))
            _log.warning(
                "a row could not be processed (%s in stage %s: %s); such rows are counted as rejected_by_model, and %s",
                error,
                stage,
                reason,
                "set apart" if self._apart else "stay with null features: with_exception_handling() sets them apart",
            )


class FeaturizeBatches(_Worker):
    """Record batches in, record batches with features out."""

    @discreet
    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        if not isinstance(batch, pa.RecordBatch):
            raise SettingsError(wrong_element(type(batch)))
        yield from self._featurized(batch)


class FeaturizeRows(_Worker):
    """Rows or dicts in, the same with new fields out, each at its own time and in its own windows.

    Rows are gathered until the bundle ends or there are enough of them, whatever their windows: unlike
    ``BatchElements``, which gives all of a batch the end of their window for a time.

    Args:
        columns: the text fields.
        names: the fields of a row; None where the PCollection has no schema, and each element tells its own.
        apart: whether rows that fail leave by the output ``FAILED``, as ``(element, (error, reason, []))``.
    """

    def __init__(
        self,
        model: str,
        engine: EngineSettings,
        spec: FeatureSpec,
        stall_timeout: float,
        apart: bool,
        job: str,
        columns: tuple[str, ...],
        names: tuple[str, ...] | None,
    ) -> None:
        super().__init__(model, engine, spec, stall_timeout, apart, job)
        self._columns = columns
        self._names = names
        self._lacking: set[str] = set()  # text fields of which it was said that dicts lack them

    def start_bundle(self) -> None:
        # Rows on their way to the model: (element, time, windows, pane).
        self._waiting: list[tuple[Any, Any, tuple[Any, ...], Any]] = []
        self._weight = 0

    @discreet
    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> list[Any]:
        if isinstance(element, pa.RecordBatch):
            return list(self._featurized(element))
        if self._waiting and self._waiting[-1][0] is element:
            # Beam gives an element of several windows once for each; it is computed once.
            _, time, windows, same = self._waiting[-1]
            if time == timestamp and window not in windows:
                self._waiting[-1] = element, time, (*windows, window), same
                return []  # not None, of which Beam warns
        full = self._flush() if self._weight >= _MOST_WAITING else []
        self._waiting.append((element, timestamp, (window,), pane))
        self._weight += schema_rows.weight(element, self._columns)
        return full

    @discreet
    def finish_bundle(self) -> list[Any]:
        return self._flush()

    def _flush(self) -> list[Any]:
        waiting, self._waiting, self._weight = self._waiting, [], 0
        if not waiting:
            return []
        rows = [self._fields(element) for element, *_ in waiting]
        batch, failed = schema_rows.text_batch(rows, self._columns)
        result, failed_later = self.featurize(batch)
        failed |= failed_later
        self._tell(failed)
        self._count(result, len(failed))
        found: list[Any] = []
        extended = schema_rows.extended(rows, result.select(self._spec.columns))
        for position, ((element, time, windows, pane), fields) in enumerate(zip(waiting, extended, strict=True)):
            if self._apart and position in failed:
                letter = WindowedValue(_letter(element, failed[position]), time, windows, pane)
                found.append(beam.pvalue.TaggedOutput(FAILED, letter))
            else:
                value = fields if isinstance(element, dict) else beam.Row(**fields)
                found.append(WindowedValue(value, time, windows, pane))
        return found

    def _fields(self, element: Any) -> Mapping[str, Any]:
        fields = fields_of(element, self._names)
        if fields is None:
            raise SettingsError(wrong_element(type(element)))
        if self._names is None:
            # A dict may lack a key, as objects of JSON do; a row has the fields of its kind.
            schema_rows.check_row(fields, () if fields is element else self._columns, self._spec.columns)
            for name in self._columns:
                if name not in fields and name not in self._lacking:
                    self._lacking.add(name)
                    _log.warning(
                        "a dict has no text field %r; it and all others without it count as without text there, and "
                        "without any text the features are null; if the text is in another field, set `text` to it",
                        name,
                    )
        return fields


def _letter(element: Any, failure: Failure) -> tuple[Any, tuple[str, str, list[str]]]:
    """A row that failed as Beam's own dead letters have it; no line of a traceback, which may quote the text."""
    stage, error, reason = failure
    return element, (error, f"{reason} (stage {stage})", [])
