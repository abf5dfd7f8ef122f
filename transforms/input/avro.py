"""Avro files: their schema as Arrow types, and their records block by block."""

from __future__ import annotations

import decimal
import io
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

import fastavro
import fastavro.read
import pyarrow as pa
import zstandard

from .containers import Range
from .decoding import MAX_ALLOWANCE, PLAUSIBLE, Damaged

__all__ = ["AvroFile"]

_MAX_DEPTH = 50
_BATCH_BYTES = 16 << 20  # of a file, after which its records become a batch
_PLAIN = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
}
_LOGICAL = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("string", "uuid"): pa.string(),
    **{
        ("long", f"{local}timestamp-{unit}"): pa.timestamp(short, None if local else "UTC")
        for local in ("", "local-")
        for unit, short in (("millis", "ms"), ("micros", "us"), ("nanos", "ns"))
    },
}
_CODECS = {"snappy": "cramjam", "lz4": "lz4"}

Convert = Callable[[Any], Any]


def _read_zstandard(stream: io.BytesIO) -> io.BytesIO:
    """The next block; fastavro's own reader wants another package than the one that comes with Beam."""
    length = shift = 0
    while True:
        (byte,) = stream.read(1)
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    data = stream.read(length >> 1)
    return io.BytesIO(b"".join(zstandard.ZstdDecompressor().read_to_iter(data)))


class AvroFile:
    """An Avro file, which is read from its beginning to its end.

    Columns whose type no Arrow column holds (unions of more than one type besides null, records that refer to
    themselves) are an error only where they are wanted.
    """

    def __init__(self, stream: io.BufferedReader, size: int, alive: Callable[[], None]) -> None:
        # Times as numbers and decimals as bytes: Python's own have fewer years and digits.
        fastavro.read.LOGICAL_READERS.clear()
        fastavro.read.BLOCK_READERS["zstandard"] = _read_zstandard
        self._size = size
        self._alive = alive
        if stream.peek(4)[:4] != b"Obj\x01":
            raise Damaged("it does not begin as Avro files do: it is damaged, or none")
        try:
            self._blocks = fastavro.block_reader(stream)
            written: Any = self._blocks.writer_schema
        except Exception as error:
            self._named(error)
            raise Damaged("its header is damaged, or holds no schema that can be read") from None
        self._codec = self._blocks.codec
        self._record = isinstance(written, dict) and written.get("type") == "record"
        if not self._record:
            raise Damaged("its values are no records, so they have no columns")
        types = _Types()
        try:
            types.of(written, ())
            self._fields = {field["name"]: types.of(field["type"], (written["name"],)) for field in written["fields"]}
        except (KeyError, TypeError, ValueError, RecursionError):
            raise Damaged("its schema is none that can be read") from None
        kinds = {name: kind for name, (kind, _) in self._fields.items() if kind not in _NO_TYPE}
        self.schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])

    def ranges(self, columns: Collection[str] | None, split_bytes: int) -> list[Range]:
        for name, (kind, _) in self._fields.items():
            if kind in _NO_TYPE and (columns is None or any(f"{column}.".startswith(f"{name}.") for column in columns)):
                what = "may be of several types" if kind == _UNION else "has a type that refers to itself"
                raise Damaged(
                    f"its column {name!r} {what}, which no Arrow type holds; list the columns to keep without it"
                )
        return [(0, None, self._size)]

    def allowance(self, columns: Collection[str]) -> int:
        return min(4 * self._size, MAX_ALLOWANCE)

    def batches(self, start: int, stop: int | None, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self.schema.field(name) for name in columns])
        rows: list[dict[str, Any]] = []
        size = 0  # bytes that the rows have in their blocks
        empty = PLAUSIBLE * self._size  # records without any bytes that are believed
        for block in self._guarded(self._blocks):
            self._alive()
            data = block.bytes_
            empty -= max(block.num_records - len(data.getbuffer()), 0)
            if block.num_records < 0 or empty < 0:
                raise Damaged("a block of it claims a number of records that cannot be")
            at = 0
            for row in self._guarded(block):
                rows.append(row)
                size += data.tell() - at
                at = data.tell()
                if len(rows) == batch_rows or size >= _BATCH_BYTES:
                    yield self._batch(rows, schema)
                    rows, size = [], 0
        if rows:
            yield self._batch(rows, schema)

    def _guarded(self, values: Any) -> Iterator[Any]:
        iterator = iter(values)
        while True:
            try:
                value = next(iterator)
            except StopIteration:
                return
            except MemoryError:
                raise
            except Exception as error:
                self._named(error)
                raise Damaged("its data are damaged, or cut off") from None
            yield value

    def _named(self, error: Exception) -> None:
        """Raises Damaged with the cure where a package is missing."""
        codec = next((codec for codec in _CODECS if codec in str(error).lower()), None)
        if codec and isinstance(error, ValueError):
            raise Damaged(
                f"its blocks are packed with {codec}, which takes the package {_CODECS[codec]}; install it, or write "
                "the file anew with deflate or zstandard"
            ) from None

    def _batch(self, rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
        columns = []
        for field in schema:
            convert = self._fields[field.name][1]
            values = [row[field.name] for row in rows]
            try:
                columns.append(pa.array([convert(value) for value in values] if convert else values, field.type))
            except MemoryError:  # that of Arrow is an ArrowException too
                raise
            except (pa.ArrowException, ValueError, OverflowError, decimal.DecimalException):
                raise Damaged(f"a value of column {field.name!r} does not fit into {field.type}") from None
        return pa.RecordBatch.from_arrays(columns, schema=schema)


class _Types:
    """Arrow types of Avro schemas, and what their values must be made into before Arrow takes them."""

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}

    def of(self, schema: Any, above: tuple[str, ...]) -> tuple[pa.DataType, Convert | None]:
        if len(above) > _MAX_DEPTH:
            raise Damaged(f"its columns are nested more than {_MAX_DEPTH} deep")
        if isinstance(schema, list):
            some = [each for each in schema if each != "null" and each != {"type": "null"}]
            if len(some) != 1:
                return (pa.null(), None) if not some else (_UNION, None)
            kind, convert = self.of(some[0], above)
            return kind, None if convert is None else _or_null(convert)
        if isinstance(schema, str):
            if schema in _PLAIN:
                return _PLAIN[schema], None
            if schema in above or schema not in self._named:
                return _CIRCLE, None
            return self.of(self._named[schema], above)
        name, logical = schema["type"], schema.get("logicalType")
        if isinstance(name, dict | list):
            return self.of(name, above)
        if name in ("record", "error", "enum", "fixed"):
            self._named[schema["name"]] = schema
        if logical == "decimal" and name in ("bytes", "fixed"):
            return _decimal(schema)
        if name == "fixed":
            is_uuid = logical == "uuid" and schema["size"] == 16
            return (pa.string(), _uuid) if is_uuid else (pa.binary(schema["size"]), None)
        if name in ("record", "error"):
            return self._struct(schema, (*above, schema["name"]))
        if name == "array":
            return _list(*self.of(schema["items"], (*above, "")))
        if name == "map":
            return _map(*self.of(schema["values"], (*above, "")))
        if name not in _PLAIN:
            return self.of(name, above)
        return _LOGICAL.get((name, logical), _PLAIN[name]), None

    def _struct(self, schema: Any, above: tuple[str, ...]) -> tuple[pa.DataType, Convert | None]:
        inner = {field["name"]: self.of(field["type"], above) for field in schema["fields"]}
        for kind, _ in inner.values():
            if kind in _NO_TYPE:
                return kind, None
        converts = {name: convert for name, (_, convert) in inner.items() if convert}

        def convert(value: Any) -> Any:
            return {**value, **{name: made(value[name]) for name, made in converts.items()}}

        return pa.struct([(name, kind) for name, (kind, _) in inner.items()]), convert if converts else None


