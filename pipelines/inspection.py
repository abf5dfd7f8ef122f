"""Looking into an output folder."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.json import ParseOptions, ReadOptions, open_json

from distilbeam.transforms.errors import InputError, OutputError, SettingsError
from distilbeam.transforms.input.formats.kinds import detect
from distilbeam.transforms.output.history import Entry, list_entries, load_entry
from distilbeam.transforms.output.increments import files_of, is_covered
from distilbeam.transforms.output.manifest import MANIFEST, STAGING, Manifest, feature_columns, find_manifest
from distilbeam.transforms.provenance import show_value
from distilbeam.transforms.storage.filesystems import join, list_files, open_input

from .opening import features_of, opening

__all__ = ["Commit", "Inspection", "Rejects", "TokenCounts", "Vectors", "inspect"]

_BATCH_ROWS = 8192
_BLOCK_BYTES = 64 << 20
_LABELS = 1000
_REJECTS = 5
_COMMITS = 5
_COUNTED = {
    "label": pa.string(),
    "token_count": pa.int32(),
    "truncated": pa.bool_(),
    "embedding": pa.list_(pa.float64()),
}
_REJECT_COLUMNS = ("source", "row", "line", "id", "stage", "error", "reason", "length")


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Lengths of the texts in tokens, special tokens included."""

    total: int
    minimum: int
    median: int
    p95: int
    maximum: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Vectors:
    """The embeddings; norms are of the finite vectors."""

    dimensions: int
    dtype: str
    count: int
    non_finite: int
    mean_norm: float | None
    minimum_norm: float | None
    maximum_norm: float | None


