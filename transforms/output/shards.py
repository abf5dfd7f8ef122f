"""Shards: the rows of one split as Parquet or JSON Lines files of bounded size."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distilbeam.transforms.discretion import cause
from distilbeam.transforms.errors import OutputError, SettingsError
from distilbeam.transforms.storage import filesystems

from .jsonlines import to_jsonl
from .manifest import FileRecord
from .storable import check_parquet, storable_batch, storable_schema
from .vectors import VECTOR_TYPES, stored_schema

__all__ = ["ShardSettings", "ShardWriter", "model_metadata", "parquet_bytes"]

_COMPRESSIONS = {
    "parquet": ("zstd", "snappy", "gzip", "lz4", "none"),
    "jsonl": ("none", "zstd", "gzip"),
}
_SUFFIXES = {"none": "", "zstd": ".zst", "gzip": ".gz"}
# What is encoded at once, so that memory is bounded: a row group of Parquet; less of JSON, whose text is far larger.
_BUFFER_BYTES = {"parquet": 64 << 20, "jsonl": 4 << 20}


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """What shapes the files.

    Attributes:
        format: ``parquet`` or ``jsonl``.
        compression: ``auto`` (zstd for Parquet, none for JSON Lines) or the name of a codec.
        max_bytes: largest shard, in bytes; a single row may exceed it.
        vector_type: ``fixed`` (fixed-size lists, save where a vector may be null) or ``list``; JSON Lines have lists.
    """

    format: str = "parquet"
    compression: str = "auto"
    max_bytes: int = 256 << 20
    vector_type: str = "fixed"

    def __post_init__(self) -> None:
        if self.format not in _COMPRESSIONS:
            raise SettingsError(
                f"the format of the output is {self.format!r}; it must be one of {', '.join(_COMPRESSIONS)}"
            )
        allowed = _COMPRESSIONS[self.format]
        if self.compression == "auto":
            object.__setattr__(self, "compression", allowed[0])
        if self.compression not in allowed:
            raise SettingsError(
                f"`compression` is {self.compression!r}; for {self.format} it must be one of auto, {', '.join(allowed)}"
            )
        if isinstance(self.max_bytes, bool) or not isinstance(self.max_bytes, int) or self.max_bytes < 1:
            raise SettingsError(f"`max_shard_bytes` is {self.max_bytes!r}; give a whole number of bytes, at least 1")
        if self.vector_type not in VECTOR_TYPES:
            raise SettingsError(f"`vector_type` is {self.vector_type!r}; it must be one of {', '.join(VECTOR_TYPES)}")
        if self.format == "jsonl":
            object.__setattr__(self, "vector_type", "list")

    @property
    def suffix(self) -> str:
        """Suffix of the file names."""
        return ".parquet" if self.format == "parquet" else ".jsonl" + _SUFFIXES[self.compression]

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


class ShardWriter:
    """Writes record batches of one schema to files ``{stem}-000{suffix}``, ``-001`` and so on below a folder.

    A file is begun with the first row, so none is empty unless that is asked for. No file is visible before it is
    complete.

    Args:
        root: path or URL of the folder that the paths of the returned records start from.
        stem: start of the file names, below the folder.
        schema: schema of the batches; its metadata goes into Parquet files.
        settings: what shapes the files.
        texts: columns that hold documents, which hardly repeat and are not searched by their order.
        vectors: columns that hold vectors of a model.

    Raises:
        OutputError: a column is of a type that Parquet does not have.
    """

    def __init__(
        self,
        root: str,
        stem: str,
        schema: pa.Schema,
        settings: ShardSettings,
        texts: Collection[str] = (),
        vectors: Collection[str] = (),
    ) -> None:
        self._root = root
        self._texts = texts
        self._stem = stem
        self._schema = self._stored = storable_schema(schema)
        if settings.format == "parquet":
            self._stored = stored_schema(self._schema, vectors, settings.vector_type)
            check_parquet(self._stored)
        self._settings = settings
        self._limit = min(_BUFFER_BYTES[settings.format], settings.max_bytes)
        self._buffer: list[pa.RecordBatch] = []
        self._buffered = 0
        self._file: _File | None = None
        self._done: list[FileRecord] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows.

        Raises:
            OutputError: the rows cannot be written.
        """
        for piece in _pieces(storable_batch(batch, self._schema), self._limit):
            if self._buffered and self._buffered + piece.nbytes > self._limit:
                self._flush()
            self._buffer.append(piece)
            self._buffered += piece.nbytes

    def close(self, *, empty: bool = False) -> tuple[FileRecord, ...]:
        """Completes the files, in order.

        Args:
            empty: whether there is to be a file, which tells the columns, even if there were no rows.
        """
        self._flush()
        if empty and not self._done and self._file is None:
            self._begin(self._stored)
        self._roll()
        return tuple(self._done)

    def abort(self) -> None:
        """Removes what was written, as far as the store can be reached."""
        self._buffer = []
        if self._file is not None:
            self._file.abort()
            self._file = None
        for done in self._done:
            with suppress(Exception):
                filesystems.delete(filesystems.join(self._root, done.path))
        self._done = []

    def _flush(self) -> None:
        if self._buffer:
            table = pa.Table.from_batches(self._buffer, self._schema)
            self._buffer, self._buffered = [], 0
            self._append(table)

    def _append(self, table: pa.Table) -> None:
        """Writes rows to the open file if they fit, else to the next."""
        if self._settings.format == "jsonl":
            data: bytes | pa.Table = to_jsonl(table)
            schema, size = self._schema, len(data)
            if size > self._settings.max_bytes and table.num_rows > 1:
                middle = table.num_rows // 2
                self._append(table.slice(0, middle))
                self._append(table.slice(middle))
                return
        else:
            self._stored = schema = _readable_schema(table, self._stored)
            data, size = _cast(table, schema), table.nbytes
        file = self._file
        if file is not None and (file.size + size > self._settings.max_bytes or file.schema != schema):
            self._roll()
        (self._file or self._begin(schema)).write(data, table.num_rows)

    def _begin(self, schema: pa.Schema) -> _File:
        path = f"{self._stem}-{len(self._done):03d}{self._settings.suffix}"
        self._file = _File(self._root, path, schema, self._settings, self._texts)
        return self._file

    def _roll(self) -> None:
        if self._file is not None:
            self._done.append(self._file.close())
            self._file = None


