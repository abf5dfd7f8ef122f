"""Arrow IPC and Avro on their way from an open file to batches of bounded bytes; runs in the process of ``decoder``."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

import pyarrow as pa

from .column_types import VIEWS
from .decoding import Damaged, Source, pieces
from .nested import roots

__all__ = ["Container", "Range", "buffered", "open_container", "read_container"]

Range = tuple[int, int | None, int]
"""First row, the row after the last one (None where nobody knows) and bytes."""


class Container(Protocol):
    """An open file of typed rows."""

    schema: pa.Schema

    def ranges(self, columns: Collection[str] | None, split_bytes: int) -> list[Range]:
        """The ranges of about ``split_bytes`` in which the file is read, for some columns."""
        ...

    def allowance(self, columns: Collection[str]) -> int:
        """Memory for what lies in the file as one piece."""
        ...

    def batches(self, start: int, stop: int | None, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of a range; a batch without rows is a sign of life."""
        ...


class _Readable(Source):
    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def buffered(fetch: Callable[[int, int], bytes], size: int, buffer_size: int) -> io.BufferedReader:
    """A file of known size, through a function that gives up to ``length`` bytes from an offset."""
    return io.BufferedReader(_Readable(fetch, size), buffer_size)


def open_container(format: str, stream: io.BufferedReader, size: int, alive: Callable[[], None]) -> Container:
    """The file as what its format says, ``arrow`` or ``avro``.

    Raises:
        Damaged: it is none.
    """
    if not size:
        raise Damaged("it is empty, which no file of its format is")
    if format == "avro":
        from .avro import AvroFile

        return AvroFile(stream, size, alive)
    from .arrow_ipc import open_arrow

    return open_arrow(stream, size, alive)


def read_container(
    container: Container,
    start: int,
    stop: int | None,
    wanted: Collection[str],
    *,
    batch_rows: int,
    batch_bytes: int,
    send: Callable[[pa.RecordBatch], None],
    alive: Callable[[], None],
) -> None:
    """Sends the rows of a range, with those wanted columns that the file has, in pieces of about ``batch_bytes``.

    Raises:
        Damaged: the file has fewer rows than the range, or an array in it is not what it claims to be.
    """
    columns = roots(container.schema, wanted)
    done = start
    for batch in container.batches(start, stop, columns, batch_rows):
        if not batch.num_rows:
            alive()
            continue
        checked = _checked(batch)
        for first in range(0, checked.num_rows, batch_rows):
            for piece in pieces(checked.slice(first, batch_rows), batch_bytes):
                send(piece)
                done += piece.num_rows
    if stop is not None and done < stop:
        raise Damaged(f"it has fewer rows than its footer says: {done}, not {stop}")


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch once all offsets and indices in it are sound; which of its texts are UTF-8 is looked at later."""
    columns = [column.cast(VIEWS.get(column.type, column.type)) for column in batch.columns]
    for column in columns:
        plain = column
        if str(column.type) in ("string", "large_string"):
            plain = column.view(pa.binary() if str(column.type) == "string" else pa.large_binary())
        try:
            plain.validate(full=True)
        except pa.ArrowInvalid:
            raise Damaged("an array in it is not what its type says") from None
    schema = pa.schema([field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)])
    if not columns:
        return batch
    return pa.RecordBatch.from_arrays(columns, schema=schema)
