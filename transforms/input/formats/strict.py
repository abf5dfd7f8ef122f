"""What is wrong with a JSON line, and what Arrow's JSON parser lets through though it is wrong.

Arrow keeps to RFC 8259 except that it takes ``NaN`` and ``Infinity`` for numbers, and an integer that fits into no
int64 for the double next to it. Both are looked for after a block was parsed, and only those lines are looked at again
that give cause.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pyarrow as pa

from distilbeam.transforms.input.column_types import shown_type
from distilbeam.transforms.input.fitting import MOST_DIGITS, loses_digits
from distilbeam.transforms.provenance import show_value

from .lines import Block

__all__ = ["Finding", "duplicates", "has_constants", "has_lost_digits", "screen"]

Finding = tuple[str, str, str | None]

_CONSTANTS = (b"NaN", re.compile(rb"NaN[ \t\r\n]*[,\]}]")), (b"Inf", re.compile(rb"Inf(?:inity)?[ \t\r\n]*[,\]}]"))
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.S)  # linear only where all strings are closed
_LONG = re.compile(rb"\d{16}")
_INTEGER = re.compile(rb"(?<![\d.eE+-])-?\d{16,}(?![\d.eE])")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_EXACT = 2.0**53  # from here on a double does not hold every integer


def has_constants(block: Block) -> bool:
    """Whether a line of valid JSON, but for these, holds NaN or Infinity outside of strings."""
    for word, pattern in _CONSTANTS:
        if word not in block.data:
            continue
        for index in _lines(block, pattern):
            bare = _STRING.sub(b"", block.line(index))
            if b"N" in bare or b"I" in bare:
                return True
    return False


def has_lost_digits(block: Block, batch: pa.RecordBatch) -> bool:
    """Whether an integer of these valid lines has digits that its double in the batch does not."""
    values = {value for column in batch.columns for value in _large(column)}
    if not values:
        return False
    for index in _lines(block, _LONG):
        for digits in _INTEGER.findall(_STRING.sub(b"", block.line(index))):
            if float(digits) in values and loses_digits(digits.decode()):
                return True
    return False


def screen(
    schema: pa.Schema, id: str | None, texts: Collection[str] = ()
) -> Callable[[bytes], tuple[Finding | None, Any]]:
    """What names error class, reason and id of a line, if a look at it without Arrow tells; and the pairs it holds.

    ``texts`` are columns that take any value.
    """
    kinds = [(field.name, field.type, None if field.name in texts else _kind(field.type)) for field in schema]
    constants: list[str] = []
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=constants.append, parse_int=_integer)

    def look(line: bytes) -> tuple[Finding | None, Any]:
        constants.clear()
        try:
            # As text, for json would also guess other encodings; a byte order mark is refused, as Arrow does.
            value = decoder.decode(line.decode())
        except RecursionError:
            return None, None
        except ValueError:
            return ("JSONDecodeError", "the line is not valid JSON", None), None
        if not isinstance(value, _Pairs):
            return ("NotAnObject", "the line is not a JSON object", None), None
        values = dict(value)
        name = values.get(id) if id else None
        known = show_value(name) if isinstance(name, str | int) else None
        if constants:
            return ("JSONDecodeError", "the line is not valid JSON: it holds NaN or Infinity", known), None
        if _SURROGATE.search(line) and _has_surrogate(value):
            return ("UnicodeEncodeError", "a string holds half of a surrogate pair", None), None
        if len(values) < len(value):
            names = Counter(name for name, _ in value)
            if any(names[name] > 1 for name, _, _ in kinds):
                return ("DuplicateKey", "a key occurs twice in the object", known), None
        for name, kind, expected in kinds:
            given = values.get(name)
            if given is None:
                continue
            if isinstance(given, float) and math.isinf(given):  # the word for it was looked for above
                return ("TypeError", f"a number in column {name!r} is beyond the range of a double", known), None
            # In Python a boolean is an integer, too.
            if expected and not (isinstance(given, expected) and (expected is bool) is isinstance(given, bool)):
                return (
                    "TypeError",
                    f"the value of column {name!r} is not of type {shown_type(kind, tell=False)}",
                    known,
                ), None
            is_long = pa.types.is_float64(kind) and isinstance(given, int) and abs(given) > _EXACT
            if is_long and loses_digits(str(given)):
                reason = (
                    f"an integer in column {name!r} has more digits than a double holds; write it as a string, or "
                    "leave the column out"
                )
                return ("LostDigits", reason, known), None
        return None, value

    return look


class _Pairs(list[Any]):
    """The pairs of an object, duplicate keys too, told from an array."""


def duplicates(value: Any) -> bool:
    """Whether an object somewhere in a parsed value has a key twice."""
    waiting = [value]
    while waiting:  # not by recursion, which deep nesting would exhaust
        value = waiting.pop()
        if isinstance(value, _Pairs):
            if len({name for name, _ in value}) < len(value):
                return True
            waiting += [inner for _, inner in value]
        elif isinstance(value, list):
            waiting += value
    return False


def _lines(block: Block, pattern: re.Pattern[bytes]) -> list[int]:
    """The lines in which the pattern occurs."""
    found: list[int] = []
    at = 0
    while (match := pattern.search(block.data, at)) is not None:
        index = int(np.searchsorted(block.starts, match.start(), side="right")) - 1
        found.append(index)
        at = int(block.starts[index + 1]) if index + 1 < len(block) else len(block.data)
    return found


def _large(column: pa.Array) -> list[float]:
    """The doubles, nested ones too, that may stand for another integer than was written."""
    kind = column.type
    if pa.types.is_float64(kind):
        values = column.drop_null().to_numpy(zero_copy_only=False)
        return [float(value) for value in values[~(np.abs(values) < _EXACT)]]
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = column.flatten()
        return [value for part in (inner if pa.types.is_struct(kind) else [inner]) for value in _large(part)]
    return []


def _integer(digits: str) -> int:
    # Python refuses to convert thousands of digits, which would take quadratic time.
    return int(digits) if len(digits) <= 2 * MOST_DIGITS else int(digits[: 2 * MOST_DIGITS])


def _kind(kind: pa.DataType) -> Any:
    """The Python types that JSON must give for a type, or None where only Arrow can tell."""
    if pa.types.is_string(kind):
        return str
    if pa.types.is_boolean(kind):
        return bool
    if pa.types.is_integer(kind):
        return int
    if pa.types.is_floating(kind):
        return (int, float)
    if pa.types.is_struct(kind):
        return _Pairs
    return None


def _has_surrogate(value: Any) -> bool:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                return True
    return False
