"""Appending features to a record batch: one tokenization and one pass for everything that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .checks import whole_number
from .errors import InputError, SettingsError
from .metrics import count
from .names import FEATURES, columns_like
from .provenance import ROW, Provenance, Reject

if TYPE_CHECKING:
    from .encoder import Encoder
    from .isolation import IsolatedEncoder

__all__ = [
    "FEATURES",
    "Failure",
    "FeatureSpec",
    "document_texts",
    "featurize",
    "featurize_with_failures",
    "without_rows",
]

Failure = tuple[str, str, str]
"""Why a row could not be processed: stage, error class, and a reason without any text of the document."""

_POOLING = ("mean", "cls", "max")
_VECTOR_DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The features to compute and how.

    Attributes:
        features: names out of ``FEATURES``.
        pooling: ``mean``, ``cls`` or ``max``; None for the checkpoint's own (``mean`` where it has none).
        normalize: scale vectors to unit length, after the cut; None for the checkpoint's own.
        dimensions: keep only the first so many dimensions; None for the checkpoint's own.
        embedding_dtype: stored type of the vectors, ``float32`` or ``float16``.
        max_length: tokens of a text at most, special tokens included; None for the checkpoint's own.
        prefix: put before every column name.
        text: text columns, joined in this order; None for those the reader named, or ``text``.
        separator: joins several text columns; None for the reader's.

    Raises:
        SettingsError: a value is not allowed.
    """

    features: tuple[str, ...]
    pooling: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    embedding_dtype: str = "float32"
    max_length: int | None = None
    prefix: str = ""
    text: tuple[str, ...] | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        for name in self.features:
            _allow("features", name, FEATURES)
        if not self.features or len(set(self.features)) != len(self.features):
            raise SettingsError(
                f"`features` are {list(self.features)}; name at least one of {', '.join(FEATURES)}, each once"
            )
        if self.pooling is not None:
            _allow("pooling", self.pooling, _POOLING)
        _allow("embedding_dtype", self.embedding_dtype, _VECTOR_DTYPES)
        if self.dimensions is not None:
            whole_number("dimensions", self.dimensions, 1, 1 << 20)
        if self.max_length is not None:
            # Two special tokens and one of the text at least.
            whole_number("max_length", self.max_length, 3, 1 << 30)
        if self.text is not None and not self.text:
            raise SettingsError("`text` names no column; name at least one, or leave it out")

    @property
    def needs_encoder(self) -> bool:
        """Whether the model has to run at all."""
        return any(name != "input_ids" for name in self.features)

    @property
    def needs_classes(self) -> bool:
        """Whether the classification head has to run."""
        return any(name in self.features for name in ("label", "score", "scores"))

    @property
    def names(self) -> tuple[str, ...]:
        """The features with those that always come along, without prefix."""
        return (*self.features, "token_count", "truncated")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are added, in their order."""
        return tuple(self.prefix + name for name in self.names)

    def settings(self, model: str, dtype: str) -> dict[str, Any]:
        """What determines the output of a model, as JSON; ``dtype`` as the user set it."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"model": model, "dtype": dtype if self.needs_encoder else None, **fields}


