"""Features as Beam transforms: thin wiring of ``featurize`` around one model per worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.typehints.row_type import RowTypeConstraint
from typing_extensions import Unpack

from . import schema_rows
from .discretion import discreet
from .distilbert.checkpoint import Checkpoint
from .encoder import Encoder, EngineSettings, check_spec
from .errors import SettingsError
from .featurization import FeatureSpec, featurize
from .isolation import IsolatedEncoder
from .provenance import Provenance
from .watchdog import STALL_TIMEOUT, WATCHDOG

__all__ = ["Classify", "Embed", "Featurize", "Tokenize"]

_log = logging.getLogger(__name__)


class _Text(TypedDict, total=False):
    """Settings of every transform; ``Featurize`` explains them."""

    text: str | Sequence[str] | None
    separator: str | None
    max_length: int | None
    prefix: str
    model_sha256: str | None
    stall_timeout: float


class _Model(_Text, total=False):
    device: str
    dtype: str
    threads: int | None
    token_budget: int | None


class _Vectors(_Model, total=False):
    pooling: str | None
    normalize: bool | None
    dimensions: int | None
    embedding_dtype: str


class Featurize(beam.PTransform):
    """Append features to documents: one tokenization and one model pass for all that is asked.

    Takes record batches, as ``ReadDocuments`` gives them, and appends columns; or a PCollection with a Beam schema
    (``beam.Row``, NamedTuple, dataclass), and appends fields. See ``featurization.featurize`` for the columns.

    Args:
        model: a folder, an fsspec URL of a folder, or a Hub id, best with a commit: ``name@<commit>``.
        features: any of ``embedding``, ``label``, ``score``, ``scores``, ``input_ids``.
        text: text column or columns; those ``ReadDocuments`` named by default, else ``text``.
        separator: joins several text columns.
        pooling: ``mean``, ``cls`` or ``max``; the checkpoint's own by default.
        normalize: scale vectors to unit length; the checkpoint's own by default.
        dimensions: keep only the first so many dimensions of the vectors.
        embedding_dtype: stored type of the vectors, ``float32`` or ``float16``.
        max_length: tokens of a text at most; the checkpoint's own by default.
        prefix: put before every new column name.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, settled on the worker.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16`` or ``int8``, settled on the worker.
        threads: CPU threads of the model.
        token_budget: tokens in one micro-batch.
        model_sha256: SHA-256 of the model.safetensors to be used, in hexadecimal, as outputs record it
            (``weights_sha256``) and ``sha256sum`` prints it; with any other the job fails before a row is computed.
        stall_timeout: seconds that tokenizer and model may go without progress. Then the process is ended, with code
            75, so that the runner, or the next run, tries again in a process of its own and finds the row. 0 for never.

    Raises:
        SettingsError: a value is not allowed, or the checkpoint cannot give a feature.
        CheckpointError: the model's folder is here and cannot be used.
    """

    def __init__(
        self,
        model: str | Path,
        features: Sequence[str],
        *,
        text: str | Sequence[str] | None = None,
        separator: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        embedding_dtype: str = "float32",
        max_length: int | None = None,
        prefix: str = "",
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        token_budget: int | None = None,
        model_sha256: str | None = None,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        super().__init__()
        if isinstance(features, str):
            features = (features,)
        self.model = str(model)
        self.engine = EngineSettings(device, dtype, threads, token_budget, model_sha256)
        self.stall_timeout = _seconds(stall_timeout)
        self.spec = FeatureSpec(
            features=tuple(features),
            pooling=pooling,
            normalize=normalize,
            dimensions=dimensions,
            embedding_dtype=embedding_dtype,
            max_length=max_length,
            prefix=prefix,
            text=(text,) if isinstance(text, str) else None if text is None else tuple(text),
            separator=separator,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the output besides the input, as JSON; recorded with it."""
        return self.spec.settings(self.model, self.engine.dtype)

    @property
    def identity(self) -> Callable[[], dict[str, Any]]:
        """What tells weights, tokenizer and configuration of the model, for ``WriteFeatures.ledger``.

        To be called on a worker: the checkpoint is fetched there and its files are hashed, but no weight is loaded.
        """
        return partial(_identity, self.model, self.engine, self.spec)

    def expand(self, documents: beam.PCollection) -> beam.PCollection:
        if Path(self.model).expanduser().is_dir():
            check_spec(Checkpoint.open(self.model, self.engine.model_sha256), self.spec)
        fields = RowTypeConstraint.from_user_type(documents.element_type) or documents.element_type
        if isinstance(fields, RowTypeConstraint):
            return self._expand_rows(documents, fields)
        if isinstance(fields, type) and fields is not Any and not issubclass(pa.RecordBatch, fields):
            raise SettingsError(_wrong_element(fields))
        computing = _FeaturizeBatch(self.model, self.engine, self.spec, self.stall_timeout)
        return documents | beam.ParDo(computing).with_output_types(pa.RecordBatch)

    def _expand_rows(self, documents: beam.PCollection, fields: RowTypeConstraint) -> beam.PCollection:
        columns = self.spec.text or ("text",)
        schema_rows.check_fields(fields, columns, self.spec.columns)
        names = tuple(name for name, _ in fields._fields)
        computing = _FeaturizeRows(self.model, self.engine, self.spec, self.stall_timeout, columns, names)
        return (
            documents
            # Bounded in the characters of the texts as well.
            | beam.BatchElements(
                min_batch_size=256, max_batch_size=4096, element_size_fn=partial(schema_rows.weight, columns)
            )
            | beam.ParDo(computing).with_output_types(schema_rows.output_type(fields, self.spec))
        )