@dataclass(frozen=True, slots=True)
class Rejects:
    """Rows set aside: how many, how many of each stage and error, and a few of them."""

    total: int
    kinds: list[dict[str, Any]]
    examples: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit, as the history has it.

    Attributes:
        commit: its number.
        time: when it was begun, in UTC, as ISO 8601.
        rows: rows of the whole output.
        rejects: rows set aside.
        added: files that it added.
        removed: files that it removed.
        version: version of distilbeam.
    """

    commit: int
    time: str
    rows: int
    rejects: int
    added: int
    removed: int
    version: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an output folder holds.

    Attributes:
        output: the folder.
        rows: rows of all shards.
        commit: number of the commit that made it.
        history: the last five commits that led to it, newest first.
        unfinished: commits that were begun after it and not finished, oldest first. A job may be at it; if none is,
            the same job with ``if_exists="resume"`` finishes the last one.
        files: files of the input, as far as the manifest tells.
        covered: those among them whose rows are in an earlier output, named by ``since``.
        shards: number of shards.
        bytes: bytes of all shards.
        columns: name and Arrow type of each column.
        models: the models that made it, in order, as the manifest has them.
        computes: each device and dtype they ran in, with its ``stage`` (position of the model) and number of splits.
        rejects: rows set aside.
        dropped: rows that steps of the user's have taken out between reading and writing.
        added: rows that they have put in.
        labels: rows by label, most first; None without labels.
        tokens: lengths of the texts; None without a token count.
        vectors: the embeddings; None without them.
        sample: the first rows.
        features: folder that holds the features.
        opening: a call that opens the features, by name of the library; none for an output of the first versions, whose
            files lie at its top.
    """

    output: str
    commit: int
    history: list[Commit]
    unfinished: list[Commit]
    rows: int
    files: int
    covered: int
    shards: int
    bytes: int
    columns: dict[str, str]
    models: list[dict[str, Any]]
    computes: list[dict[str, Any]]
    rejects: Rejects
    labels: dict[str, int] | None
    tokens: TokenCounts | None
    vectors: Vectors | None
    sample: list[dict[str, Any]] = field(default_factory=list)
    features: str = ""
    opening: dict[str, str] = field(default_factory=dict)
    dropped: int = 0
    added: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All of it as what JSON knows."""
        return asdict(self)

    def __str__(self) -> str:
        from .display import plain, show_inspection

        return plain(partial(show_inspection, self))

    def _repr_html_(self) -> str:
        from .html import html_of_inspection

        return html_of_inspection(self)


def inspect(output: str | os.PathLike[str], rows: int = 5) -> Inspection:
    """Look into an output folder; all shards are read, a batch at a time.

    Where several models have added a feature, it is the first one's that is counted.

    Args:
        output: a folder that distilbeam has written, or its URL.
        rows: rows to show as they are.

    Raises:
        SettingsError: ``rows`` is negative.
        InputError: there is no finished output.
        OutputError: its files are not what its manifest says.
    """
    output = os.fspath(output)
    if rows < 0:
        raise SettingsError(f"`rows` is {rows}; give a whole number from 0")
    manifest = find_manifest(output)
    number = manifest.commit if manifest else 0
    unfinished = [_commit(load_entry(output, entry)) for entry in list_entries(output) if entry > number]
    if manifest is None:
        if unfinished:
            raise InputError(f"{output} holds no finished output: {_cure(unfinished[-1])}")
        if list_files(join(output, STAGING)):
            raise InputError(
                f"{output} holds only the work of an unfinished job; finish it by running the same job with "
                "`if_exists='resume'`"
            )
        raise InputError(f"{output} holds no output of distilbeam: there is no {join(output, MANIFEST)}")
    shards = [join(output, shard.path) for shard in manifest.shards]
    kinds = dict(manifest.schema)
    columns = feature_columns(manifest.models, kinds)
    statistics = _Statistics(columns)
    counted = 0
    try:
        for batch in _batches(shards, statistics.fields):
            counted += batch.num_rows
            statistics.add(batch)
        sample = list(islice(_rows(shards), rows))
        rejects = _rejects(output, manifest)
    except (InputError, OSError, ValueError, pa.ArrowException) as error:
        if unfinished:
            raise OutputError(
                f"{output} is not whole: {_cure(unfinished[-1])}; files of commit {number} may be gone already"
            ) from None
        raise OutputError(
            f"a file that the manifest of {output} names cannot be read ({type(error).__name__})"
        ) from None
    if counted != manifest.rows:
        raise OutputError(f"the manifest of {output} names {manifest.rows:,} rows, its files hold {counted:,}")
    return Inspection(
        output=output,
        commit=number,
        history=_history(output, number),
        unfinished=unfinished,
        rows=manifest.rows,
        files=len(files_of(manifest.records)),
        covered=len(files_of(record for record in manifest.records if is_covered(record.split))),
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        columns={name: _type_name(kind) for name, kind in kinds.items()},
        models=list(manifest.models),
        computes=manifest.computes,
        rejects=rejects,
        labels=statistics.labels(),
        tokens=statistics.tokens(),
        vectors=statistics.vectors(
            "float16" if "halffloat" in kinds.get(columns.get("embedding", ""), "") else "float32"
        ),
        sample=sample,
        features=output if manifest.has_first_layout else features_of(output),
        opening={} if manifest.has_first_layout else opening(output, manifest.writer["format"]),
        dropped=manifest.dropped,
        added=manifest.added,
    )


def _history(output: str, number: int) -> list[Commit]:
    """The last commits that led to one; entries in between that led nowhere are passed over."""
    numbers = set(list_entries(output))
    commits: list[Commit] = []
    while number in numbers and len(commits) < _COMMITS:
        entry = load_entry(output, number)
        commits.append(_commit(entry))
        number = entry.base
    return commits


def _commit(entry: Entry) -> Commit:
    return Commit(
        commit=entry.commit,
        time=entry.time,
        rows=entry.rows,
        rejects=entry.rejects,
        added=len(entry.added),
        removed=len(entry.removed),
        version=entry.distilbeam,
    )


def _cure(commit: Commit) -> str:
    return (
        f"commit {commit.commit}, begun {commit.time}, is not finished; unless a job is at it, run the same job "
        "with `if_exists='resume'` to finish it, or with `if_exists='overwrite'` to start anew"
    )


def _batches(urls: Sequence[str], fields: Mapping[str, pa.DataType | None]) -> Iterator[pa.RecordBatch]:
    """Some columns of all files, a batch at a time."""
    for url in urls:
        format, compression = detect(url)
        with _open(url, compression) as stream:
            if format == "parquet":
                with pq.ParquetFile(stream) as file:
                    yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(fields))
            else:
                # Types are not guessed: a column may begin with nulls.
                parsing = ParseOptions(pa.schema(fields), unexpected_field_behavior="ignore")
                yield from open_json(stream, ReadOptions(block_size=_BLOCK_BYTES), parsing)


def _open(url: str, compression: str | None) -> Any:
    """A file of the output for reading, unpacked as it is read."""
    stream = open_input(url)
    return pa.CompressedInputStream(pa.PythonFile(stream, "r"), compression) if compression else stream


def _rows(urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of all files."""
    for url in urls:
        format, compression = detect(url)
        with _open(url, compression) as stream:
            if format == "parquet":
                with pq.ParquetFile(stream) as file:
                    for batch in file.iter_batches(batch_size=16):
                        yield from map(_row, (batch.slice(row, 1) for row in range(batch.num_rows)))
            else:
                yield from map(json.loads, io.BufferedReader(stream))


