"""Record batches as JSON Lines, a column at a time and without Python dicts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from distilbeam.transforms.errors import OutputError

__all__ = ["to_jsonl"]


def to_jsonl(batch: pa.RecordBatch | pa.Table) -> bytes:
    """One JSON object a line, in UTF-8.

    Numbers read back as they were, in the shortest form; non-finite floats become null. Timestamps, dates, times and
    decimals become text (timestamps in ISO 8601, with ``Z`` where they have a time zone), durations whole numbers of
    their unit, binary base64, maps objects.

    Raises:
        OutputError: a column is of a type that JSON has nothing for.
        ValueError: a year has not four digits, or a time is none of a day.
        UnicodeDecodeError: a text is no UTF-8.
    """
    if not batch.num_rows:
        return b""
    table = pa.table(batch) if isinstance(batch, pa.RecordBatch) else batch
    columns = [_column(column) for column in table.columns]
    row = "{" + ",".join(f"{_quote(name).replace('%', '%%')}:%s" for name in table.column_names) + "}\n"
    if not columns:
        return b"{}\n" * table.num_rows
    return "".join([row % values for values in zip(*columns, strict=True)]).encode()


_quote: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode


def _column(column: pa.ChunkedArray) -> list[str]:
    return [text for chunk in column.chunks for text in _texts(chunk)]


def _texts(array: pa.Array) -> list[str]:
    """The JSON text of every value."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _texts(array.storage)
    if pa.types.is_dictionary(kind):
        return _texts(array.dictionary_decode())
    if pa.types.is_floating(kind):
        if kind == pa.float16():
            array = array.cast(pa.float32())
        return _cast(pc.if_else(pc.is_finite(array), array, None))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_duration(kind):
        return _cast(array)
    if pa.types.is_decimal(kind):
        return _strings(array.cast(pa.string()))
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        _check_times(array)
        return _strings(array.cast(pa.string()))
    if pa.types.is_timestamp(kind):
        _check_times(array)
        utc = array.cast(pa.timestamp(kind.unit, "UTC")) if kind.tz else array
        return _strings(pc.replace_substring(utc.cast(pa.string()), " ", "T"))
    if _is_text(kind):
        return _strings(array)
    if _is_binary(kind):
        return _nullable(array, (f'"{base64.b64encode(value.as_py()).decode()}"' for value in array.drop_null()))
    if pa.types.is_map(kind):
        pairs = array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        keys, items = (_texts(member) for member in pc.list_flatten(pairs).flatten())
        names = keys if _is_text(kind.key_type) else [_quote(key.strip('"')) for key in keys]
        texts = [f"{name}:{item}" for name, item in zip(names, items, strict=True)]
        return _join(pc.list_value_length(pairs), texts, "{", "}")
    if pa.types.is_struct(kind):
        if not kind.num_fields:
            return _nullable(array, iter(["{}"] * (len(array) - array.null_count)))
        members = [_texts(member) for member in array.flatten()]
        names = [_quote(kind.field(index).name) for index in range(kind.num_fields)]
        rows = (
            "{" + ",".join(f"{name}:{value}" for name, value in zip(names, values, strict=True)) + "}"
            for values in zip(*members, strict=True)
        )
        return [row if valid else "null" for row, valid in zip(rows, array.is_valid().to_pylist(), strict=True)]
    if pa.types.is_null(kind):
        return ["null"] * len(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _join(pc.list_value_length(array), _texts(pc.list_flatten(array)), "[", "]")
    try:
        return _strings(array.cast(pa.string()))
    except pa.ArrowNotImplementedError:
        raise OutputError(
            f"JSON has nothing for a column of type {kind}; leave it out with `keep`, or write Parquet"
        ) from None


_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400
_YEARS = (-62_135_596_800, 253_402_300_800)  # seconds of the years 1 to 9999


def _check_times(array: pa.Array) -> None:
    """Refuses what Arrow would write as something that no one can read."""
    kind = array.type
    if pa.types.is_time(kind):
        first, end = 0, _DAY * _UNITS[kind.unit]
    elif pa.types.is_date32(kind):
        first, end = (seconds // _DAY for seconds in _YEARS)
    else:
        unit = _UNITS["ms" if pa.types.is_date64(kind) else kind.unit]
        first, end = (seconds * unit for seconds in _YEARS)
    found = pc.min_max(array.view(pa.int32() if kind.bit_width == 32 else pa.int64())).as_py()
    if found["min"] is not None and not (first <= found["min"] and found["max"] < end):
        raise ValueError("a time is out of range")


def _cast(array: pa.Array) -> list[str]:
    return pc.fill_null(array.cast(pa.string()), "null").to_pylist()


def _strings(array: pa.Array) -> list[str]:
    return ["null" if value is None else _quote(value) for value in array.to_pylist()]


def _nullable(array: pa.Array, texts: Iterator[str]) -> list[str]:
    return [next(texts) if valid else "null" for valid in array.is_valid().to_pylist()]


def _join(lengths: pa.Array, texts: list[str], start: str, stop: str) -> list[str]:
    """Lists from the texts of their items; null lists have none."""
    joined = []
    position = 0
    for length in lengths.to_pylist():
        if length is None:
            joined.append("null")
        else:
            joined.append(start + ",".join(texts[position : position + length]) + stop)
            position += length
    return joined


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or kind == pa.binary_view()
    )