class Embed(Featurize):
    """Append ``embedding``, fixed_size_list<float>[dimensions]; the arguments are those of ``Featurize``."""

    def __init__(self, model: str | Path, **settings: Unpack[_Vectors]) -> None:
        super().__init__(model, ("embedding",), **settings)


class Classify(Featurize):
    """Append ``label`` and ``score``, with ``scores=True`` all scores too; the arguments are those of ``Featurize``."""

    def __init__(self, model: str | Path, *, scores: bool = False, **settings: Unpack[_Model]) -> None:
        super().__init__(model, ("label", "score", "scores") if scores else ("label", "score"), **settings)


class Tokenize(Featurize):
    """Append ``input_ids``, list<int32>, without loading the model; the arguments are those of ``Featurize``."""

    def __init__(self, model: str | Path, **settings: Unpack[_Text]) -> None:
        super().__init__(model, ("input_ids",), **settings)


def _identity(model: str, engine: EngineSettings, spec: FeatureSpec) -> dict[str, Any]:
    return Encoder.shared(model, engine).identity(spec, compute=False)


def _wrong_element(kind: type) -> str:
    return (
        f"an element is a {kind.__name__}; features are computed for pyarrow record batches, as ReadDocuments gives "
        "them, or for a PCollection with a Beam schema (beam.Row, NamedTuple, dataclass)"
    )


def _seconds(stall_timeout: float) -> float:
    if isinstance(stall_timeout, bool) or not isinstance(stall_timeout, int | float) or not 0 <= stall_timeout < 1e9:
        raise SettingsError(f"stall_timeout is {stall_timeout!r}; give a number of seconds, or 0 for no limit")
    return float(stall_timeout)


class _Worker(beam.DoFn):
    """Holds the encoder that all stages of the process share."""

    def __init__(self, model: str, engine: EngineSettings, spec: FeatureSpec, stall_timeout: float) -> None:
        self._model = model
        self._engine = engine
        self._spec = spec
        self._stall_timeout = stall_timeout
        self._encoder: Encoder | None = None
        self._isolated: IsolatedEncoder | None = None
        self._documents = Metrics.counter("distilbeam", "documents")
        self._tokens = Metrics.counter("distilbeam", "tokens")
        self._truncated = Metrics.counter("distilbeam", "truncated")
        self._rejected = Metrics.counter("distilbeam", "rejected_by_model")

    # No property, since Beam looks at every attribute when a pipeline is built, and would load the model there and send
    # it. Not in setup(): a job whose splits are all finished needs no model.
    def encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = Encoder.shared(self._model, self._engine)
        return self._encoder

    def featurize(self, batch: pa.RecordBatch, provenance: Provenance | None = None) -> pa.RecordBatch:
        """The batch with its features; in a process of its own where an earlier attempt at its split has died."""
        if provenance is None:
            encoder: Encoder | IsolatedEncoder = self.encoder()
            what = f"{batch.num_rows} rows"
        else:
            encoder = self.isolated() if provenance.attempt > 1 else self.encoder()
            what = f"batch {provenance.sequence} of split {provenance.ordinal} ({provenance.source!r})"
        with WATCHDOG.watch(what, self._stall_timeout):
            return featurize(batch, self._spec, encoder)

    def isolated(self) -> IsolatedEncoder:
        if self._isolated is None:
            _log.info("work on a split was begun before and did not end; its rows run in a process of their own")
            self._isolated = IsolatedEncoder.shared(self._model, self._engine, self._spec, self._stall_timeout)
        return self._isolated

    def teardown(self) -> None:
        if self._isolated is not None:
            self._isolated.release()
            self._isolated = None

    def _count(self, batch: pa.RecordBatch) -> None:
        counts = batch.column(self._spec.prefix + "token_count").to_numpy(zero_copy_only=False)
        self._documents.inc(batch.num_rows)
        self._tokens.inc(int(np.nansum(counts)))
        self._truncated.inc(batch.column(self._spec.prefix + "truncated").true_count)


class _FeaturizeBatch(_Worker):
    @discreet
    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if not isinstance(batch, pa.RecordBatch):
            raise SettingsError(_wrong_element(type(batch)))
        provenance = Provenance.of(batch)
        if provenance is not None and provenance.finished:
            yield batch
            return
        result = self.featurize(batch, provenance)
        self._count(result)
        self._rejected.inc(batch.num_rows - result.num_rows)
        yield result


class _FeaturizeRows(_Worker):
    def __init__(
        self,
        model: str,
        engine: EngineSettings,
        spec: FeatureSpec,
        stall_timeout: float,
        columns: tuple[str, ...],
        names: tuple[str, ...],
    ) -> None:
        super().__init__(model, engine, spec, stall_timeout)
        self._columns = columns
        self._names = names

    @discreet
    def process(self, elements: Sequence[Any]) -> Iterator[beam.Row]:
        batch = schema_rows.text_batch(elements, self._columns)
        result = self.featurize(batch)
        self._count(result)
        # A row that could not be processed stays, with null features; it is counted all the same.
        missing = result.column(self._spec.prefix + "token_count").null_count
        self._rejected.inc(missing - schema_rows.without_text(elements, self._columns))
        yield from schema_rows.extend(elements, self._names, result.select(self._spec.columns))
