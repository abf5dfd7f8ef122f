"""Arrow types as text, in the form in which Arrow itself shows them, so that what a message tells can be given back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pyarrow as pa

__all__ = ["TypeNameError", "parse_type"]

_MAX_DEPTH = 50


class TypeNameError(ValueError):
    """A text is the name of no Arrow type; the message says where, and what would be."""


def parse_type(text: str) -> pa.DataType:
    """The Arrow type that a text names.

    ===========================================  ==================================================
    numbers, texts, dates                        ``int64``, ``double``, ``bool``, ``string``, ``date32``, ...
    times                                        ``timestamp[us]``, ``timestamp[us, tz=Europe/Berlin]``,
                                                 ``time32[ms]``, ``time64[us]``, ``duration[s]``
    decimals                                     ``decimal128(10, 2)``; also decimal32, decimal64, decimal256
    bytes of one length                          ``fixed_size_binary[16]``
    lists                                        ``list<string>``, ``list<item: string not null>``; also large_list,
                                                 list_view, large_list_view, ``fixed_size_list<float>[3]``
    structs                                      ``struct<a: int64, b: list<string>>``
    maps                                         ``map<string, int64>``
    categories                                   ``dictionary<values=string, indices=int32, ordered=0>``
    extensions                                   ``extension<arrow.uuid>``, ``arrow.json``, ``arrow.bool8``
    ===========================================  ==================================================

    The name of a field goes up to the first colon. Spaces around names and marks are of no account.

    Raises:
        TypeNameError: the text names no type.

    Example:
        >>> parse_type("struct<at: timestamp[us, tz=Europe/Berlin], price: decimal128(10, 2)>").field("price").type
        Decimal128Type(decimal128(10, 2))
    """
    return _Parser(text).whole()


class _Parser:
    """A reader of one text, from left to right."""

    def __init__(self, text: str):
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> pa.DataType:
        kind = self._type()
        if self._skip() < len(self._text):
            raise self._expected("the end")
        return kind

    def _type(self) -> pa.DataType:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise TypeNameError(f"it is nested more than {_MAX_DEPTH} deep")
        start = self._skip()
        name = self._match(r"[a-z_][a-z0-9_]*", f"the name of a type, one of {', '.join(_NAMES)}")[0]
        make = _MAKERS.get(name)
        kind = self._plain(name, start) if make is None else make(self)
        self._depth -= 1
        return kind

    def _plain(self, name: str, start: int) -> pa.DataType:
        unit = re.compile(r"\[(day|ms|s|us|ns)\]").match(self._text, self._at)
        if unit:
            self._at = unit.end()
        try:
            return pa.type_for_alias(name + (unit[0] if unit else ""))
        except (ValueError, TypeError):
            self._at = start
            raise self._expected(f"the name of a type, one of {', '.join(_NAMES)}") from None

    def timestamp(self) -> pa.DataType:
        unit = self._match(r"\[\s*(s|ms|us|ns)\s*", "[s], [ms], [us] or [ns]")[1]
        zone = self._optional(r",\s*tz\s*=\s*([^\]\s]+)\s*")
        self._mark("]", "], or a time zone, such as ', tz=Europe/Berlin'")
        return pa.timestamp(unit, zone[1] if zone else None)

    def unit(self, make: Callable[[str], pa.DataType], units: str) -> pa.DataType:
        shown = ", ".join(f"[{unit}]" for unit in units.split("|"))
        return make(self._match(rf"\[\s*({units})\s*\]", f"one of {shown}")[1])

    def decimal(self, make: Callable[[int, int], pa.DataType]) -> pa.DataType:
        start = self._at
        digits = self._match(r"\(\s*(\d+)\s*(?:,\s*(-?\d+)\s*)?\)", "precision and scale, such as '(10, 2)'")
        try:
            return make(int(digits[1]), int(digits[2] or 0))
        except (ValueError, pa.ArrowException) as error:
            raise TypeNameError(f"at position {start + 1}, {error}") from None

    def size(self) -> int:
        return int(self._match(r"\[\s*(\d{1,9})\s*\]", "a size, such as '[16]'")[1])

    def list(self, make: Callable[[pa.Field], pa.DataType]) -> pa.DataType:
        self._mark("<")
        field = self._field("item", is_named=False)
        self._mark(">")
        return make(field)

    def struct(self) -> pa.DataType:
        self._mark("<")
        fields: list[pa.Field] = []
        while self._optional(r">") is None:
            if fields:
                self._mark(",", "',' or '>'")
            fields.append(self._field("", is_named=True))
        return pa.struct(fields)

    def map(self) -> pa.DataType:
        self._mark("<")
        key = self._type()
        self._mark(",")
        item = self._type()
        is_sorted = self._optional(r",\s*keys_sorted") is not None
        self._optional(r"\('[^']*'(,\s*'[^']*')*\)|\([^()]*\)")  # names inside, which mean nothing
        self._mark(">")
        if pa.types.is_null(key):
            raise TypeNameError("the keys of a map cannot be null")
        return pa.map_(key, item, keys_sorted=is_sorted)

    def dictionary(self) -> pa.DataType:
        self._mark("<")
        self._optional(r"values\s*=")
        values = self._type()
        index, ordered = pa.int32(), False
        if self._optional(r",\s*indices\s*="):
            index = self._type()
        if found := self._optional(r",\s*ordered\s*=\s*(0|1)"):
            ordered = found[1] == "1"
        self._mark(">", "'>', or ', indices=int32' or ', ordered=1'")
        try:
            return pa.dictionary(index, values, ordered)
        except (TypeError, pa.ArrowException):
            raise TypeNameError(f"a dictionary has indices of integers, not of {index}") from None

    def run_end_encoded(self) -> pa.DataType:
        self._mark("<")
        self._match(r"run_ends\s*:", "'run_ends:'")
        ends = self._type()
        self._match(r",\s*values\s*:", "', values:'")
        values = self._type()
        self._mark(">")
        try:
            return pa.run_end_encoded(ends, values)
        except (ValueError, TypeError, pa.ArrowException):
            raise TypeNameError(f"runs end at int16, int32 or int64, not at {ends}") from None

    def extension(self) -> pa.DataType:
        allowed = ", ".join(_EXTENSIONS)
        found = self._match(r"<\s*([^>]*?)\s*>", "the name of an extension in < and >")
        if found[1] not in _EXTENSIONS:
            raise TypeNameError(f"the extension {found[1]!r} is not one of {allowed}")
        return _EXTENSIONS[found[1]]()

    def _field(self, name: str, *, is_named: bool) -> pa.Field:
        found = self._optional(r"([^:<>]*?)\s*:(?!:)") if is_named else self._optional(r"([^:<>\[\](),]*?)\s*:(?!:)")
        if found:
            name = found[1]
        elif is_named:
            raise self._expected("a name, a colon and a type")
        kind = self._type()
        is_nullable = self._optional(r"not\s+null") is None
        if pa.types.is_null(kind) and not is_nullable:
            raise TypeNameError(f"the field {name!r} of nulls cannot be not null")
        return pa.field(name, kind, is_nullable)

    def _rest(self) -> str:
        return self._text[self._at :]

    def _skip(self) -> int:
        self._at += len(self._rest()) - len(self._rest().lstrip())
        return self._at

    def _optional(self, pattern: str) -> re.Match[str] | None:
        match = re.compile(pattern).match(self._text, self._skip())
        if match:
            self._at = match.end()
        return match

    def _match(self, pattern: str, expected: str) -> re.Match[str]:
        match = self._optional(pattern)
        if match is None:
            raise self._expected(expected)
        return match

    def _mark(self, mark: str, expected: str = "") -> None:
        self._match(re.escape(mark), expected or repr(mark))

    def _expected(self, what: str) -> TypeNameError:
        found = self._rest()[:20] or "the end"
        return TypeNameError(f"at position {self._at + 1} there is {found!r} where there must be {what}")


_MAKERS: dict[str, Callable[[_Parser], pa.DataType]] = {
    "timestamp": _Parser.timestamp,
    "time32": lambda parser: parser.unit(pa.time32, "s|ms"),
    "time64": lambda parser: parser.unit(pa.time64, "us|ns"),
    "duration": lambda parser: parser.unit(pa.duration, "s|ms|us|ns"),
    "decimal32": lambda parser: parser.decimal(pa.decimal32),
    "decimal64": lambda parser: parser.decimal(pa.decimal64),
    "decimal128": lambda parser: parser.decimal(pa.decimal128),
    "decimal256": lambda parser: parser.decimal(pa.decimal256),
    "fixed_size_binary": lambda parser: pa.binary(parser.size()),
    "list": lambda parser: parser.list(pa.list_),
    "large_list": lambda parser: parser.list(pa.large_list),
    "list_view": lambda parser: parser.list(pa.list_view),
    "large_list_view": lambda parser: parser.list(pa.large_list_view),
    "fixed_size_list": lambda parser: parser.list(lambda field: pa.list_(field, parser.size())),
    "struct": _Parser.struct,
    "map": _Parser.map,
    "dictionary": _Parser.dictionary,
    "run_end_encoded": _Parser.run_end_encoded,
    "extension": _Parser.extension,
}
_EXTENSIONS: dict[str, Callable[[], pa.DataType]] = {
    "arrow.uuid": pa.uuid,
    "arrow.json": pa.json_,
    "arrow.bool8": pa.bool8,
}
_NAMES = ("bool", "int8 to int64", "uint8 to uint64", "float", "double", "string", "binary", "date32", *_MAKERS)
