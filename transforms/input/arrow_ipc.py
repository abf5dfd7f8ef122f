"""Arrow IPC: the file format (also known as Feather, version 2), batch by batch in any order, and the stream format."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise

import pyarrow as pa

from .containers import Container, Range
from .decoding import MAX_ALLOWANCE, MAX_RANGES, PLAUSIBLE, Damaged

__all__ = ["open_arrow"]

_MAGIC = b"ARROW1"
_BLOCK = struct.Struct("<qi4xq")  # place, length of the metadata, length of the body
_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError, struct.error, IndexError)


def open_arrow(stream: io.BufferedReader, size: int, alive: Callable[[], None]) -> Container:
    """The file in either format.

    Raises:
        Damaged: it is neither, or cut off.
    """
    head = stream.read(8)
    stream.seek(0)
    if head.startswith(b"FEA1"):
        raise Damaged("it is a Feather file of version 1, which is not supported; write it anew as version 2")
    if not head.startswith(_MAGIC):
        return _Stream(stream)
    stream.seek(max(size - 10, 0))
    tail = stream.read(10)
    if tail[4:] != _MAGIC:
        raise Damaged("it does not end as Arrow files do: it is cut off, or still being written")
    footer = int.from_bytes(tail[:4], "little")
    if footer > size - 18:
        raise Damaged("its footer would be larger than the file: it is cut off, or damaged")
    stream.seek(size - 10 - footer)
    return _File(stream, stream.read(footer), size, alive)


class _Stream:
    """The stream format, which is read from its beginning to its end."""

    def __init__(self, stream: io.BufferedReader) -> None:
        try:
            self._reader = pa.ipc.open_stream(pa.PythonFile(stream, "r"))
        except _ARROW_ERRORS:
            raise Damaged("it begins neither as an Arrow file nor as an Arrow stream: it is damaged, or none") from None
        self._size = stream.raw.seek(0, 2)
        self.schema = self._reader.schema

    def ranges(self, columns: Collection[str] | None, split_bytes: int) -> list[Range]:
        return [(0, None, self._size)]

    def allowance(self, columns: Collection[str]) -> int:
        return min(4 * self._size, MAX_ALLOWANCE)

    def batches(self, start: int, stop: int | None, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in self._reader:
            rows += batch.num_rows
            _check_rows(rows, self._size)
            yield batch.select(columns)


class _File:
    """The file format."""

    def __init__(self, stream: io.BufferedReader, footer: bytes, size: int, alive: Callable[[], None]) -> None:
        self._stream = stream
        try:
            root = _Table(footer)
            places = root.vector(3, _BLOCK)
        except _ARROW_ERRORS:
            raise Damaged("its footer is damaged") from None
        if any(low < 8 or meta <= 0 or body < 0 or low + meta + body > size for low, meta, body in places):
            raise Damaged("its footer claims batches where the file has none")
        if any(low + meta + body > after for (low, meta, body), (after, _, _) in pairwise(sorted(places))):
            raise Damaged("its footer claims several batches at one place")
        self._bodies = [body for _, _, body in places]
        self._rows = []
        for low, meta, _ in places:
            alive()
            stream.seek(low)
            self._rows.append(_rows(stream.read(meta)))
        _check_rows(sum(self._rows), size)
        stream.seek(0)
        self._reader = self._opened(None)
        self.schema = self._reader.schema

    def _opened(self, columns: list[str] | None) -> pa.RecordBatchFileReader:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        if columns:
            options.included_fields = [self.schema.get_field_index(name) for name in columns]
        try:
            return pa.ipc.open_file(pa.PythonFile(self._stream, "r"), options=options)
        except _ARROW_ERRORS:
            raise Damaged("its footer is damaged") from None

    def ranges(self, columns: Collection[str] | None, split_bytes: int) -> list[Range]:
        found: list[tuple[int, int, int]] = []
        row = 0
        for rows, weight in zip(self._rows, self._bodies, strict=True):
            count = max(1, min(-(-weight // split_bytes), MAX_RANGES, rows))
            edges = [row + rows * piece // count for piece in range(count + 1)]
            if count == 1 and found and found[-1][2] + weight <= split_bytes:
                start, _, before = found.pop()
                found.append((start, edges[-1], before + weight))
            else:
                found += [(low, high, weight // count) for low, high in pairwise(edges)]
            row += rows
        return [*found] or [(0, 0, 0)]

    def allowance(self, columns: Collection[str]) -> int:
        return min(4 * max(self._bodies, default=0), MAX_ALLOWANCE)

    def batches(self, start: int, stop: int | None, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        twice = len(set(self.schema.names)) < len(self.schema)
        reader = self._reader if twice or not columns else self._opened(columns)
        row = 0
        for index, rows in enumerate(self._rows):
            low, high = max(start - row, 0), rows if stop is None else min(stop - row, rows)
            row += rows
            if low >= high:
                continue
            try:
                batch = reader.get_batch(index)
            except _ARROW_ERRORS:
                raise Damaged(f"its batch {index} is damaged") from None
            if batch.num_rows != rows:
                raise Damaged(f"its batch {index} has {batch.num_rows} rows, not {rows}")
            yield batch.slice(low, high - low).select(columns)


class _Table:
    """A table of a flatbuffer: as much of it as tells where batches lie and how many rows they have."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self._data = data
        self._at = struct.unpack_from("<I", data)[0] if at is None else at
        self._fields = self._at - struct.unpack_from("<i", data, self._at)[0]
        if self._fields < 0:
            raise IndexError

    def place(self, field: int) -> int | None:
        """Where the value of a field lies; None where it has its default."""
        if 4 + 2 * field >= struct.unpack_from("<H", self._data, self._fields)[0]:
            return None
        offset: int = struct.unpack_from("<H", self._data, self._fields + 4 + 2 * field)[0]
        return self._at + offset if offset else None

    def integer(self, field: int) -> int:
        place = self.place(field)
        return 0 if place is None else int(struct.unpack_from("<q", self._data, place)[0])

    def _target(self, field: int) -> int | None:
        place = self.place(field)
        return None if place is None else place + struct.unpack_from("<I", self._data, place)[0]

    def table(self, field: int) -> _Table:
        target = self._target(field)
        if target is None:
            raise IndexError
        return _Table(self._data, target)

    def vector(self, field: int, items: struct.Struct) -> list[tuple[int, ...]]:
        target = self._target(field)
        if target is None:
            return []
        (count,) = struct.unpack_from("<I", self._data, target)
        if count * items.size > len(self._data):
            raise IndexError
        return [items.unpack_from(self._data, target + 4 + items.size * index) for index in range(count)]


def _check_rows(rows: int, size: int) -> None:
    """Refuses what a file of that many bytes cannot mean: columns of nulls have any number of rows in no bytes."""
    if rows > 8 * PLAUSIBLE * size:
        raise Damaged(f"it claims {rows} rows, more than a file of {size} bytes can have")


def _rows(metadata: bytes) -> int:
    """The rows of a batch, from the message before it."""
    try:
        rows = _Table(metadata[8 if metadata[:4] == b"\xff\xff\xff\xff" else 4 :]).table(2).integer(0)
    except _ARROW_ERRORS:
        raise Damaged("the metadata of a batch are damaged") from None
    if rows < 0:
        raise Damaged("a batch claims fewer than no rows")
    return rows
