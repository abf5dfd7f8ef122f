"""Parquet, Arrow IPC and Avro: row groups, batches or row ranges inside of large ones, decoded in the sandbox."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

from distilbeam.transforms.input import sandbox
from distilbeam.transforms.input.column_types import holds
from distilbeam.transforms.storage.filesystems import is_local, open_input

from .base import Unreadable, reading

__all__ = ["look", "read_rows"]

_TAIL_BYTES = 64 << 10
_MAX_TAIL_BYTES = 16 << 20
_LOOKS = threading.BoundedSemaphore(2)  # a look takes a moment; more processes would not make it quicker


def look(
    url: str, columns: Collection[str] | None, split_bytes: int, memory: int, format: str = "parquet"
) -> tuple[pa.Schema, list[tuple[int, int | None, int]]]:
    """The schema of a file, and the ranges of about ``split_bytes`` in which it is read.

    Args:
        url: the file.
        columns: the top-level columns that will be read; None for all.
        split_bytes: uncompressed bytes of those columns in a range.
        memory: bytes that decoding may take.
        format: ``parquet``, ``arrow`` or ``avro``.

    Returns:
        The schema, and for each range start row, stop row (None where the file does not tell) and bytes.

    Raises:
        InputError: it is not of the format, or damaged.
    """
    wanted = None if columns is None else sorted(columns)
    request = {"what": "look", "columns": wanted, "split_bytes": split_bytes, "buffer": 256 << 10, "memory": memory}
    request["format"] = format
    with _opened(url) as (stream, size, local):
        fetch = (
            None if local else _with_tail(stream, size) if format == "parquet" else _reader(stream)
        )  # read before the decoder is taken
        with _LOOKS:
            answers = dict(_asked({**request, "size": size}, stream if local else None, fetch))
        schema = pa.ipc.read_schema(pa.py_buffer(answers[b"S"]))
        return schema, [(start, stop, weight) for start, stop, weight in json.loads(answers[b"N"])]


def read_rows(
    url: str,
    start: int,
    stop: int | None,
    schema: pa.Schema,
    *,
    batch_rows: int,
    batch_bytes: int,
    memory: int,
    format: str = "parquet",
) -> Iterator[pa.RecordBatch]:
    """The rows of a range, with those columns of the schema that the file has.

    Times that are stored as INT96 come in microseconds, or in nanoseconds where the schema has these.

    Args:
        url: the file.
        start: the first row.
        stop: the row after the last one; None for all.
        schema: of the columns that are wanted.
        batch_rows: rows in a batch, at most.
        batch_bytes: about how many bytes a batch has, unless a single row has more.
        memory: bytes that decoding may take, besides four times those of the row group's columns in the file.
        format: ``parquet``, ``arrow`` or ``avro``.

    Raises:
        InputError: the file cannot be read.
    """
    request = {
        "what": "rows",
        "format": format,
        "columns": schema.names,
        "nanoseconds": [field.name for field in schema if holds(field.type, _is_nanoseconds)],
        "start": start,
        "stop": stop,
        "batch_rows": batch_rows,
        "batch_bytes": batch_bytes,
        "memory": memory,
    }
    with _opened(url) as (stream, size, local):
        request |= {"size": size, "buffer": 256 << 10 if local else 4 << 20}
        for kind, body in _asked(request, stream if local else None, None if local else _reader(stream)):
            if kind == b"B":
                yield sandbox.batch_of(body)


def _is_nanoseconds(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")


@contextmanager
def _opened(url: str) -> Iterator[tuple[BinaryIO, int, bool]]:
    local = is_local(url)
    with reading(url), open_input(url, cache="none") as stream:
        yield stream, stream.seek(0, 2), local


def _asked(
    request: dict[str, object], stream: BinaryIO | None, fetch: Callable[[int, int], bytes] | None
) -> Iterator[sandbox.Message]:
    try:
        yield from sandbox.decode(request, stream, fetch)
    except sandbox.DecoderError as error:
        raise Unreadable(str(error)) from None


def _reader(stream: BinaryIO) -> Callable[[int, int], bytes]:
    def fetch(offset: int, length: int) -> bytes:
        stream.seek(offset)
        return stream.read(length)

    return fetch


def _with_tail(stream: BinaryIO, size: int) -> Callable[[int, int], bytes]:
    """A reader that holds the footer, where the file has one of plausible size."""
    read = _reader(stream)
    tail = read(max(size - _TAIL_BYTES, 0), _TAIL_BYTES)
    footer = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] == b"PAR1" and len(tail) < footer <= min(size, _MAX_TAIL_BYTES):
        tail = read(size - footer, footer)
    first = size - len(tail)

    def fetch(offset: int, length: int) -> bytes:
        if offset < first:
            return read(offset, length)
        return tail[offset - first : offset - first + length]

    return fetch
