"""Parquet on its way from an open file to batches of bounded bytes; runs in the process of ``decoder``.

The footer is not believed where it cannot be true.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .column_types import holds
from .fitting import leaves
from .nested import find_path, roots

__all__ = [
    "MAX_ALLOWANCE",
    "MAX_RANGES",
    "PLAUSIBLE",
    "Damaged",
    "Source",
    "Times",
    "allowance",
    "int96_columns",
    "look",
    "open_file",
    "pieces",
    "ranges",
    "read_rows",
]

MAX_RANGES = 16
"""A row group is cut into at most so many ranges, since each range decodes the rows before it again."""

_TEXTS = ("string", "binary")
_MAX_COLUMNS = 100_000
_MAX_DEPTH = 100
MAX_ALLOWANCE = 4 << 30
"""Memory for what lies in a file as one piece, at most, whatever the file claims."""

PLAUSIBLE = 1000
"""Times smaller than its contents a part of a file may be; what claims more is not believed."""


class Damaged(Exception):  # noqa: N818 - it never leaves the decoder
    """What is wrong with the file, in a sentence without any of its contents."""


class Source(io.RawIOBase):
    """A file of known size, through a function that gives up to ``length`` bytes from an offset."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int):
        self._fetch = fetch
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, length: int | None = -1) -> bytes:
        rest = max(self._size - self._at, 0)
        length = rest if length is None or length < 0 else min(length, rest)
        data = self._fetch(self._at, length) if length else b""
        self._at += len(data)
        return data


def open_file(source: Source, size: int, buffer_size: int, unit: str = "us") -> pq.ParquetFile:
    """The file, read page by page.

    Args:
        source: its bytes.
        size: how many there are.
        buffer_size: bytes that are read at once.
        unit: of times that are stored as INT96, days and nanoseconds, which fit into no other type as a whole.

    Raises:
        Damaged: it is no Parquet file, or one that is encrypted or cut off.
    """
    if not size:
        raise Damaged("it is empty, which no Parquet file is")
    source.seek(max(size - 8, 0))
    tail = source.read(8)
    if tail[-4:] == b"PARE":
        raise Damaged("its footer is encrypted, which is not supported; decrypt it before")
    if tail[-4:] != b"PAR1":
        raise Damaged("it does not end as Parquet files do: it is cut off, or no Parquet file")
    if int.from_bytes(tail[:4], "little") > size - 12:
        raise Damaged("its footer would be larger than the file: it is cut off, or damaged")
    source.seek(0)
    file = pq.ParquetFile(
        pa.PythonFile(source, "r"), pre_buffer=False, buffer_size=buffer_size, coerce_int96_timestamp_unit=unit
    )
    if len(file.schema) > _MAX_COLUMNS:
        raise Damaged(f"it has {len(file.schema)} columns, more than {_MAX_COLUMNS}")
    if any(file.schema.column(leaf).path.count(".") > _MAX_DEPTH for leaf in range(len(file.schema))):
        raise Damaged(f"its columns are nested more than {_MAX_DEPTH} deep")
    return file


def look(
    file: pq.ParquetFile, columns: Collection[str] | None, split_bytes: int, size: int, alive: Callable[[], None]
) -> tuple[pa.Schema, list[tuple[int, int, int]]]:
    """The schema of a file, and its ``ranges``; ``columns`` are those to read, None for all."""
    schema = file.schema_arrow
    wanted = schema.names if columns is None else list(columns)
    return schema, ranges(file.metadata, wanted, split_bytes, size, alive)


