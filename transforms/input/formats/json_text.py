"""Values of JSON objects taken as text, however they are written: where the user gives a column the type string."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import numpy as np
import pyarrow as pa

from .lines import Block

__all__ = ["as_text", "kind_of"]

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)  # digits need no converting, which may be dear


def as_text(block: Block, names: Collection[str]) -> Block:
    """The lines with the values of some keys as strings: numbers, booleans, arrays and objects as they are written.

    Strings and nulls stay, and so does a line that is no JSON object.
    """
    lines = [_as_text(block.line(index), names) for index in range(len(block))]
    lengths = np.array([len(line) for line in lines], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    return Block(b"\n".join(lines), ends - lengths, ends, block.numbers)


def kind_of(values: list[Any]) -> pa.DataType | None:
    """The type of values that JSON gives for a column, of the first one where they have none in common."""
    for some in (values, values[:1]):
        try:
            return pa.infer_type(some) if some else None
        except (pa.ArrowException, OverflowError):
            continue
    return pa.float64()  # an integer beyond 64 bits


def _as_text(line: bytes, names: Collection[str]) -> bytes:
    try:
        text = line.decode()
        pieces, done = [], 0
        for key, start, stop in _members(text):
            if key in names and text[start] != '"' and text[start:stop] != "null":
                pieces += [text[done:start], json.dumps(text[start:stop], ensure_ascii=False)]
                done = stop
        return "".join((*pieces, text[done:])).encode() if done else line
    except (ValueError, IndexError, RecursionError):
        return line


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of each value of an object."""
    at = _skip(text, 0)
    if text[at] != "{":
        return
    at = _skip(text, at + 1)
    while text[at] == '"':
        key, at = scanstring(text, at + 1, True)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError
        start = _skip(text, at + 1)
        _, at = _DECODER.raw_decode(text, start)
        yield key, start, at
        at = _skip(text, at)
        if text[at] == "}":
            return
        if text[at] != ",":
            raise ValueError
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
