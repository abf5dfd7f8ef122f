"""Thrift's compact protocol, just enough to take the footer and the page headers of Parquet apart and lie in them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, STRUCT = range(1, 13)
I32, I64, BINARY = _I32, _I64, _BINARY


@dataclass
class Sequence:
    """A list: the type of its values, and the values. ``claimed`` is the length that its header tells."""

    kind: int
    values: list[Any]
    claimed: int | None = None


Fields = dict[int, list[Any]]
"""A struct: number -> [type, value]."""


def varint(number: int) -> bytes:
    """An unsigned number."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _zigzag(number: int) -> bytes:
    return varint((number << 1) ^ (number >> 63) if number >= 0 else ((-number) << 1) - 1)


def encode(fields: Fields) -> bytes:
    """The bytes of a struct."""
    out, last = b"", 0
    for number, (kind, value) in sorted(fields.items()):
        step = number - last
        head = kind if kind not in (_TRUE, _FALSE) else _TRUE if value else _FALSE
        out += bytes([step << 4 | head]) if 0 < step < 16 else bytes([head]) + _zigzag(number)
        out += b"" if kind in (_TRUE, _FALSE) else _encode(kind, value)
        last = number
    return out + b"\0"


def _encode(kind: int, value: Any) -> bytes:
    if kind == STRUCT:
        return encode(value)
    if kind in (_I16, _I32, _I64):
        return _zigzag(value)
    if kind == _BINARY:
        return varint(len(value)) + bytes(value)
    if kind == _DOUBLE:
        return struct.pack("<d", value)
    if kind == _BYTE:
        return bytes([value])
    if kind in (_TRUE, _FALSE):
        return bytes([_TRUE if value else _FALSE])
    size = len(value.values) if value.claimed is None else value.claimed
    head = bytes([size << 4 | value.kind]) if size < 15 else bytes([0xF0 | value.kind]) + varint(size)
    return head + b"".join(_encode(value.kind, item) for item in value.values)


class _Decoder:
    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def zigzag(self) -> int:
        number = self.varint()
        return number >> 1 ^ -(number & 1)

    def fields(self) -> Fields:
        found: Fields = {}
        last = 0
        while (head := self.data[self.at]) != 0:
            self.at += 1
            kind, step = head & 15, head >> 4
            last = last + step if step else self.zigzag()
            found[last] = [kind, kind == _TRUE] if kind in (_TRUE, _FALSE) else [kind, self.value(kind)]
        self.at += 1
        return found

    def value(self, kind: int) -> Any:
        if kind == STRUCT:
            return self.fields()
        if kind in (_I16, _I32, _I64):
            return self.zigzag()
        if kind in (_BYTE, _TRUE, _FALSE):
            self.at += 1
            return self.data[self.at - 1]
        if kind == _DOUBLE:
            self.at += 8
            return struct.unpack_from("<d", self.data, self.at - 8)[0]
        if kind == _BINARY:
            size = self.varint()
            self.at += size
            return self.data[self.at - size : self.at]
        head = self.data[self.at]
        self.at += 1
        size = head >> 4 if head >> 4 != 15 else self.varint()
        return Sequence(head & 15, [self.value(head & 15) for _ in range(size)])


def decode(data: bytes, at: int = 0) -> tuple[Fields, int]:
    """The struct at a position, and the position after it."""
    decoder = _Decoder(data, at)
    return decoder.fields(), decoder.at


def with_footer(data: bytes, change: Callable[[Fields], None]) -> bytes:
    """A Parquet file with another footer."""
    size = int.from_bytes(data[-8:-4], "little")
    footer, _ = decode(data, len(data) - 8 - size)
    change(footer)
    encoded = encode(footer)
    return data[: -8 - size] + encoded + len(encoded).to_bytes(4, "little") + b"PAR1"


def groups(footer: Fields) -> list[Fields]:
    """The row groups in a footer."""
    return list(footer[4][1].values)


def chunk(footer: Fields, group: int = 0, column: int = 0) -> Fields:
    """The metadata of a column chunk."""
    return groups(footer)[group][1][1].values[column][3][1]  # type: ignore[no-any-return]


def with_page(data: bytes, change: Callable[[Fields, bytes], bytes], *, dictionary: bool = False) -> bytes:
    """A Parquet file of one column and one row group with another data (or dictionary) page.

    ``change`` gets the header of the page, which it may change, and its bytes, and gives others.
    """
    size = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - size
    footer, _ = decode(data, end)
    meta = chunk(footer)
    at = meta[11][1] if dictionary else meta[9][1]
    header, start = decode(data, at)
    stop = start + header[3][1]
    body = change(header, data[start:stop])
    page = encode(header) + body
    moved = len(page) - (stop - at)
    if dictionary:
        meta[9][1] += moved
    meta[7][1] += moved
    new = data[:at] + page + data[stop:end]
    encoded = encode(footer)
    return new + encoded + len(encoded).to_bytes(4, "little") + b"PAR1"