def ranges(
    metadata: pq.FileMetaData,
    columns: Collection[str],
    split_bytes: int,
    size: int | None = None,
    alive: Callable[[], None] = lambda: None,
) -> list[tuple[int, int, int]]:
    """Cuts a file into (start row, stop row, bytes) of at most about ``split_bytes`` uncompressed bytes.

    Args:
        metadata: the footer.
        columns: the top-level columns that will be read.
        split_bytes: bytes of those columns, uncompressed.
        size: bytes of the file, which the footer must not contradict.
        alive: called now and then.

    Raises:
        Damaged: the footer claims what cannot be.
    """
    found: list[tuple[int, int, int]] = []
    leaves = _leaves(metadata.schema, columns)
    row = claimed = 0
    for index in range(metadata.num_row_groups):
        alive()
        group = metadata.row_group(index)
        sizes = [(chunk.total_uncompressed_size, chunk.total_compressed_size) for chunk in map(group.column, leaves)]
        claimed += sum(packed for _, packed in sizes)
        if group.num_rows < 0 or any(full < 0 or packed < 0 for full, packed in sizes):
            raise Damaged(f"its footer claims fewer than no rows or bytes in row group {index}")
        if size is not None and claimed > size:
            raise Damaged("its footer claims more bytes of columns than the file has")
        weight = sum(min(full, PLAUSIBLE * packed) for full, packed in sizes)
        pieces = max(1, min(-(-weight // split_bytes), MAX_RANGES, group.num_rows))
        edges = [row + group.num_rows * piece // pieces for piece in range(pieces + 1)]
        if pieces == 1 and found and found[-1][2] + weight <= split_bytes:
            start, _, before = found.pop()
            found.append((start, edges[-1], before + weight))
        else:
            found += [(low, high, weight // pieces) for low, high in pairwise(edges)]
        row += group.num_rows
    if row != metadata.num_rows:
        raise Damaged(f"its footer counts {metadata.num_rows} rows, but {row} in its row groups")
    return found or [(0, 0, 0)]


def read_rows(
    file: pq.ParquetFile,
    start: int,
    stop: int | None,
    wanted: Collection[str],
    *,
    batch_rows: int,
    batch_bytes: int,
    send: Callable[[pa.RecordBatch], None],
    alive: Callable[[], None] = lambda: None,
    times: Times | None = None,
) -> None:
    """Sends the rows of a range, with those wanted columns that the file has, in pieces of about ``batch_bytes``.

    Raises:
        Damaged: a row group has fewer rows than it should, or a time is not what its type could tell.
        MemoryError: the memory is not enough for a single row.
    """
    stop = file.metadata.num_rows if stop is None else stop
    schema = file.schema_arrow
    columns = [name for name in wanted if name in schema.names or find_path(schema, name)]
    tops = roots(schema, columns)
    row = 0
    most = batch_rows
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        first, row = row, row + group.num_rows
        if row <= start or first >= stop:
            continue
        rows = max(1, min(most, batch_bytes * group.num_rows // max(group.total_byte_size, 1)))
        done = max(start - first, 0)  # rows of the group that need no sending
        end = min(row, stop) - first
        while done < end:
            try:
                for batch in _decoded(file, index, columns, rows, done, end, times):
                    if not batch.num_rows:
                        alive()
                        continue
                    for piece in pieces(batch.select(tops), batch_bytes):
                        send(piece)
                        done += piece.num_rows
            except MemoryError:
                # One value may stand for many rows, which the footer does not tell.
                if rows == 1:
                    raise
                rows = most = max(1, rows // 16)


def _decoded(
    file: pq.ParquetFile, index: int, columns: list[str], rows: int, done: int, end: int, times: Times | None
) -> Iterator[pa.RecordBatch]:
    """The rows of a group from ``done`` to ``end``, and an empty batch for each that lies before."""
    at = 0
    check = times.checker(index, rows) if times else None
    batches = file.iter_batches(rows, row_groups=[index], columns=columns, use_threads=False)
    while at < end:
        batch = next(batches, None)
        if batch is None or not batch.num_rows:
            raise Damaged(f"its row group {index} has fewer rows than its footer says")
        batch = check(batch) if check else batch
        low, high = max(done - at, 0), min(batch.num_rows, end - at)
        at += batch.num_rows
        yield batch.slice(low, max(high - low, 0))


def pieces(batch: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of about so many bytes."""
    size, half = _unpacked_bytes(batch), batch.num_rows // 2
    # A dictionary inside of a struct or list comes along with every piece, so halving may not help.
    if size <= most or not half or 4 * _unpacked_bytes(front := batch.slice(0, half)) > 3 * size < 8 * most:
        yield batch
        return
    yield from pieces(front, most)
    yield from pieces(batch.slice(half), most)


def _unpacked_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of a batch once texts in dictionaries are written out: one value may stand for very many rows."""
    size = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and str(column.type.value_type).removeprefix("large_") in _TEXTS:
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            size += pc.sum(lengths.cast(pa.int64()), min_count=0).as_py()
        else:
            size += column.nbytes
    return size


class Times:
    """The times of a file that are stored as INT96, which are decoded twice: no type holds all that they can tell.

    Microseconds reach every year but lose digits, nanoseconds tell the years from 1677 to 2262 and take any other for
    one of these. Where the two agree nothing is lost.

    Args:
        file: the file, opened with nanoseconds.
        columns: the columns to read, or paths into their structs.
        fine: those of them that are wanted in nanoseconds; other times of the same struct come along in these.
    """

    def __init__(self, file: pq.ParquetFile, columns: Collection[str], fine: Collection[str]):
        schema = file.schema_arrow
        stored = int96_columns(file)
        self._file = file
        self._fine = frozenset(roots(schema, fine))
        self._columns = [name for name in columns if stored.intersection(roots(schema, [name]))]
        self._tops = roots(schema, self._columns)
        # Messages name a column as it was asked for: the first one of the struct that has times.
        self._said = {
            roots(schema, [name])[0]: name
            for name in reversed(self._columns)
            if name in stored or ((found := find_path(schema, name)) and holds(found[1], pa.types.is_timestamp))
        }

    def checker(self, index: int, rows: int) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        """What gives each batch of a row group, decoded in microseconds and in order, the times as they are wanted."""
        batches = self._file.iter_batches(rows, row_groups=[index], columns=self._columns, use_threads=False)
        held: list[pa.RecordBatch] = []

        def check(batch: pa.RecordBatch) -> pa.RecordBatch:
            nonlocal held
            while sum(part.num_rows for part in held) < batch.num_rows:
                held.append(next(batches))
            exact = pa.concat_batches(held) if len(held) > 1 else held[0]
            held = [exact.slice(batch.num_rows)] if exact.num_rows > batch.num_rows else []
            for name in self._tops:
                at = batch.schema.get_field_index(name)
                column = self._agreed(name, batch.column(at), exact.column(name).slice(0, batch.num_rows))
                batch = batch.set_column(at, pa.field(name, column.type), column)
            return batch

        return check

    def _agreed(self, name: str, coarse: pa.Array, exact: pa.Array) -> pa.Array:
        said = self._said.get(name, name)
        times = [pair for pair in leaves(coarse, exact) if pair[0].type != pair[1].type]
        if name in self._fine:
            try:
                for micros, nanos in times:
                    micros.cast(nanos.type)
            except pa.ArrowInvalid:
                raise Damaged(
                    f"column {said!r} holds a time outside of the years 1677 to 2262, which nanoseconds cannot tell; "
                    "give the column a type of microseconds with `types`"
                ) from None
            return exact
        if not all(micros.cast(nanos.type, safe=False).equals(nanos) for micros, nanos in times):  # both wrap alike
            raise Damaged(
                f"column {said!r} holds a time with nanoseconds, which microseconds would lose; give the column a "
                "type of nanoseconds with `types`"
            )
        return coarse


def int96_columns(file: pq.ParquetFile) -> set[str]:
    """The top-level columns that have times stored as INT96."""
    schema = file.schema
    leaves = {index for index in range(len(schema)) if schema.column(index).physical_type == "INT96"}
    if not leaves:
        return set()
    return {name for name in file.schema_arrow.names if leaves.intersection(_leaves(schema, [name]))}


def _leaves(schema: pq.ParquetSchema, columns: Collection[str]) -> list[int]:
    """The positions of the leaves that lie in these top-level columns."""
    wanted = frozenset(columns)
    found = []
    for leaf in range(len(schema)):
        names = schema.column(leaf).path.split(".")  # a name may itself have dots in it
        if any(".".join(names[: depth + 1]) in wanted for depth in range(len(names))):
            found.append(leaf)
    return found


def allowance(metadata: pq.FileMetaData, columns: Collection[str], size: int) -> int:
    """Memory for pages as large as their column chunks: in proportion to bytes that are there, whatever is claimed."""
    leaves = _leaves(metadata.schema, columns)
    largest = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        largest = max(largest, sum(group.column(leaf).total_compressed_size for leaf in leaves))
    return min(4 * min(largest, size), MAX_ALLOWANCE)
