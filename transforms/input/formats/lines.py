"""Blocks of lines: cut from a range of a file, parsed at once, and by halves where a line is bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distilbeam.transforms.provenance import Reject

__all__ = [
    "BLOCK_BYTES",
    "BadLine",
    "Block",
    "Diagnosis",
    "find_invalid_utf8",
    "parse",
    "read_blocks",
    "read_line",
]

BLOCK_BYTES = 4 << 20
_MANY = 256  # so many lines are looked at one by one where they cannot be parsed together
_FEW = 8  # and so few are parsed one by one
_BOM = b"\xef\xbb\xbf"

Positions = npt.NDArray[np.int64]
Diagnosis = Callable[[bytes, bool], tuple[str, str, str | None] | None]
"""Given a line and whether the parser has refused it alone: error class, reason and id, or None."""


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines or records, one after the other.

    Attributes:
        data: the bytes; every line but perhaps the last with its line end.
        starts: (lines,) where each line starts in ``data``.
        ends: (lines,) where each line ends, without its line end.
        numbers: (lines,) position of each line in its source.
    """

    data: bytes
    starts: Positions
    ends: Positions
    numbers: Positions

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, index: int) -> bytes:
        """One line without its end."""
        return self.data[self.starts[index] : self.ends[index]]

    def slice(self, start: int, stop: int) -> Block:
        """The lines from ``start`` to before ``stop``."""
        if stop - start == len(self):
            return self
        low = int(self.starts[start])
        high = int(self.starts[stop]) if stop < len(self) else len(self.data)
        lines = slice(start, stop)
        return Block(self.data[low:high], self.starts[lines] - low, self.ends[lines] - low, self.numbers[lines])

    def keep(self, mask: npt.NDArray[np.bool_]) -> Block:
        """The lines where the mask is true."""
        if mask.all():
            return self
        lengths = np.diff(self.starts, append=len(self.data))
        edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
        offsets = np.append(self.starts, len(self.data))
        runs = [self.data[offsets[low] : offsets[high]] for low, high in edges.reshape(-1, 2)]
        starts = np.cumsum(lengths[mask]) - lengths[mask]
        return Block(b"".join(runs), starts, starts + (self.ends - self.starts)[mask], self.numbers[mask])

    def strings(self) -> pa.Array:
        """The lines as a string array; the bytes must be valid UTF-8."""
        # +1 where a line end opens, -1 where the next line starts: what lies between is dropped.
        steps = np.zeros(len(self.data) + 1, np.int8)
        steps[self.ends] += 1
        steps[np.append(self.starts[1:], len(self.data))] -= 1
        kept = np.cumsum(steps, dtype=np.int8)[:-1] == 0
        data = np.frombuffer(self.data, np.uint8)[kept]
        offsets = np.zeros(len(self) + 1, np.int32)
        np.cumsum(self.ends - self.starts, out=offsets[1:])
        return pa.Array.from_buffers(pa.string(), len(self), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not worth parsing: its position, its bytes without the line end, and what is wrong."""

    number: int
    length: int
    error: str = "LineTooLong"
    reason: str = "the line is longer than `max_line_bytes` allows"


def read_line(stream: BinaryIO, limit: int) -> bytes:
    """The first line of a stream, without byte order mark and line end; at most ``limit`` bytes of it."""
    data = b""
    while b"\n" not in data and len(data) < limit:
        chunk = stream.read(64 << 10)
        if not chunk:
            break
        data += chunk
    return data.removeprefix(_BOM).partition(b"\n")[0].removesuffix(b"\r")[:limit]


def read_blocks(
    stream: BinaryIO, start: int = 0, stop: int | None = None, *, max_line_bytes: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block | BadLine]:
    r"""The lines that start in a byte range, numbered from 1.

    Lines end with ``\n`` or ``\r\n``. A byte order mark at the start of the file is dropped. A line that is too long is
    passed over without being held.
    """
    end = float("inf") if stop is None else stop
    position = max(start - 1, 0)  # of the first byte held, else of the next chunk
    if position:
        stream.seek(position)
    foreign = start > 0  # inside a line that belongs to the part before
    overlong = 0  # bytes so far of a line that is too long
    number = 1
    held: list[bytes] = []  # pieces of the line begun, joined once, as joining each time would be quadratic
    length = 0
    while foreign or overlong or position < end:
        ahead = end - position - length
        chunk = stream.read(int(min(ahead, block_bytes)) if ahead > 0 else min(block_bytes, max(64 << 10, length)))
        last = not chunk
        if foreign or overlong:
            cut = chunk.find(b"\n") + 1
            position += cut or len(chunk)
            if not cut and not last:
                overlong += len(chunk) if overlong else 0
                if foreign and position >= end:
                    return
                continue
            if overlong:
                yield BadLine(number, overlong + max(cut - 1, 0))
                number += 1
            foreign, overlong, chunk = False, 0, chunk[cut:]
            if last or position >= end:
                return
        cut = chunk.rfind(b"\n") + 1
        held.append(chunk[:cut] if cut else chunk)
        length += len(held[-1])
        if length and (cut or last):
            data, rest = b"".join(held), chunk[cut:] if cut else b""
            held, length = [rest], len(rest)
            block = _block(data, number)
            mine = int(np.searchsorted(block.starts, end - position))
            ours = block.slice(0, mine) if mine and not (position == 0 and data == _BOM) else None
            number += mine if ours is not None else 0
            if ours is not None:
                if position == 0 and data.startswith(_BOM):
                    ours = _without_mark(ours)
                yield from _without_long_lines(ours, max_line_bytes)
            if mine < len(block):
                return
            position += len(data)
        if last:
            return
        if length > max_line_bytes + len(_BOM) + 1 and position < end:
            marked = position == 0 and b"".join(held).startswith(_BOM)
            overlong = length - len(_BOM) * marked
            position, held, length = position + length, [], 0


def _block(data: bytes, number: int) -> Block:
    codes = np.frombuffer(data, np.uint8)
    stops = np.flatnonzero(codes == 10)
    starts = np.concatenate([np.zeros(1, np.int64), stops + 1])
    if starts[-1] == len(data):
        starts = starts[:-1]
    else:
        stops = np.append(stops, len(data))
    ends = stops - ((stops > starts) & (codes[np.maximum(stops - 1, 0)] == 13))
    return Block(data, starts, ends, np.arange(number, number + len(starts), dtype=np.int64))


def _without_mark(block: Block) -> Block:
    starts, ends = np.maximum(block.starts - len(_BOM), 0), np.maximum(block.ends - len(_BOM), 0)
    return Block(block.data[len(_BOM) :], starts, ends, block.numbers)


def _without_long_lines(block: Block, limit: int) -> Iterator[Block | BadLine]:
    lengths = block.ends - block.starts
    long = lengths > limit
    for index in np.flatnonzero(long):
        yield BadLine(int(block.numbers[index]), int(lengths[index]))
    if not long.all():
        yield block.keep(~long)


def find_invalid_utf8(column: pa.Array) -> list[int]:
    """The indices of the values of a binary or large_binary array that are not UTF-8."""
    text = column.view(pa.string() if pa.types.is_binary(column.type) else pa.large_string())
    invalid: list[int] = []
    ranges = [(0, len(text))]
    while ranges:
        start, stop = ranges.pop()
        try:
            text.slice(start, stop - start).validate(full=True)
        except pa.ArrowInvalid:
            if stop - start == 1:
                invalid.append(start)
            else:
                middle = (start + stop) // 2
                ranges += [(middle, stop), (start, middle)]
    return invalid


def parse(
    block: Block,
    parser: Callable[[Block], pa.RecordBatch],
    diagnose: Diagnosis,
    *,
    include_text: bool,
) -> tuple[list[pa.RecordBatch], Positions, list[Reject]]:
    """Parses all lines at once, or by halves until only the bad ones are left over.

    Few lines that cannot be parsed together are first looked at without the parser, which is dear for a single line.

    Args:
        block: the lines.
        parser: gives one row for each line, or raises ArrowInvalid, or gives another number of rows.
        diagnose: names error class, reason and id of a line; None where it finds nothing, which it may only do if its
            second argument, whether the parser has refused that very line, is false.
        include_text: whether a reject holds the line.

    Returns:
        Batches of good rows, their positions (rows,), and the rejects.
    """
    rejects: list[Reject] = []

    def reject(index: int, error: str, reason: str, id: str | None = None) -> None:
        line, number = block.line(index), int(block.numbers[index])
        text = line if include_text else None
        rejects.append(Reject.of("read", error, reason, row=number, id=id, length=len(line), text=text))

    def refused(index: int, thorough: bool) -> bool:
        finding = diagnose(block.line(index), thorough)
        if finding is not None:
            good[index] = False
            reject(index, *finding)
        return finding is not None

    offsets = pa.py_buffer(np.append(block.starts, len(block.data)))
    whole = pa.py_buffer(np.array([0, len(block.data)], np.int64))
    data = pa.py_buffer(block.data)
    good = np.ones(len(block), np.bool_)
    if find_invalid_utf8(pa.Array.from_buffers(pa.large_binary(), 1, [None, whole, data])):
        for index in find_invalid_utf8(pa.Array.from_buffers(pa.large_binary(), len(block), [None, offsets, data])):
            good[index] = False
            reject(index, "UnicodeDecodeError", "the line is not valid UTF-8")
    indices = np.flatnonzero(good)
    valid = block.keep(good)
    batches: list[pa.RecordBatch] = []
    waiting = [(np.arange(len(valid)), False)] if len(valid) else []
    while waiting:
        lines, screened = waiting.pop()
        batch = _attempt(parser, _taken(valid, lines))
        if batch is not None and batch.num_rows == len(lines):
            batches.append(batch)
        elif not screened and len(lines) <= _MANY:
            left = np.array([line for line in lines if not refused(int(indices[line]), False)], np.int64)
            if len(left):
                waiting.append((left, True))
        elif len(lines) == 1:
            refused(int(indices[lines[0]]), True)
        else:
            parts = 2 if len(lines) > _FEW else len(lines)
            waiting += [(part, screened) for part in reversed(np.array_split(lines, parts))]
    return batches, block.numbers[good], sorted(rejects, key=lambda reject: reject.row or 0)


def _taken(block: Block, lines: Positions) -> Block:
    """The lines at some positions, in ascending order."""
    first, last = int(lines[0]), int(lines[-1])
    between = block.slice(first, last + 1)
    if len(lines) == len(between):
        return between
    mask = np.zeros(len(between), np.bool_)
    mask[lines - first] = True
    return between.keep(mask)


def _attempt(parser: Callable[[Block], pa.RecordBatch], block: Block) -> pa.RecordBatch | None:
    try:
        return parser(block)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
