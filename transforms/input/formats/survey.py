"""The keys and types of JSON lines beyond the first ones: which columns a sample of a file has missed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from .base import MAX_COLUMNS, unify
from .json_text import as_text
from .jsonl import _inferred, _pieces, _read, _simple, open_type, without_blank
from .lines import BadLine, Block, read_blocks

__all__ = ["MAX_NAMES", "merge", "news", "survey", "unread_keys"]

_FRUITLESS = 32  # pieces of lines that tell nothing new, after which only unknown keys are looked for
MAX_NAMES = 100
"""Names of unread keys that are told at most; there may be one for each document."""


def survey(
    stream: Any,
    start: int,
    stop: int | None,
    known: Mapping[str, pa.Field],
    text: Collection[str],
    *,
    max_line_bytes: int,
    max_lines: int | None = None,
    texts: Collection[str] = (),
) -> dict[str, pa.Field]:
    """The fields of a range of a file that are not known, or not wide enough.

    A block is parsed with what is known, which is quick; only where that fails are its lines inferred, a few at a time.
    A value that fits with no other of its column tells nothing, since its line will be a reject.

    Args:
        stream: the file.
        start: first byte of the range.
        stop: its end; None for the end of the file.
        known: fields by name, of which those that were always null have the type null.
        text: text columns, which are strings.
        max_line_bytes: a longer line is passed over.
        max_lines: lines to look at; None for all.
        texts: string columns that take other values as they are written.
    """
    wide = dict(known)
    given = pa.schema([pa.field(name, pa.string()) for name in text])
    check = _check_schema(wide, text)
    fruitless = seen = 0
    for block in read_blocks(stream, start, stop, max_line_bytes=max_line_bytes):
        if isinstance(block, BadLine):
            continue
        if max_lines is not None:
            if seen >= max_lines:
                break
            block = block.slice(0, min(len(block), max_lines - seen))
            seen += len(block)
        lines = without_blank(block)
        if not len(lines) or _fits(lines, check):
            continue
        for piece in _pieces(_simple(lines)):
            piece = as_text(piece, texts) if texts else piece
            if _fits(piece, check) or (fruitless >= _FRUITLESS and not _keys(piece) - set(wide)):
                continue
            before = wide
            for batch in _inferred(piece, given):
                # Text columns are given as strings, so only where there are values do they tell anything.
                told = [
                    field
                    for field, column in zip(batch.schema, batch.columns, strict=True)
                    if field.name not in text or (field.name not in wide and column.null_count < len(column))
                ]
                wide = merge(wide, told)
            if not news(before, wide):
                fruitless += 1
            else:
                check = _check_schema(wide, text)
            if len(wide) > MAX_COLUMNS:  # the plan will say so
                break
    return news(known, wide)


def merge(known: Mapping[str, pa.Field], fields: Iterable[pa.Field]) -> dict[str, pa.Field]:
    """The known fields and more ones, each with a type that all of its values have; the first stays if there is none.

    >>> merged = merge({"a": pa.field("a", pa.null())}, [pa.field("a", pa.int64()), pa.field("b", pa.string())])
    >>> {name: str(field.type) for name, field in merged.items()}
    {'a': 'int64', 'b': 'string'}
    """
    merged = dict(known)
    for field in fields:
        field = field.with_type(open_type(field.type))
        try:
            merged[field.name] = unify([merged[field.name], field]) if field.name in merged else field
        except pa.ArrowException:
            continue
    return merged


def news(known: Mapping[str, pa.Field], wider: Mapping[str, pa.Field]) -> dict[str, pa.Field]:
    """Those of the fields that are not known, or with another type."""
    return {name: field for name, field in wider.items() if name not in known or known[name].type != field.type}


def unread_keys(lines: Block, schema: pa.Schema) -> set[str]:
    """The keys of objects that no column takes, dotted where they are inside of one; at most ``MAX_NAMES``."""
    kind = pa.struct(list(schema))
    found: set[str] = set()
    for index in range(len(lines)):
        try:
            found.update(_surplus(json.loads(lines.line(index)), kind, ""))
        except (ValueError, RecursionError):
            continue
        if len(found) >= MAX_NAMES:
            break
    return set(sorted(found)[:MAX_NAMES])


def _surplus(value: Any, kind: pa.DataType, path: str) -> Iterator[str]:
    if isinstance(value, dict) and pa.types.is_struct(kind):
        for key, inner in value.items():
            index = kind.get_field_index(key)
            if index < 0:
                yield path + key
            else:
                yield from _surplus(inner, kind.field(index).type, f"{path}{key}.")
    elif isinstance(value, list) and pa.types.is_list(kind):
        for each in value:
            yield from _surplus(each, kind.value_type, path)


def _check_schema(fields: Mapping[str, pa.Field], text: Collection[str]) -> pa.Schema:
    """What lines are parsed with that are to tell nothing new; what was always null is so."""
    return pa.schema([pa.field(name, pa.string() if name in text else field.type) for name, field in fields.items()])


def _fits(lines: Block, schema: pa.Schema) -> bool:
    try:
        _read(lines, schema, "error")
    except pa.ArrowInvalid:
        return False
    return True


def _keys(lines: Block) -> set[str]:
    keys: set[str] = set()
    for index in range(len(lines)):
        try:
            value = json.loads(lines.line(index))
        except (ValueError, RecursionError):
            continue
        keys.update(value if isinstance(value, dict) else ())
    return keys
