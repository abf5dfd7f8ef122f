r"""JSON lines: one object on each line, as RFC 8259 has it.

What that leaves open, or many parsers let through:

==========================================  ============================================================
a line that is no object                    a reject; blank lines are no rows
``NaN``, ``Infinity``                       a reject, wherever in the line
a key twice                                 a reject where the key is read, else of no account
integer beyond 64 bits                      a reject in an integer column
integer beyond 2**53                        a reject in a double column if it would lose digits
number beyond a double                      a reject; one too small is 0
half of a surrogate pair, escaped or raw    a reject, wherever in the line
invalid UTF-8                               a reject
NUL, control characters                     a reject if raw; escaped they are text
byte order mark                             passed over at the start of the file, a reject elsewhere
line ends                                   ``\n`` or ``\r\n``; a lone ``\r`` is white space; U+2028 is text
an empty key                                a column with an empty name
nesting                                     a reject where it is too deep for the type of a column
a value of another type                     a reject; as it is written where ``types`` gives its column as string
keys that the plan has not met              not read; the manifest names them
==========================================  ============================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from distilbeam.transforms.input.column_types import holds, mapped, shown_type
from distilbeam.transforms.input.fitting import fitted, has_infinity
from distilbeam.transforms.provenance import show_value

from .base import MAX_COLUMNS, Unreadable, unify
from .json_text import as_text, kind_of
from .lines import BadLine, Block, Diagnosis, parse, read_blocks
from .strict import Finding, duplicates, has_constants, has_lost_digits, screen

__all__ = ["SAMPLE_BYTES", "diagnoser", "infer", "is_empty", "open_type", "parser", "settled_type"]

SAMPLE_BYTES = 1 << 20
_MAX_DEPTH = 100
_PIECE_LINES = 256
_PIECE_BYTES = 64 << 10
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("{"), ord("[")]] = 1
_STEPS[[ord("}"), ord("]")]] = -1
_KEY = re.compile(rb'"[ \t]*:')


def parser(
    schema: pa.Schema, unread: Callable[[Block], bool] | None = None, texts: Collection[str] = ()
) -> Callable[[Block], pa.RecordBatch]:
    """What turns lines into rows of the schema.

    Args:
        schema: the columns; keys that it lacks are passed over.
        unread: called with lines that have such keys, for as long as it gives true.
        texts: string columns that take other values as they are written.
    """
    written = pa.schema([field.with_type(_written(field.type)) for field in schema])
    narrow = any(holds(field.type, pa.types.is_float32) for field in written)
    waiting = [unread] if unread else []

    def parsed(block: Block) -> pa.RecordBatch:
        if waiting:
            with suppress(pa.ArrowInvalid):
                return _read(block, written, "error")
        batch = _read(block, written, "ignore")
        if waiting and not waiting[0](block):
            waiting.pop()
        return batch

    def read(block: Block) -> pa.RecordBatch:
        try:
            batch = parsed(block)
        except pa.ArrowInvalid:
            if not texts:
                raise
            batch = parsed(as_text(block, texts))
        if has_constants(block):
            raise pa.ArrowInvalid("NaN or Infinity")
        if has_lost_digits(block, batch):
            raise pa.ArrowInvalid("an integer too long for a double")
        if narrow and any(map(has_infinity, batch.columns)):
            raise pa.ArrowInvalid("a number beyond the range of its type")  # of which Arrow makes infinity
        if written == schema:
            return batch
        return pa.RecordBatch.from_arrays(
            [fitted(column, field.type) for column, field in zip(batch.columns, schema, strict=True)], schema=schema
        )

    return read


def infer(
    stream: Any, text: Sequence[str], max_line_bytes: int, texts: Collection[str] = (), *, settled: bool = True
) -> tuple[list[pa.Field], int]:
    """The fields of the first lines of a file, and the number of objects among them.

    Text columns are strings if any of their values is, also where other values come first, and so are those that
    ``texts`` names. Dates stay strings, and so do columns that are always null; a column that is always an empty object
    is left out, since Parquet cannot hold it. All that holds if ``settled``; else other lines may have a say yet, so
    that types keep the nulls and empty objects that they have.

    Raises:
        Unreadable: the file is a JSON array, not JSON lines.
    """
    known = pa.schema([pa.field(name, pa.string()) for name in text])
    fields: dict[str, pa.Field] = {}
    present: dict[str, None] = {}
    strings: set[str] = set()
    others: dict[str, list[Any]] = {}  # values of text columns without a string
    count = 0
    first = b""
    for block in read_blocks(stream, 0, SAMPLE_BYTES, max_line_bytes=max_line_bytes, block_bytes=SAMPLE_BYTES):
        if isinstance(block, BadLine):
            continue
        lines = as_text(without_blank(block), texts) if texts else without_blank(block)
        first = first or (lines.line(0).lstrip() if len(lines) else b"")
        batches = [batch for piece in _pieces(_simple(lines)) for batch in _inferred(piece, known)]
        if not count:  # Arrow puts the text columns first; the file's own order is kept
            present |= _keys(lines.slice(0, min(len(lines), 1)), others)
        strings |= {name for name in text for batch in batches if batch[name].null_count < batch.num_rows}
        present |= dict.fromkeys(name for name in text if name in strings)
        if not strings >= set(text):  # always null, of another type, or not there at all
            present |= _keys(lines, others, set(text) - strings)
        count += sum(batch.num_rows for batch in batches)
        for field in (field for batch in batches for field in batch.schema):
            try:
                fields[field.name] = unify([fields[field.name], field]) if field.name in fields else field
            except pa.ArrowException:
                continue  # the type seen first stays; lines of another type become rejects
    fields |= {
        name: pa.field(name, kind)
        for name, values in others.items()
        if name not in strings and (kind := kind_of(values)) is not None
    }
    count = max(count, *map(len, others.values())) if others else count
    if not count and first.startswith(b"["):
        raise Unreadable("it is a JSON array, not JSON lines; write one object on each line")
    if settled:
        kept = [field.with_type(settled_type(field.type)) for field in fields.values() if not is_empty(field.type)]
    else:
        kept = [field.with_type(open_type(field.type)) for field in fields.values()]
    order = {name: position for position, name in enumerate(present)}
    kept = [field for field in kept if field.name not in text or field.name in present]
    return sorted(kept, key=lambda field: order.get(field.name, len(order))), count


def diagnoser(schema: pa.Schema, id: str | None, texts: Collection[str] = ()) -> Diagnosis:
    """What names error class, reason and id of a line that the parser refuses; ``texts`` are those of ``parser``."""
    look = screen(schema, id, texts)

    def diagnose(line: bytes, thorough: bool) -> Finding | None:
        finding, value = look(line)
        if finding is not None or not thorough:
            return finding
        if value is None:
            return "RecursionError", "the line is nested too deep", None
        alone = Block(line, np.zeros(1, np.int64), np.full(1, len(line)), np.zeros(1, np.int64))
        values = dict(value)
        name = values.get(id) if id else None
        known = show_value(name) if isinstance(name, str | int) else None
        for field in schema:
            try:
                parser(pa.schema([field]), texts=texts)(alone)
            except pa.ArrowInvalid:
                if duplicates(values.get(field.name)):
                    return "DuplicateKey", f"a key occurs twice in an object of column {field.name!r}", known
                return (
                    "TypeError",
                    f"the value of column {field.name!r} is not of type {shown_type(field.type, tell=False)}",
                    known,
                )
        return "ArrowInvalid", "the JSON parser refused the line", known

    return diagnose


def without_blank(block: Block) -> Block:
    """The lines that hold more than white space."""
    longer = block.ends > block.starts
    full = longer.copy()
    full[longer] = np.frombuffer(block.data, np.uint8)[block.starts[longer]] > 32
    for index in np.flatnonzero(longer & ~full):
        full[index] = bool(block.line(int(index)).strip(b" \t\r\n"))
    return block.keep(full)


def _inferred(lines: Block, known: pa.Schema) -> list[pa.RecordBatch]:
    look = screen(known, None)
    batches, _, _ = parse(
        lines,
        lambda part: _read(part, known, "infer"),
        lambda line, thorough: look(line)[0] or (("", "", None) if thorough else None),
        include_text=False,
    )
    return batches


def _pieces(block: Block) -> Iterator[Block]:
    """The lines in pieces, since each key that one line has takes memory for every line that it is inferred with."""
    edges = np.flatnonzero(np.diff(block.starts // _PIECE_BYTES, prepend=-1))
    edges = np.union1d(edges, np.arange(0, len(block), _PIECE_LINES))
    for start, stop in pairwise([*map(int, edges), len(block)]):
        yield block.slice(start, stop)


def _simple(block: Block) -> Block:
    """The lines that have not too many keys and are not nested very deep: Arrow crashes on types of extreme depth."""
    if not len(block):
        return block
    few = np.ones(len(block), np.bool_)
    for index in np.flatnonzero(block.ends - block.starts > MAX_COLUMNS):
        keys = _KEY.finditer(block.data, int(block.starts[index]), int(block.ends[index]))
        few[index] = sum(1 for _ in islice(keys, MAX_COLUMNS + 1)) <= MAX_COLUMNS
    block = block.keep(few)
    if not len(block):
        return block
    return block.keep(_depths(block) <= _MAX_DEPTH)


def _depths(block: Block) -> Any:
    """(lines,) how deep each line is nested, at most, brackets inside of strings included."""
    if len(block.data) <= SAMPLE_BYTES:
        depths = np.cumsum(_STEPS[np.frombuffer(block.data, np.uint8)], dtype=np.int32)
        return np.maximum.reduceat(depths, block.starts) - np.append([0], depths[block.starts[1:] - 1])
    deepest = np.zeros(len(block), np.int64)
    for index in range(len(block)):
        depth = 0
        for start in range(int(block.starts[index]), int(block.ends[index]), SAMPLE_BYTES):
            codes = np.frombuffer(block.data[start : min(start + SAMPLE_BYTES, int(block.ends[index]))], np.uint8)
            depths = np.cumsum(_STEPS[codes], dtype=np.int32)
            deepest[index] = max(deepest[index], depth + int(depths.max()))
            depth += int(depths[-1])
    return deepest


def _read(block: Block, schema: pa.Schema, unexpected: str) -> pa.RecordBatch:
    _require_objects(block)
    table = pa.json.read_json(
        pa.BufferReader(block.data),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block.data) + 1),
        parse_options=pa.json.ParseOptions(
            explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior=unexpected
        ),
    )
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _require_objects(block: Block) -> None:
    """Raises ArrowInvalid unless each line goes from { to }.

    Arrow takes two objects on one line for two rows, an object on two lines for one, and crashes on a bare null. Where
    every line goes from { to } no object can span lines, so the number of rows tells the rest.
    """
    codes = np.frombuffer(block.data, np.uint8)
    odd = (codes[block.starts] != ord("{")) | (codes[block.ends - 1] != ord("}"))
    for index in np.flatnonzero(odd):
        line = block.line(int(index)).strip(b" \t\r")
        if not (line.startswith(b"{") and line.endswith(b"}")):
            raise pa.ArrowInvalid("a line is not an object")


def _keys(block: Block, others: dict[str, list[Any]], names: Collection[str] = ()) -> dict[str, None]:
    """The keys of all objects, in the order in which they come first; values of some of them go into ``others``."""
    keys: dict[str, None] = {}
    for index in range(len(block)):
        try:
            value = json.loads(block.line(int(index)))
            keys.update(dict.fromkeys(value))
        except (ValueError, RecursionError, TypeError):
            continue
        for name in names if isinstance(value, dict) else ():
            if value.get(name) is not None:
                others.setdefault(name, []).append(value[name])
    return keys


def is_empty(kind: pa.DataType) -> bool:
    """Whether a type can hold nothing: that of an object which is always empty."""
    return bool(pa.types.is_struct(kind) and all(is_empty(field.type) for field in kind))


def _written(kind: pa.DataType) -> pa.DataType:
    """The type in which Arrow can read what JSON has for this type."""
    return mapped(kind, _written_plain)


def _written_plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return pa.string()
    if pa.types.is_timestamp(kind) and kind.tz not in (None, "UTC"):
        return pa.string()  # Arrow's JSON takes a clock time for one in UTC, whatever zone the column has
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field)
    return pa.float32() if pa.types.is_float16(kind) else kind


def open_type(kind: pa.DataType) -> pa.DataType:
    """The inferred type, with strings for dates; what is always null may yet be anything."""
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(open_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(open_type(field.type)) for field in kind])
    return kind


def settled_type(kind: pa.DataType) -> pa.DataType:
    """The inferred type, with strings for dates and for what is always null."""
    if pa.types.is_null(kind) or pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(settled_type(kind.value_type)) if not is_empty(kind.value_type) else pa.list_(pa.string())
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(settled_type(field.type)) for field in kind if not is_empty(field.type)])
    return kind