# What stands for a column that no Arrow type holds; it is told by name if it is wanted.
_UNION = pa.dense_union([])
_CIRCLE = pa.sparse_union([])
_NO_TYPE = (_UNION, _CIRCLE)


def _list(kind: pa.DataType, convert: Convert | None) -> tuple[pa.DataType, Convert | None]:
    if kind in _NO_TYPE:
        return kind, None
    return pa.list_(kind), None if convert is None else lambda values: [convert(value) for value in values]


def _map(kind: pa.DataType, convert: Convert | None) -> tuple[pa.DataType, Convert | None]:
    if kind in _NO_TYPE:
        return kind, None

    def pairs(values: Any) -> Any:
        return [(key, convert(value) if convert else value) for key, value in values.items()]

    return pa.map_(pa.string(), kind), pairs


def _decimal(schema: Any) -> tuple[pa.DataType, Convert]:
    precision, scale = schema["precision"], schema.get("scale", 0)
    if not (0 < precision <= 76 and 0 <= scale <= precision):
        raise Damaged("a decimal in its schema has more digits than Arrow's 76, or a scale that is none")
    kind = pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    context = decimal.Context(prec=90)

    def convert(value: bytes) -> decimal.Decimal:
        return context.create_decimal(int.from_bytes(value, "big", signed=True)).scaleb(-scale, context)

    return kind, convert


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value))


def _or_null(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)
