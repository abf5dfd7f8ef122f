"""One split -> its record batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.provenance import ROW, Provenance, Reject
from distilbeam.transforms.storage.filesystems import file_info

from .buffering import RowBuffer, empty_batch, joined
from .column_types import shown_types
from .first_rows import first_rows
from .fitting import fit
from .formats import delimited, jsonl, parquet
from .formats.base import Chunk, count_leaves, decode_text, is_text_type, reading
from .formats.kinds import CONTAINERS
from .formats.lines import BadLine, Block, find_invalid_utf8, parse, read_blocks
from .formats.salvage import open_trusted
from .losses import estimate_lost
from .nested import add_nested, nest, nested_paths
from .partitions import filled, partition_value
from .planning import read_schema
from .read_settings import ReadSettings
from .splits import Part, Split
from .unread import UnreadKeys

__all__ = ["MAX_REJECTS", "finished_batch", "read_split", "transient_columns"]

_MOST_LINES = 1 << 16  # parsed at once, so that few rejects wait however short the lines are
_MOST_CELLS = 1 << 22  # parsed at once, since an absent value takes memory too
_MOST_LOST = 1 << 20  # rows of a damaged part that are set aside one by one; a footer may say anything

MAX_REJECTS = 1000
"""Rejects that one batch tells at most, so that what a batch says of itself stays small."""


def read_split(split: Split, settings: ReadSettings) -> Iterator[pa.RecordBatch]:
    """The batches of a split, in order; the last one of each part tells its totals, and has no rows if need be.

    Raises:
        InputError: a file is missing, damaged, or not what it was when the plan was made.
    """
    schema, paths = read_schema(split), nested_paths(pa.ipc.read_schema(pa.py_buffer(split.schema)))
    common = _provenance(split, settings)
    unread = UnreadKeys(schema, strict=settings.strict)
    sequence = 0
    for number, part in enumerate(split.parts):
        _check_unchanged(part)
        rows = RowBuffer(schema.append(pa.field(ROW, pa.int64())), settings.batch_rows, settings.batch_bytes)
        provenance = _in_part(common, number, part)
        pending: deque[Reject] = deque()
        planned = nest(schema, paths) if part.format == "jsonl" else schema
        for chunk in first_rows(_read_or_reject(part, planned, settings, unread), part.limit):
            batch, rejects = _select(chunk, part, schema, settings)
            rows.add(batch)
            pending += sorted(rejects, key=_position)
            provenance = replace(provenance, seen=chunk.seen, lines=chunk.lines, lost=chunk.lost)
            while (full := rows.pop()) is not None or len(pending) > MAX_REJECTS:
                now = replace(provenance, sequence=sequence, rejects=_taken(pending))
                yield now.attach(rows.empty if full is None else full)
                sequence += 1
        provenance = replace(provenance, sequence=sequence, rejects=_taken(pending))
        if number == len(split.parts) - 1:
            provenance = replace(provenance, last=True, unread=unread.names)
        yield provenance.attach(rows.rest())
        sequence += 1


def finished_batch(split: Split, settings: ReadSettings) -> pa.RecordBatch:
    """What stands for a split that needs no reading: a batch without rows."""
    schema = read_schema(split).append(pa.field(ROW, pa.int64()))
    provenance = replace(_in_part(_provenance(split, settings), 0, split.parts[0]), finished=True, last=True)
    return provenance.attach(empty_batch(schema))


def _read_or_reject(part: Part, schema: pa.Schema, settings: ReadSettings, unread: UnreadKeys) -> Iterator[Chunk]:
    """The chunks of a part; if the file cannot be read on, and the settings say so, the rest is set aside.

    Where the file's footer says how many rows are left each is a reject; else one reject stands for all, and ``lost``
    tells how many more there were.
    """
    seen = lines = position = 0
    try:
        for chunk in _read_part(part, schema, settings, unread):
            seen, lines, position = chunk.seen, chunk.lines, chunk.position
            yield chunk
    except InputError as error:
        if settings.bad_files == "fail" or error.reason is None:
            raise
        reason = f"the file cannot be read{' from here on' if seen else ''}: {error.reason}"
        first, left = lines + 1, 1
        lost = estimate_lost(part, seen, position)
        if part.format in (*CONTAINERS, "csv"):
            first = part.start + lines
            if part.stop is not None:
                left, lost = part.stop - first, 0
                if left > _MOST_LOST:
                    reason = f"{reason}; by the count of its footer it had {left} more rows here"
                    left, lost = 1, left - 1
        for at in range(0, left, MAX_REJECTS):
            some = range(first + at, first + min(at + MAX_REJECTS, left))
            rejects = tuple(Reject.of("read", "BadFile", reason, row=row) for row in some)
            seen, lines = seen + len(some), lines + len(some)
            yield Chunk(empty_batch(pa.schema([])), pa.array([], pa.int64()), rejects, seen, lines, position, lost)


def _read_part(part: Part, schema: pa.Schema, settings: ReadSettings, unread: UnreadKeys) -> Iterator[Chunk]:
    if part.format in CONTAINERS:
        return _read_parquet(part, schema, settings)
    return _read_lines(part, schema, settings, unread)


def _read_parquet(part: Part, schema: pa.Schema, settings: ReadSettings) -> Iterator[Chunk]:
    at = part.start
    for batch in parquet.read_rows(
        part.source,
        part.start,
        part.stop,
        schema,
        batch_rows=settings.batch_rows,
        batch_bytes=settings.batch_bytes,
        memory=settings.decode_bytes,
        format=part.format,
    ):
        rows = pa.array(np.arange(at, at + batch.num_rows))
        at += batch.num_rows
        yield Chunk(batch, rows, (), at - part.start, at - part.start)


def _read_lines(part: Part, schema: pa.Schema, settings: ReadSettings, unread: UnreadKeys) -> Iterator[Chunk]:
    names = _header(part, settings)
    if part.format == "jsonl":
        # Where the user has not named the columns, keys that the plan has not met are a surprise.
        note = partial(unread.note, part.source) if settings.asked is None else None
        parser = jsonl.parser(schema, note, settings.as_text)
        diagnose = jsonl.diagnoser(schema, settings.id, settings.as_text)
    elif part.format == "text":
        parser, diagnose = _text_parser(settings.text[0] if len(settings.text) == 1 else "text"), _no_diagnosis
    else:
        parser = delimited.parser(schema, names, part.format, settings.dialect)
        diagnose = delimited.diagnoser(schema, names, part.format, settings.dialect)
    seen = lines = 0
    offset = int(part.format == "csv")  # its rows count from 0, lines from 1
    most = max(1, min(_MOST_LINES, _MOST_CELLS // max(count_leaves(schema), 1)))
    with reading(part.source), _opened(part, settings) as stream:
        position = 0
        for block in _blocks(part, stream, settings):
            position += block.length if isinstance(block, BadLine) else len(block.data)
            place = stream.consumed if part.compression else position
            if isinstance(block, BadLine):
                reject = Reject.of("read", block.error, block.reason, row=block.number, length=block.length)
                seen, lines = seen + 1, max(lines, block.number + offset)
                yield Chunk(empty_batch(pa.schema([])), pa.array([], pa.int64()), (reject,), seen, lines, place)
                continue
            documents = _documents(part, block, names, settings)
            for first in range(0, len(documents), most):
                some = documents.slice(first, min(first + most, len(documents)))
                seen, lines = seen + len(some), max(lines, int(some.numbers[-1]) + offset)
                batches, rows, rejects = parse(some, parser, diagnose, include_text=settings.rejects_include_text)
                batch = joined(batches) if batches else empty_batch(pa.schema([]))
                yield Chunk(batch, pa.array(rows, pa.int64()), tuple(rejects), seen, lines, place)
            if int(block.numbers[-1]) + offset > lines:  # ends with lines that are no rows
                lines = int(block.numbers[-1]) + offset
                yield Chunk(empty_batch(pa.schema([])), pa.array([], pa.int64()), (), seen, lines, place)


def _opened(part: Part, settings: ReadSettings) -> Any:
    salvage = settings.bad_files == "reject"
    return open_trusted(part.source, part.format, part.compression, settings.decode_bytes, salvage=salvage)


def _blocks(part: Part, stream: Any, settings: ReadSettings) -> Iterator[Block | BadLine]:
    if part.format == "csv":
        return delimited.read_records(
            stream,
            max_record_bytes=settings.max_line_bytes,
            dialect=settings.dialect,
            header=settings.columns is None,
        )
    return read_blocks(stream, part.start, part.stop, max_line_bytes=settings.max_line_bytes)


def _documents(part: Part, block: Block, header: Sequence[str], settings: ReadSettings) -> Block:
    """The lines that are rows: neither header nor blank."""
    if part.format == "jsonl":
        return jsonl.without_blank(block)
    if part.format == "csv":
        return block.keep(block.numbers >= 0)
    if part.format == "tsv":
        has_header = part.start == 0 and settings.columns is None
        body = (block.numbers > 1) if has_header else np.ones(len(block), np.bool_)
        # An empty line is a row, an empty text, only where there is one column.
        return block.keep(body & ((block.ends > block.starts) | (len(header) == 1)))
    return block


def _header(part: Part, settings: ReadSettings) -> Sequence[str]:
    if part.format not in ("csv", "tsv") or settings.columns is not None:
        return settings.columns or ()
    with reading(part.source), _opened(part, settings) as stream:
        return delimited.read_header(stream, part.format, settings.max_line_bytes, settings.dialect)


def _text_parser(name: str) -> Callable[[Block], pa.RecordBatch]:
    return lambda block: pa.RecordBatch.from_arrays([block.strings()], [name])


def _no_diagnosis(line: bytes, thorough: bool) -> tuple[str, str, str | None] | None:
    return ("ArrowInvalid", "the line cannot be read", None) if thorough else None


def _select(
    chunk: Chunk, part: Part, schema: pa.Schema, settings: ReadSettings
) -> tuple[pa.RecordBatch, tuple[Reject, ...]]:
    """The rows that have a text, with all columns of the plan, and those that have none as rejects."""
    chunk = replace(chunk, batch=add_nested(chunk.batch, schema.names))
    partitions = dict(part.partitions)
    lost: dict[int, str] = {}  # why the values of a row do not fit
    columns = {field.name: _column(chunk, field, partitions, settings, part, lost) for field in schema}
    count = len(chunk.rows)
    good = np.ones(count, np.bool_)
    rejects = list(chunk.rejects)
    ids = columns.get(settings.id) if settings.id else None

    def reject(index: int, error: str, reason: str, stage: str, data: bytes | None = None) -> None:
        good[index] = False
        row, id = chunk.rows[index].as_py(), None if ids is None else ids[index]
        length, text = None if data is None else len(data), data if settings.rejects_include_text else None
        rejects.append(Reject.of(stage, error, reason, row=row, id=id, length=length, text=text))

    for index, reason in lost.items():
        reject(index, "TypeError", reason, "read")
    for name in settings.text:
        column = columns[name]
        invalid = find_invalid_utf8(column)
        for index in invalid:
            if good[index]:
                reason = f"the text in column {name!r} is not valid UTF-8"
                reject(index, "UnicodeDecodeError", reason, "read", column[index].as_py())
        if invalid:
            column = pc.if_else(pa.array(good), column, pa.scalar(None, pa.binary()))
        columns[name] = column.view(pa.string())
    if settings.nulls == "reject":
        absent = np.logical_and.reduce([np.asarray(columns[name].is_null()) for name in settings.text])
        for absentee in np.flatnonzero(absent & good):
            reject(int(absentee), "NullText", "the text is null", "text")
    batch = pa.RecordBatch.from_arrays(
        [*columns.values(), chunk.rows.cast(pa.int64())], schema=schema.append(pa.field(ROW, pa.int64()))
    )
    return batch if good.all() else batch.filter(pa.array(good)), tuple(rejects)


def _column(
    chunk: Chunk,
    field: pa.Field,
    partitions: Mapping[str, str],
    settings: ReadSettings,
    part: Part,
    lost: dict[int, str],
) -> pa.Array:
    """One column in the type of the plan, or as binary if it is a text column; ``lost`` learns what does not fit."""
    name, kind = field.name, field.type
    folder = partition_value(partitions[name], kind) if name in partitions else None
    if (index := chunk.batch.schema.get_field_index(name)) < 0:
        column = pa.nulls(len(chunk.rows), kind) if folder is None else pa.repeat(folder, len(chunk.rows))
        return decode_text(column) if name in settings.text else column
    column = chunk.batch.column(index)
    if name in settings.text and is_text_type(column.type):
        column = decode_text(column)
    else:
        try:
            fitting, misfits = fit(column, kind)
        except pa.ArrowException:
            found, wanted = shown_types(column.type, kind, tell=part.format != "jsonl")
            raise InputError(
                f"cannot read {part.source!r}: column {name!r} cannot be read from {found} as {wanted}; give "
                "another type with `types`"
            ) from None
        if misfits:
            found, wanted = shown_types(column.type, kind, tell=part.format != "jsonl")
            reason = (
                f"the value of column {name!r} does not fit from {found} into {wanted} as it is; give the column "
                "another type with `types`"
            )
            lost.update(dict.fromkeys(misfits, reason) | lost)
        column = fitting.view(pa.binary()) if name in settings.text else fitting  # types= has asked for it
    if folder is None or part.format == "text":
        return column
    try:
        return filled(column, folder)
    except ValueError:
        raise InputError(
            f"column {name!r} of {part.source!r} has other values than its folder {name}={partitions[name]} says; "
            "rename one of the two, or leave the column out by listing the columns to `keep`"
        ) from None


def _check_unchanged(part: Part) -> None:
    info = file_info(part.source)
    if (info.size, info.version) != (part.size, part.version):
        raise InputError(f"{part.source!r} changed after the job had started; start the job again")


def transient_columns(settings: ReadSettings, split: Split) -> tuple[str, ...]:
    """The columns that are read and not written; where all are kept, those inside of structs, which have them."""
    if settings.asked is not None:
        return settings.transient
    return tuple(nested_paths(pa.ipc.read_schema(pa.py_buffer(split.schema))))


def _provenance(split: Split, settings: ReadSettings) -> Provenance:
    """What holds for all batches of a split; made once, since the id of a split takes all of its parts."""
    return Provenance(
        source="",
        split=split.id,
        ordinal=split.ordinal,
        splits=split.splits,
        reading=split.reading,
        text=settings.text,
        separator=settings.separator,
        null_texts=settings.nulls == "keep",
        id=settings.id,
        transient=transient_columns(settings, split),
        rejects_include_text=settings.rejects_include_text,
        total=split.total,
        dtypes=split.dtypes,
    )


def _in_part(provenance: Provenance, number: int, part: Part) -> Provenance:
    unit = "row" if part.format in (*CONTAINERS, "csv") else "line"
    return replace(
        provenance,
        source=part.source,
        size=part.size,
        version=part.version,
        start=part.start,
        stop=part.stop,
        part=number,
        unit=unit,
        relative=unit == "line" and part.start > 0,
    )


def _taken(rejects: deque[Reject]) -> tuple[Reject, ...]:
    """The next rejects, which are then no longer in the queue."""
    taken = [rejects.popleft() for _ in range(min(len(rejects), MAX_REJECTS))]
    return tuple(sorted(taken, key=_position))


def _position(reject: Reject) -> int:
    return reject.row or 0