class _Sink(io.RawIOBase):
    """Passes bytes on, and counts and hashes them. Closing it leaves the stream open; without a stream it takes all."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self.stream = stream
        self.size = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.stream is not None:
            self.stream.write(data)
        self.digest.update(data)
        length = memoryview(data).nbytes
        self.size += length
        return length


class _File:
    """One open file."""

    def __init__(
        self, root: str, path: str, schema: pa.Schema, settings: ShardSettings, texts: Collection[str]
    ) -> None:
        self.schema = schema
        self._path = path
        self._url = filesystems.join(root, path)
        self._rows = 0
        self._context: AbstractContextManager[BinaryIO] = filesystems.create(self._url)
        self._sink = _Sink(self._context.__enter__())
        self._encoder = _ParquetEncoder(self._sink, schema, settings, texts) if settings.format == "parquet" else None
        self._stream = None if self._encoder else _compressed(self._sink, settings.compression)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._sink.size

    def write(self, data: bytes | pa.Table, rows: int) -> None:
        with _failing(self._url):
            if self._encoder:
                self._encoder.write(data)
            elif self._stream:
                self._stream.write(data)
        self._rows += rows

    def close(self) -> FileRecord:
        with _failing(self._url):
            if self._encoder:
                self._encoder.close()
            elif self._stream:
                self._stream.close()
        self._context.__exit__(None, None, None)
        return FileRecord(self._path, self._rows, self._sink.size, self._sink.digest.hexdigest())

    def abort(self) -> None:
        reason = OutputError(f"{self._url!r} was given up")
        self._sink.stream = None  # encoders write their ends, if only when they are collected
        encoder: Any = self._encoder or self._stream
        with suppress(Exception):
            encoder.close()
        with suppress(Exception):
            self._context.__exit__(type(reason), reason, None)


class _ParquetEncoder:
    def __init__(self, sink: _Sink, schema: pa.Schema, settings: ShardSettings, texts: Collection[str]) -> None:
        # Vectors and documents hardly repeat: a dictionary would only cost time and space, for a huge document several
        # times its own. Plain and not BYTE_STREAM_SPLIT, which would save another 8% of the vectors, because Spark's
        # vectorized reader does not know it.
        repeating = [path for path in _leaves_beside_vectors(schema) if path not in texts]
        self._writer = pq.ParquetWriter(
            sink,
            schema,
            compression=settings.compression,
            use_dictionary=repeating,
            write_statistics=repeating,
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        self._writer.close()


def parquet_bytes(table: pa.Table) -> bytes:
    """A small table as a Parquet file in memory."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def model_metadata(models: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Schema:
    """The schema with metadata that says which models made its columns; the user's own metadata stays.

    The key ``distilbeam`` holds all of it as JSON, a list with one object for each model; ``distilbeam.model``,
    ``distilbeam.revision`` and so on, of the first model, are for tools that show metadata.
    """
    metadata: dict[bytes, bytes] = {
        key: value for key, value in (schema.metadata or {}).items() if not key.startswith(b"distilbeam")
    }
    if b"pandas" in metadata:
        metadata[b"pandas"] = _pandas_metadata(metadata[b"pandas"], set(schema.names))
    if models:
        metadata[b"distilbeam"] = json.dumps(list(models), sort_keys=True).encode()
        for key in ("id", "revision", "weights_sha256", "tokenizer_sha256", "settings", "compute", "version"):
            value = models[0].get(key)
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                metadata[f"distilbeam.{'model' if key == 'id' else key}".encode()] = text.encode()
    return schema.with_metadata(metadata or None)


