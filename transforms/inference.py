"""Features as Beam transforms: thin wiring of ``featurize`` around one model per worker."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints.row_type import RowTypeConstraint
from typing_extensions import Unpack

from . import notebooks, schema_rows  # noqa: F401 - lets pipelines be built in IPython
from .checks import check_keywords
from .distilbert.checkpoint import Checkpoint
from .encoder import Encoder, EngineSettings
from .errors import SettingsError
from .featurization import FeatureSpec
from .fitness import check_spec
from .row_fields import are_dicts, wrong_type
from .stage import Stage
from .watchdog import STALL_TIMEOUT
from .workers import FAILED, FeaturizeBatches, FeaturizeRows, wrong_element

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


class Featurize(Stage):
    """Append features to documents: one tokenization and one model pass for all that is asked.

    Takes record batches, as ``ReadDocuments`` gives them, and appends columns; or rows (``beam.Row``, NamedTuple,
    dataclass) or dicts, and appends fields: dicts come back as dicts, all others as ``beam.Row``, each with the time
    and the windows it came with. See ``featurization.featurize`` for the columns.

        rows = pipeline | beam.Create([beam.Row(id=1, text="good film")]) | Embed("./minilm")

    Args:
        model: a folder, an fsspec URL of a folder, or a Hub id, best with a commit: ``name@<commit>``.
        features: any of ``embedding``, ``label``, ``score``, ``scores``, ``input_ids``.
        text: text column or columns; those ``ReadDocuments`` named by default, else ``text``.
        separator: joins several text columns.
        pooling: ``mean``, ``cls`` or ``max``; the checkpoint's own by default.
        normalize: scale vectors to unit length; the checkpoint's own by default.
        dimensions: keep only the first so many dimensions of the vectors, before they are scaled; the checkpoint's own
            (``truncate_dim``) by default, which cuts after that.
        embedding_dtype: stored type of the vectors, ``float32`` or ``float16``; Spark, Delta and Daft before 0.7 cannot
            open a Parquet file that holds float16, whatever column is read.
        max_length: tokens of a text at most; the checkpoint's own by default.
        prefix: put before every new column name.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, settled on the worker.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16`` or ``int8``, settled on the worker.
        threads: CPU threads of the model.
        token_budget: tokens in one micro-batch.
        model_sha256: SHA-256 of the model.safetensors to be used, in hexadecimal, as outputs record it
            (``weights_sha256``) and ``sha256sum`` prints it; with any other the job fails before a row is computed. Of
            weights in several files, that of the lines which ``sha256sum model-*.safetensors`` prints.
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
        self._apart = False
        self.job = ""  # whose counts the work raises, see ``metrics``
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
        return _Identity(self.model, self.engine, self.spec)

    def with_exception_handling(self) -> Featurize:
        """The same transform with a second output, of the rows that could not be processed.

        Its elements have the shape that Beam's own dead letters have: ``(element, (error class, reason, []))``, the
        element being the row or dict that came, or of a record batch one row. Without this, such a row stays in the
        output with null features. In batches of ``ReadDocuments`` it becomes a reject in either case.

            good, bad = rows | Embed("./minilm").with_exception_handling()
        """
        transform = copy.copy(self)
        transform._apart = True
        return transform

    def expand(self, documents: beam.PCollection) -> Any:
        if Path(self.model).expanduser().is_dir():
            checkpoint = Checkpoint.open(self.model, self.engine.model_sha256)
            check_spec(checkpoint, self.spec)
            for sentence in checkpoint.unheeded:
                _log.warning("%s", sentence)
        kind = documents.element_type
        settings = self.model, self.engine, self.spec, self.stall_timeout, self._apart, self.job
        computing: beam.DoFn
        result: Any
        if isinstance(kind, type) and kind is not object and issubclass(pa.RecordBatch, kind):
            computing, result = FeaturizeBatches(*settings), pa.RecordBatch
        else:
            columns = self.spec.text or ("text",)
            names, result = self._rows(kind, columns)
            computing = FeaturizeRows(*settings, columns, names)
        computed = beam.ParDo(computing).with_output_types(result)
        if not self._apart:
            return documents | computed
        outputs = documents | computed.with_outputs(FAILED, main="featurized")
        return outputs["featurized"], outputs[FAILED]

    def _rows(self, kind: Any, columns: tuple[str, ...]) -> tuple[tuple[str, ...] | None, Any]:
        """Names of the fields of rows, if the type of the PCollection tells them, and the type of what comes out."""
        fields = RowTypeConstraint.from_user_type(kind) or kind
        if isinstance(fields, RowTypeConstraint):
            schema_rows.check_fields(fields, columns, self.spec.columns)
            return tuple(name for name, _ in fields._fields), schema_rows.output_type(fields, self.spec)
        if are_dicts(fields):
            return None, dict[str, Any]
        if (wrong := wrong_type(fields)) is not None:
            raise SettingsError(wrong_element(wrong))
        return None, Any


class Embed(Featurize):
    """Append ``embedding``, fixed_size_list<float>[dimensions]; the arguments are those of ``Featurize``."""

    def __init__(self, model: str | Path, **settings: Unpack[_Vectors]) -> None:
        check_keywords("Embed", settings, settings_of(Embed))
        super().__init__(model, ("embedding",), **settings)


class Classify(Featurize):
    """Append ``label`` and ``score``, with ``scores=True`` all scores too; the arguments are those of ``Featurize``."""

    def __init__(self, model: str | Path, *, scores: bool = False, **settings: Unpack[_Model]) -> None:
        check_keywords("Classify", settings, settings_of(Classify))
        super().__init__(model, ("label", "score", "scores") if scores else ("label", "score"), **settings)


class Tokenize(Featurize):
    """Append ``input_ids``, list<int32>, without loading the model; the arguments are those of ``Featurize``."""

    def __init__(self, model: str | Path, **settings: Unpack[_Text]) -> None:
        check_keywords("Tokenize", settings, settings_of(Tokenize))
        super().__init__(model, ("input_ids",), **settings)


def settings_of(kind: type[Featurize]) -> tuple[str, ...]:
    """Names of the settings that a transform takes besides the model."""
    of_all = tuple(_Vectors.__annotations__)
    theirs = {Embed: of_all, Classify: (*_Model.__annotations__, "scores"), Tokenize: tuple(_Text.__annotations__)}
    return theirs.get(kind, (*of_all, "features"))


class _Identity:
    """What a ledger asks of a stage's model, on a worker, where it keeps it open for the stages after."""

    def __init__(self, model: str, engine: EngineSettings, spec: FeatureSpec) -> None:
        self._arguments = model, engine, spec
        self._encoder: Encoder | None = None

    def __call__(self) -> dict[str, Any]:
        model, engine, spec = self._arguments
        self._encoder = Encoder.shared(model, engine)
        return self._encoder.identity(spec, compute=False)

    def __reduce__(self) -> tuple[type[_Identity], tuple[str, EngineSettings, FeatureSpec]]:
        return _Identity, self._arguments

    def check_dtype(self, dtype: str) -> None:
        """Raises SettingsError unless this worker can compute in a dtype."""
        from .distilbert.compute import choose_compute

        _, engine, _ = self._arguments
        choose_compute(engine.device, dtype, engine.threads)


def _seconds(stall_timeout: float) -> float:
    if isinstance(stall_timeout, bool) or not isinstance(stall_timeout, int | float) or not 0 <= stall_timeout < 1e9:
        raise SettingsError(f"`stall_timeout` is {stall_timeout!r}; give a number of seconds, or 0 for no limit")
    return float(stall_timeout)
