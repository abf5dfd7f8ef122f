"""One loaded checkpoint: the features without Beam, and what every worker shares."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distilbeam import __version__

from . import featurization
from .checks import check_sha256, whole_number
from .distilbert.checkpoint import Checkpoint
from .distilbert.tokenizer import WordPieceTokenizer
from .errors import DistilbeamError, SettingsError
from .featurization import FeatureSpec, VectorSettings
from .fitness import check_spec
from .halving import find_failing
from .metrics import count
from .tokenization import Tokens, tokenize, tokenize_each
from .watchdog import WATCHDOG

if TYPE_CHECKING:
    from .distilbert.engine import Engine, Result

__all__ = ["Encoder", "Prediction"]

_log = logging.getLogger(__name__)

_DEVICES = "auto, cpu, cuda or cuda:N"
_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


class Prediction(NamedTuple):
    """The most probable class of a text and its probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Outputs:
    """Feature columns of the rows that came through.

    Attributes:
        rows: int64[good rows], positions in the given texts, ascending.
        columns: one array per column of the spec, each of good rows.
        failed: (stage, error class, reason) by position.
    """

    rows: npt.NDArray[np.int64]
    columns: list[pa.Array]
    failed: dict[int, tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where and how the model runs; None and ``auto`` are settled where the work is done.

    ``model_sha256`` is what its model.safetensors must have, in hexadecimal; None for anything. ``pinned`` is the dtype
    that ``auto`` stands for where rows in it are there already; None if the worker may choose.

    Raises:
        SettingsError: a value is not allowed.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    token_budget: int | None = None
    model_sha256: str | None = None
    pinned: str | None = None

    def __post_init__(self) -> None:
        name, _, index = self.device.partition(":")
        if name not in ("auto", "cpu", "cuda") or (":" in self.device and (name != "cuda" or not index.isdecimal())):
            raise SettingsError(f"`device` is {self.device!r}; it must be {_DEVICES}")
        if self.dtype not in _DTYPES:
            raise SettingsError(f"`dtype` is {self.dtype!r}; it must be one of {', '.join(_DTYPES)}")
        if self.dtype == "int8" and name == "cuda":
            raise SettingsError(f"`dtype='int8'` is for CPUs, and `device` is {self.device!r}; use another dtype there")
        if self.pinned is not None and self.pinned not in _DTYPES[1:]:
            raise SettingsError(f"pinned is {self.pinned!r}; it must be one of {', '.join(_DTYPES[1:])}")
        for setting in ("threads", "token_budget"):
            if getattr(self, setting) is not None:
                whole_number(setting, getattr(self, setting), 1, 1 << 30)
        if self.model_sha256 is not None:
            check_sha256("model_sha256", self.model_sha256)

    @property
    def precision(self) -> str:
        """The dtype to ask for on the worker, ``auto`` if it may choose."""
        return self.pinned if self.dtype == "auto" and self.pinned else self.dtype


class Encoder:
    """A DistilBERT checkpoint with its tokenizer, ready to use.

    ``Encoder.load("folder").embed(["a text"])`` gives what the pipelines give. Weights are loaded when they are first
    needed; calls from several threads take turns.
    """

    # Alive as long as a stage uses it; the locks as long as somebody waits for what is being opened.
    _shared: ClassVar[MutableMapping[tuple[str, EngineSettings], Encoder]] = WeakValueDictionary()
    _opening: ClassVar[MutableMapping[tuple[str, EngineSettings], threading.Lock]] = WeakValueDictionary()
    _shared_lock = threading.Lock()

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self.checkpoint = checkpoint
        self._settings = settings
        self._tokenizer = WordPieceTokenizer.load(
            checkpoint.folder, checkpoint.config.vocab_size, checkpoint.tokenizer_sha256
        )
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        token_budget: int | None = None,
        model_sha256: str | None = None,
    ) -> Encoder:
        """Find, fetch and verify a checkpoint.

        Args:
            model: a folder, an fsspec URL of a folder, or a Hub id, best with a commit: ``name@<commit>``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``auto``, ``float32``, ``bfloat16``, ``float16`` (on GPUs) or ``int8`` (on CPUs).
            threads: CPU threads; None for as many as torch sees fit.
            token_budget: tokens in one micro-batch; None for what suits the device.
            model_sha256: SHA-256 of its model.safetensors, in hexadecimal; None for anything.

        Raises:
            CheckpointError: it cannot be found, is unsafe, damaged, not a DistilBERT, or not the one that is pinned.
            SettingsError: a setting is not allowed.
        """
        settings = EngineSettings(device, dtype, threads, token_budget, model_sha256)
        encoder = cls(Checkpoint.open(str(model), model_sha256), settings)
        encoder._tell()
        return encoder

    @classmethod
    def shared(cls, model: str, settings: EngineSettings) -> Encoder:
        """The one encoder of this process for these arguments.

        It is shared by all who hold it and goes with the last of them; asked for later, it is found and opened anew.
        Others are not kept waiting while one is fetched.
        """
        key = (model, settings)
        with cls._shared_lock:
            lock = cls._opening.get(key)
            if lock is None:
                lock = cls._opening[key] = threading.Lock()
        with lock:
            with cls._shared_lock:
                found = cls._shared.get(key)
            if found is None:
                found = cls(Checkpoint.open(model, settings.model_sha256), settings)
                if not Path(model).expanduser().is_dir():  # of a folder that is here it was said when the job was built
                    found._tell()
                with cls._shared_lock:
                    cls._shared[key] = found
            return found

    def _tell(self) -> None:
        for sentence in self.checkpoint.unheeded:
            _log.warning("%s", sentence)

    @property
    def engine(self) -> Engine:
        """The model itself, loaded at the first use."""
        if self._engine is not None:
            return self._engine
        with WATCHDOG.paused(), self._lock:
            if self._engine is None:
                from .distilbert.compute import choose_compute
                from .distilbert.engine import Engine

                settings = self._settings
                compute = choose_compute(settings.device, settings.precision, settings.threads)
                self._engine = Engine(self.checkpoint, compute, settings.token_budget)
            return self._engine

    def tokenize(self, texts: Iterable[str], *, max_length: int | None = None) -> Tokens:
        """Token ids with special tokens, truncated to ``max_length`` (the checkpoint's own by default)."""
        spec = FeatureSpec(("input_ids",), max_length=max_length)
        return tokenize(_listed(texts), self._tokenizer, self._max_length(spec))

    def embed(
        self,
        texts: Iterable[str],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        max_length: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """One vector per text, float32[texts, dimensions]; the arguments are those of ``Embed``."""
        spec = FeatureSpec(
            ("embedding",), pooling=pooling, normalize=normalize, dimensions=dimensions, max_length=max_length
        )
        (column, *_) = self._all(texts, spec)
        return np.asarray(column.flatten().to_numpy()).reshape(len(column), column.type.list_size)

    def classify(self, texts: Iterable[str], *, max_length: int | None = None) -> list[Prediction]:
        """The most probable class of each text."""
        labels, scores, *_ = self._all(texts, FeatureSpec(("label", "score"), max_length=max_length))
        return [Prediction(*pair) for pair in zip(labels.to_pylist(), scores.to_pylist(), strict=True)]

    def featurize(self, batch: pa.RecordBatch, spec: FeatureSpec) -> pa.RecordBatch:
        """Append the columns of ``spec`` to a batch; see ``featurization.featurize``."""
        return featurization.featurize(batch, spec, self)

    def identity(self, spec: FeatureSpec, *, compute: bool = True) -> dict[str, Any]:
        """What a reader of the features may want to know of the model, as JSON.

        Args:
            spec: what is computed.
            compute: whether to tell where it runs, for which the model is loaded.
        """
        checkpoint = self.checkpoint
        return {
            "id": checkpoint.id,
            "revision": checkpoint.revision,
            "weights_sha256": checkpoint.weights_sha256,
            "tokenizer_sha256": checkpoint.tokenizer_sha256,
            "settings": spec.settings(checkpoint.name, self._settings.dtype),
            "effective": self._effective(spec),
            "compute": dict(self.engine.description) if compute and spec.needs_encoder else None,
            "version": __version__,
        }

    def _effective(self, spec: FeatureSpec) -> dict[str, Any]:
        """What the checkpoint has decided: settings left to it, and all of its configuration that changes features."""
        checkpoint = self.checkpoint
        decided: dict[str, Any] = {"max_length": self._max_length(spec)}
        if self._tokenizer.markers:
            decided["added_tokens"] = len(self._tokenizer.markers.tokens)
        if spec.needs_encoder:
            decided |= {"n_heads": checkpoint.config.n_heads, "activation": checkpoint.config.activation}
        if "embedding" in spec.features:
            sentence = checkpoint.sentence
            decided["pooling"] = spec.pooling or sentence.pooling
            decided["normalize"] = sentence.normalize if spec.normalize is None else spec.normalize
            if sentence.dimensions is not None and spec.dimensions is None:
                decided["dimensions"] = sentence.dimensions
        if spec.needs_classes:
            decided |= {"labels": list(checkpoint.labels), "multi_label": checkpoint.multi_label}
            if checkpoint.regression:
                decided["regression"] = True
        return decided

    def outputs(self, texts: Sequence[str] | pa.Array, spec: FeatureSpec) -> Outputs:
        """Compute the columns of ``spec`` for texts, of which some may fail.

        Args:
            texts: strings, or string[rows] of Arrow without nulls.
        """
        check_spec(self.checkpoint, spec)
        tokens, rows, broken = tokenize_each(texts, self._tokenizer, self._max_length(spec))
        count(read_tokens=len(tokens.ids))
        failed = {row: ("tokenize", error, "the tokenizer failed on this text") for row, error in broken.items()}
        good = np.ones(len(rows), dtype=np.bool_)
        result: Result | None = None
        if spec.needs_encoder:
            modes = self._effective(spec)["pooling"].split("+") if "embedding" in spec.features else ()
            result = self.engine.run(tokens, modes, classify=spec.needs_classes)
            for position, (error, reason) in result.failed.items():
                good[position] = False
                failed[int(rows[position])] = ("model", error, reason)
        else:
            count(rows=len(tokens), tokens=len(tokens.ids))
        kept, columns, unfit = self._build(tokens, result, np.flatnonzero(good), spec)
        failed |= {int(rows[position]): ("model", *failure) for position, failure in unfit.items()}
        return Outputs(rows=rows[kept], columns=columns, failed=failed)

    def _build(
        self, tokens: Tokens, result: Result | None, good: npt.NDArray[np.int64], spec: FeatureSpec
    ) -> tuple[npt.NDArray[np.int64], list[pa.Array], dict[int, tuple[str, str]]]:
        """The positions that came through, their columns, and why the others did not."""
        pieces: list[tuple[npt.NDArray[np.int64], list[pa.Array]]] = []
        infinite: list[npt.NDArray[np.int64]] = []

        def attempt(part: npt.NDArray[np.int64]) -> tuple[str, str] | None:
            try:
                columns, finite = self._columns(tokens, result, part, spec)
                if not finite.all():
                    infinite.append(part[~finite])
                    part, columns = part[finite], [column.filter(pa.array(finite)) for column in columns]
            except Exception as error:
                return type(error).__name__, "the outputs of this row alone cannot be turned into features"
            pieces.append((part, columns))
            return None

        if not len(good):
            return good, self._columns(tokens, result, good, spec)[0], {}
        unfit = find_failing(good, attempt)
        reason = "NonFiniteError", f"the embedding is not finite as {spec.embedding_dtype}"
        unfit |= dict.fromkeys((int(row) for rows in infinite for row in rows), reason)
        if not pieces:
            none = good[:0]
            return none, self._columns(tokens, result, none, spec)[0], unfit
        if len(pieces) == 1:
            return (*pieces[0], unfit)
        columns = [pa.concat_arrays(list(parts)) for parts in zip(*(columns for _, columns in pieces), strict=True)]
        return np.concatenate([part for part, _ in pieces]), columns, unfit

    def _columns(
        self, tokens: Tokens, result: Result | None, part: npt.NDArray[np.int64], spec: FeatureSpec
    ) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """The columns of some rows, and bool[rows], whether all their numbers are finite as they are stored."""
        whole = len(part) == len(tokens)
        columns: dict[str, pa.Array] = {
            "token_count": pa.array(tokens.lengths[part].astype(np.int32)),
            "truncated": pa.array(tokens.truncated[part]),
        }
        if "input_ids" in spec.features:
            ids = pa.ListArray.from_arrays(pa.array(tokens.offsets.astype(np.int32)), pa.array(tokens.ids))
            columns["input_ids"] = ids if whole else ids.take(pa.array(part))
        finite = np.ones(len(part), dtype=np.bool_)
        if result is not None:
            if result.vectors:
                parts = list(result.vectors.values())
                vectors = parts[0] if len(parts) == 1 else np.hstack(parts)
                columns["embedding"], finite = featurization.embedding_column(
                    vectors if whole else vectors[part], self._vectors(spec)
                )
            if result.scores is not None:
                columns |= _class_columns(result.scores if whole else result.scores[part], self.checkpoint.labels)
        return [columns[name] for name in spec.names], finite

    def _vectors(self, spec: FeatureSpec) -> VectorSettings:
        effective = self._effective(spec)
        # sentence-transformers cuts what its Normalize has scaled; what is asked for is scaled after the cut.
        first = spec.dimensions is None and spec.normalize is None
        dimensions = effective.get("dimensions", spec.dimensions)
        return VectorSettings(dimensions, effective["normalize"], spec.embedding_dtype, normalize_first=first)

    def _all(self, texts: Iterable[str], spec: FeatureSpec) -> list[pa.Array]:
        outputs = self.outputs(_listed(texts), spec)
        for row, (stage, error, reason) in sorted(outputs.failed.items()):
            raise DistilbeamError(f"text {row} cannot be processed ({stage}, {error}): {reason}")
        return outputs.columns

    def _max_length(self, spec: FeatureSpec) -> int:
        return spec.max_length or self.checkpoint.max_length


def _listed(texts: Iterable[str]) -> list[str]:
    """Texts by position: a pandas Series, for one, would be looked up by label."""
    if isinstance(texts, str):
        raise SettingsError("texts is one string; give a list of strings")
    listed = list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise SettingsError(f"text {position} is a {type(text).__name__}; give strings only")
    return listed


def _class_columns(scores: npt.NDArray[np.float32], labels: Sequence[str]) -> dict[str, pa.Array]:
    best = scores.argmax(axis=1)
    return {
        "label": pa.array(labels, pa.string()).take(pa.array(best)),
        "score": pa.array(scores[np.arange(len(scores)), best]),
        "scores": pa.StructArray.from_arrays(
            [pa.array(column) for column in np.ascontiguousarray(scores.T)], list(labels)
        ),
    }