def _pandas_metadata(encoded: bytes, names: set[str]) -> bytes:
    """What pandas noted about the input, less the columns and the index that are no longer there."""
    try:
        noted = json.loads(encoded)
        noted["index_columns"] = [name for name in noted["index_columns"] if isinstance(name, str) and name in names]
        noted["columns"] = [column for column in noted["columns"] if column.get("field_name") in names]
        return json.dumps(noted).encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        return b'{"index_columns": [], "columns": [], "column_indexes": []}'


def _readable_schema(table: pa.Table, stored: pa.Schema) -> pa.Schema:
    """The schema stored so far, with fixed-size lists that hold nulls declared as plain lists from here on.

    Arrow writes null fixed-size lists to Parquet but cannot read them back. Stored bytes are alike. Columns of models
    are lists from the beginning where they may hold nulls (see ``vectors``), and Arrow reads none from an input, so
    these come from a step of the user's own.
    """
    for index, column in enumerate(stored):
        if pa.types.is_fixed_size_list(column.type) and table.column(index).null_count:
            stored = stored.set(index, column.with_type(pa.list_(column.type.value_field)))
    return stored


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the types of a schema; what has them is left alone, for Arrow breaks a list of nulls over it."""
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _leaves_beside_vectors(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet columns that are not parts of fixed-size lists of floats."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    vectors = {
        column.name
        for column in schema
        if (pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type))
        and pa.types.is_floating(column.type.value_type)
    }
    paths = [leaves.column(index).path for index in range(len(leaves))]
    # A dot may be part of a name; the path of a list's leaf is the name and two more words.
    return [path for path in paths if path.rsplit(".", 2)[0] not in vectors or path.count(".") < 2]


def _compressed(sink: _Sink, compression: str) -> Any:
    stream = pa.PythonFile(sink, mode="w")
    return stream if compression == "none" else pa.CompressedOutputStream(stream, compression)


def _pieces(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    """The rows in slices of at most ``limit`` bytes, or of one row, each with small dictionaries of its own."""
    batch = _with_small_dictionaries(batch)
    # A dictionary inside a list or struct stays whole in every slice, so it is no reason to divide.
    shared = sum(column.slice(0, 0).nbytes for column in batch.columns if not pa.types.is_dictionary(column.type))
    if batch.num_rows <= 1 or batch.nbytes - shared <= limit:
        if batch.num_rows:
            yield batch
        return
    middle = batch.num_rows // 2
    yield from _pieces(batch.slice(0, middle), limit)
    yield from _pieces(batch.slice(middle), limit)


def _with_small_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without dictionary values that no row uses; a slice has those of all rows, and they are written."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_dictionary(field.type):
            column = batch.column(index)
            if len(column.dictionary) > len(column):
                used = column.indices.drop_null().unique().sort()
                indices = pc.index_in(column.indices, used).cast(field.type.index_type)
                values = column.dictionary.take(used)
                small = pa.DictionaryArray.from_arrays(indices, values, ordered=field.type.ordered)
                batch = batch.set_column(index, field, small)
    return batch


@contextmanager
def _failing(url: str) -> Iterator[None]:
    """Turns errors of Arrow and of the disk into OutputError; Arrow's messages can quote data, so they are left out."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {url!r}: {cause(error)}") from error
    except pa.ArrowException as error:
        raise OutputError(f"cannot write {url!r}: {type(error).__name__}") from None