def _allow(setting: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SettingsError(f"`{setting}` is {value!r}; it must be one of {', '.join(allowed)}")


def document_texts(batch: pa.RecordBatch, columns: Sequence[str], separator: str) -> pa.Array:
    """The text of each row: string[rows], null where all its columns are null.

    Raises:
        InputError: a column is missing or is not text.
    """
    parts = []
    for name in columns:
        if name not in batch.schema.names:
            known = [column for column in batch.schema.names if column != ROW]
            raise InputError(f"the batch has no text column {name!r}; {columns_like(name, known)}")
        part = batch.column(name)
        if pa.types.is_dictionary(part.type):
            part = part.dictionary_decode()
        if not (
            pa.types.is_string(part.type) or pa.types.is_large_string(part.type) or pa.types.is_string_view(part.type)
        ):
            raise InputError(f"the text column {name!r} is of type {part.type}; it must be a string")
        parts.append(part.cast(pa.string()) if not pa.types.is_string(part.type) else part)
    if len(parts) == 1:
        return parts[0]
    empty = parts[0].is_null()
    for part in parts[1:]:
        empty = pc.and_(empty, part.is_null())
    # Arrow's join leaves a row out where all its values are null.
    parts[0] = pc.if_else(empty, "", parts[0])
    joined = pc.binary_join_element_wise(*parts, separator, null_handling="skip")
    return pc.if_else(empty, pa.scalar(None, pa.string()), joined)


def refuse_taken(names: Sequence[str], spec: FeatureSpec) -> None:
    """Raises SettingsError if a column of the input has the name of a feature."""
    taken = [name for name in spec.columns if name in names]
    if taken:
        raise SettingsError(f"the input has a column {taken[0]!r} already; set `prefix` to name the features otherwise")


def featurize(batch: pa.RecordBatch, spec: FeatureSpec, encoder: Encoder | IsolatedEncoder) -> pa.RecordBatch:
    """Append the columns of ``spec`` to a batch.

    A row without text keeps null features. A row that breaks the tokenizer or the model is taken out and named in the
    batch's provenance; in a batch without provenance, where it could not be named, it stays with null features.

    Columns, each after ``prefix``:
        embedding: fixed_size_list<float or halffloat>[dimensions]; declared not null where every row has a text.
        label: string, the most probable class. score: float, its probability.
        scores: struct of float, the probability of every class.
        input_ids: list<int32>, as the model saw them. token_count: int32, their number.
        truncated: bool, whether the text had more.

    Raises:
        SettingsError: a column of that name is there already, or the checkpoint cannot give a feature.
        InputError: the text column is missing or is not text.
    """
    return featurize_with_failures(batch, spec, encoder)[0]


def featurize_with_failures(
    batch: pa.RecordBatch, spec: FeatureSpec, encoder: Encoder | IsolatedEncoder
) -> tuple[pa.RecordBatch, dict[int, Failure]]:
    """``featurize``, and why rows failed, by their position in the batch as it came."""
    provenance = Provenance.of(batch)
    if provenance is not None and provenance.finished:
        return without_rows(batch, spec), {}
    refuse_taken(batch.schema.names, spec)
    text_columns, separator = text_source(spec, provenance)
    texts = document_texts(batch, text_columns, separator)
    present = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
    count(read_bytes=pc.sum(pc.binary_length(texts), min_count=0).as_py())
    outputs = encoder.outputs(texts.drop_null() if texts.null_count else texts, spec)

    # source[i]: which output row belongs to row i of the batch; -1 for none.
    source = np.full(batch.num_rows, -1, dtype=np.int64)
    source[present[outputs.rows]] = np.arange(len(outputs.rows))
    failed = {int(present[row]): failure for row, failure in sorted(outputs.failed.items())}
    if provenance is not None:
        provenance = provenance.counted(batch.num_rows)
        if failed:
            rejects = [_reject(batch, row, failure, texts, provenance) for row, failure in failed.items()]
            keep = np.ones(batch.num_rows, dtype=np.bool_)
            keep[list(failed)] = False
            batch, source = batch.filter(pa.array(keep)), source[keep]
            provenance = provenance.reject(*rejects)
            if provenance.rows is not None:
                provenance = replace(provenance, rows=provenance.rows - len(failed))
        batch = replace(provenance, models=(*provenance.models, encoder.identity(spec))).attach(batch)
    whole = np.array_equal(source, np.arange(len(outputs.rows)))
    index = None if whole else pa.array(source, mask=source < 0)
    # Declared where it is known, so that a writer can tell from the schema alone whether a vector may be null.
    certain = provenance is not None and not provenance.null_texts and provenance.text == text_columns
    for name, column in zip(spec.columns, outputs.columns, strict=True):
        field = pa.field(name, column.type, nullable=not (certain and pa.types.is_fixed_size_list(column.type)))
        batch = batch.append_column(field, column if index is None else column.take(index))
    return batch, failed


def without_rows(batch: pa.RecordBatch, spec: FeatureSpec) -> pa.RecordBatch:
    """A batch without rows of a finished split, with the columns that steps of the user's may look for.

    Without a checkpoint nothing is known of labels and dimensions, and no row will be of these types.
    """
    kinds = {
        "embedding": pa.list_(pa.float32(), spec.dimensions or -1),
        "label": pa.string(),
        "score": pa.float32(),
        "scores": pa.struct([]),
        "input_ids": pa.list_(pa.int32()),
        "token_count": pa.int32(),
        "truncated": pa.bool_(),
    }
    for name, column in zip(spec.names, spec.columns, strict=True):
        if column not in batch.schema.names:
            batch = batch.append_column(column, pa.array([], kinds[name]))
    return batch


def text_source(spec: FeatureSpec, provenance: Provenance | None) -> tuple[tuple[str, ...], str]:
    """Text columns and separator: the spec's, else the reader's, else ``text``."""
    named = provenance.text if provenance is not None else ()
    separator = spec.separator if spec.separator is not None else (provenance.separator if provenance else " ")
    return spec.text or named or ("text",), separator


def _reject(batch: pa.RecordBatch, row: int, failure: Failure, texts: pa.Array, provenance: Provenance) -> Reject:
    names = batch.schema.names
    stage, error, reason = failure
    return Reject.of(
        stage,
        error,
        reason,
        row=batch.column(ROW)[row].as_py() if ROW in names else None,
        id=batch.column(provenance.id)[row] if provenance.id in names else None,
        length=pc.binary_length(texts[row]).as_py(),
        text=texts[row].as_buffer() if provenance.rejects_include_text else None,
    )


@dataclass(frozen=True, slots=True)
class VectorSettings:
    """How vectors are stored.

    Attributes:
        dimensions: how many of each are kept; None for all.
        normalize: whether they are scaled to unit length.
        dtype: ``float32`` or ``float16``.
        normalize_first: whether they are scaled before they are cut, and so not to unit length after it.
    """

    dimensions: int | None
    normalize: bool
    dtype: str = "float32"
    normalize_first: bool = False


def embedding_column(
    vectors: npt.NDArray[np.float32], settings: VectorSettings
) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Cut, normalize and store vectors, float32[rows, dim].

    Returns:
        fixed_size_list[rows], and bool[rows], whether a vector is finite in the type it is stored in.
    """
    if settings.normalize_first:
        vectors = finish_vectors(vectors, None, normalize=settings.normalize)[:, : settings.dimensions]
    else:
        vectors = finish_vectors(vectors, settings.dimensions, normalize=settings.normalize)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=settings.dtype)
    column = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), stored.shape[1])
    return column, np.isfinite(stored).all(axis=1)


def finish_vectors(
    vectors: npt.NDArray[np.float32], dimensions: int | None, *, normalize: bool
) -> npt.NDArray[np.float32]:
    """Keep the first dimensions, then scale to unit length; a zero vector stays zero, one too long to tell is NaN."""
    vectors = vectors[:, :dimensions]
    if normalize:
        with np.errstate(over="ignore"):
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        norms[np.isinf(norms)] = np.nan
        vectors = vectors / np.maximum(norms, 1e-12)
    return vectors