def _row(batch: pa.RecordBatch) -> dict[str, Any]:
    """The one row of a batch; a value that Python does not have, such as the year 10,000, as text."""
    return {name: _value(column[0]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except Exception:  # of whatever kind: a row that can be read must not end the look at all others
        return show_value(value)


def _rejects(output: str, manifest: Manifest) -> Rejects:
    urls = [join(output, record.rejects_file.path) for record in manifest.records if record.rejects_file]
    kinds: Counter[tuple[str, str]] = Counter()
    examples: list[dict[str, Any]] = []
    for batch in _batches(urls, dict.fromkeys(_REJECT_COLUMNS)):
        counts = pa.table(batch).group_by(["stage", "error"]).aggregate([([], "count_all")])
        kinds.update({(row["stage"], row["error"]): row["count_all"] for row in counts.to_pylist()})
        examples += batch.slice(0, _REJECTS - len(examples)).to_pylist()
    return Rejects(
        total=manifest.rejects,
        kinds=[{"stage": stage, "error": error, "rows": rows} for (stage, error), rows in kinds.most_common()],
        examples=examples,
    )


class _Statistics:
    """What is counted over the batches of the feature columns, whose names are given by feature."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._label, self._count = columns.get("label"), columns.get("token_count")
        self._truncated, self._embedding = columns.get("truncated"), columns.get("embedding")
        self.fields = {columns[feature]: kind for feature, kind in _COUNTED.items() if feature in columns}
        """Columns that are counted, with their types in JSON."""
        self._labels: Counter[str] = Counter()
        self._lengths = np.zeros(0, dtype=np.int64)
        self._cut = 0
        self._dimensions = 0
        self._vectors = self._non_finite = 0
        self._norm_sum, self._norm_low, self._norm_high = 0.0, np.inf, -np.inf

    def add(self, batch: pa.RecordBatch) -> None:
        if self._label:
            for entry in pc.value_counts(batch[self._label].drop_null()).to_pylist():
                if entry["values"] in self._labels or len(self._labels) < _LABELS:
                    self._labels[entry["values"]] += entry["counts"]
        if self._count:
            lengths = np.bincount(batch[self._count].drop_null().to_numpy(zero_copy_only=False))
            size = max(len(lengths), len(self._lengths))
            self._lengths = np.pad(self._lengths, (0, size - len(self._lengths)))
            self._lengths[: len(lengths)] += lengths
        if self._truncated:
            self._cut += batch[self._truncated].true_count
        if self._embedding:
            self._add_vectors(batch[self._embedding].drop_null())

    def _add_vectors(self, column: pa.Array) -> None:
        vectors = _matrix(column)
        self._vectors += len(vectors)
        if not len(vectors):
            return
        self._dimensions = vectors.shape[1]
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        finite = norms[np.isfinite(norms)]
        self._non_finite += len(norms) - len(finite)
        if len(finite):
            self._norm_sum += float(finite.sum())
            self._norm_low = min(self._norm_low, float(finite.min()))
            self._norm_high = max(self._norm_high, float(finite.max()))

    def labels(self) -> dict[str, int] | None:
        return dict(self._labels.most_common()) if self._label else None

    def tokens(self) -> TokenCounts | None:
        counts = self._lengths
        if not self._count or not counts.sum():
            return None
        reached, lengths = np.cumsum(counts), np.flatnonzero(counts)

        def at(share: float) -> int:
            return int(np.searchsorted(reached, share * reached[-1]))

        return TokenCounts(
            total=int((counts * np.arange(len(counts))).sum()),
            minimum=int(lengths[0]),
            median=at(0.5),
            p95=at(0.95),
            maximum=int(lengths[-1]),
            truncated=self._cut,
        )

    def vectors(self, dtype: str) -> Vectors | None:
        if not self._embedding:
            return None
        finite = self._vectors - self._non_finite
        return Vectors(
            dimensions=self._dimensions,
            dtype=dtype,
            count=self._vectors,
            non_finite=self._non_finite,
            mean_norm=self._norm_sum / finite if finite else None,
            minimum_norm=self._norm_low if finite else None,
            maximum_norm=self._norm_high if finite else None,
        )


def _matrix(column: pa.Array) -> npt.NDArray[Any]:
    """Lists of numbers as rows of a matrix; JSON Lines give lists of any length."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else np.zeros((0, 0))


def _type_name(kind: str) -> str:
    """Arrow's name of a type as numpy and pandas would say it."""
    name = (
        kind.replace("halffloat", "float16").replace("item: ", "").replace("element: ", "").replace(" not null>", ">")
    )
    return re.sub(r"\bdouble\b", "float64", re.sub(r"\bfloat\b", "float32", name))
