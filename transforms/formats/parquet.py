"""Parquet: row groups, or row ranges inside of large ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.filesystems import is_local, open_input, resolve

from .base import reading

__all__ = ["MAX_RANGES", "open_parquet", "ranges", "read_rows"]

MAX_RANGES = 16
"""A row group is cut into at most so many ranges, since each range decodes the rows before it again."""


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file that is read page by page.

    Raises:
        InputError: it is not Parquet, or damaged.
    """
    with reading(url):
        source: Any = resolve(url)[1] if is_local(url) else open_input(url, cache="none")
        buffer_size = 256 << 10 if is_local(url) else 4 << 20
        if is_local(url):
            source = pa.OSFile(source)
        with source, pq.ParquetFile(source, pre_buffer=False, buffer_size=buffer_size) as file:
            yield file


def ranges(metadata: pq.FileMetaData, columns: Collection[str], split_bytes: int) -> list[tuple[int, int, int]]:
    """Cuts a file into (start row, stop row, bytes) of at most about ``split_bytes`` uncompressed bytes.

    Args:
        metadata: the footer.
        columns: the top-level columns that will be read.
        split_bytes: bytes of those columns, uncompressed.
    """
    found: list[tuple[int, int, int]] = []
    leaves = _leaves(metadata.schema, columns)
    row = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        size = sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
        pieces = max(1, min(-(-size // split_bytes), MAX_RANGES, group.num_rows))
        edges = [row + group.num_rows * piece // pieces for piece in range(pieces + 1)]
        if pieces == 1 and found and found[-1][2] + size <= split_bytes:
            start, _, before = found.pop()
            found.append((start, edges[-1], before + size))
        else:
            found += [(low, high, size // pieces) for low, high in pairwise(edges)]
        row += group.num_rows
    return found or [(0, 0, 0)]


def read_rows(
    url: str, start: int, stop: int | None, schema: pa.Schema, *, batch_rows: int, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a range, with those columns of the schema that the file has.

    Raises:
        InputError: the file cannot be read.
    """
    with open_parquet(url) as file:
        stop = file.metadata.num_rows if stop is None else stop
        there = set(file.schema_arrow.names)
        columns = [name for name in schema.names if name in there]
        row = 0
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            first, row = row, row + group.num_rows
            if row <= start or first >= stop:
                continue
            rows = max(1, min(batch_rows, batch_bytes * group.num_rows // max(group.total_byte_size, 1)))
            at = first
            batches = file.iter_batches(rows, row_groups=[index], columns=columns, use_threads=False)
            while at < min(row, stop):
                with reading(url):
                    batch = next(batches, None)
                if batch is None:
                    raise InputError(f"cannot read {url!r}: its row group {index} has fewer rows than its footer says")
                low, high = max(start - at, 0), min(batch.num_rows, stop - at)
                at += batch.num_rows
                if low < high:
                    yield batch.slice(low, high - low).select(columns)


def _leaves(schema: pq.ParquetSchema, columns: Collection[str]) -> list[int]:
    """The positions of the leaves that lie in these top-level columns."""
    wanted = frozenset(columns)
    found = []
    for leaf in range(len(schema)):
        names = schema.column(leaf).path.split(".")  # a name may itself have dots in it
        if any(".".join(names[: depth + 1]) in wanted for depth in range(len(names))):
            found.append(leaf)
    return found
