"""Values of one type in another: as they are, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilbeam.transforms.halving import find_failing

from .column_types import holds, mapped, settled_type, without_dictionaries

__all__ = ["MOST_DIGITS", "fit", "fitted", "has_infinity", "leaves", "loses_digits"]

MOST_DIGITS = 309
"""Of an integer that a double holds."""

_EXACT_DIGITS = {16: 3, 32: 7, 64: 15}  # of an integer, by the bits of a float that holds all integers of so many


def fit(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """The column in a type, with nulls for the values that it cannot hold, and the indices of these.

    Raises:
        pyarrow.ArrowNotImplementedError: Arrow does not convert the one type into the other.

    Example:
        >>> import pyarrow as pa
        >>> values, lost = fit(pa.array([1.0, 1.5]), pa.int64())
        >>> values.to_pylist(), lost
        ([1, None], [1])
    """
    try:
        return fitted(column, kind), []
    except pa.ArrowInvalid:
        pass

    if (settled := settled_type(column.type)) != column.type:
        column = column.cast(settled)  # of which rows can be taken

    def fails(rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bool | None:
        try:
            fitted(column.take(pa.array(rows)), kind)  # not a slice, whose lists have the values of all
        except pa.ArrowInvalid:
            return True
        return None

    lost = sorted(find_failing(np.arange(len(column)), fails, known=True))
    good = np.setdiff1d(np.arange(len(column)), lost)
    places = np.searchsorted(good, np.arange(len(column)))
    absent = np.isin(np.arange(len(column)), lost)
    return fitted(column.take(pa.array(good)), kind).take(pa.array(places, pa.int64(), mask=absent)), lost


def fitted(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column in a type that holds its values.

    What Arrow converts without a word though it is not the same any more is looked at: times of day that a date has
    not and days that a time of day has not, digits that a decimal or a float has not, numbers beyond the range of a
    float, numbers that are no truth. Only the precision of floats is given up where a smaller float is asked for, and
    fields are where a struct lacks them: see ``can_cast``.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit.
    """
    if column.type == kind:
        return column
    result = _converted(column, kind)
    if holds(kind, pa.types.is_null):
        result.validate(full=True)  # Arrow's conversion of nulls inside of lists to nulls loses all but the first
    for before, after in leaves(column, result):
        if without_dictionaries(before.type) == without_dictionaries(after.type):
            continue
        before, after = _decoded(before), _decoded(after)
        if after.null_count > before.null_count:
            raise pa.ArrowInvalid("a value is null after the conversion")
        if pa.types.is_timestamp(before.type) and pa.types.is_time(after.type) and not _began(after, before):
            raise pa.ArrowInvalid("a moment has a day, which a time of day has not")
        if _may_lose(before.type, after.type):
            if pa.types.is_decimal(before.type) or pa.types.is_decimal(after.type):
                after = after.cast(pa.string())  # a float is the decimal as which it is written
            if not after.cast(before.type, safe=False).equals(before):
                raise pa.ArrowInvalid("a value is another one after the conversion")
        if pa.types.is_floating(after.type) and has_infinity(after):
            if pa.types.is_floating(before.type):
                said = pc.is_inf(before.cast(pa.float64()))
            else:
                said = pc.match_substring_regex(before.cast(pa.string()), "(?i)^[+-]?inf(inity)?$")
            if said != pc.is_inf(after.cast(pa.float64())):
                raise pa.ArrowInvalid("a value is beyond the range of the type")
        if _is_text(before.type) and pa.types.is_floating(after.type):
            bits = after.type.bit_width
            texts = before.cast(pa.string())
            long = pc.match_substring_regex(texts, rf"^[+-]?\d{{{_EXACT_DIGITS[bits] + 1},}}$")
            if any(loses_digits(digits.lstrip("+"), bits) for digits in texts.filter(long).to_pylist()):
                raise pa.ArrowInvalid("an integer has more digits than the float")
    return result


def has_infinity(column: pa.Array) -> bool:
    """Whether a float in a column, nested ones too, is infinite.

    Example:
        >>> import pyarrow as pa
        >>> has_infinity(pa.array([[1.0], [float("inf")]]))
        True
    """
    return any(
        bool(pc.any(pc.is_inf(leaf.cast(pa.float64())), min_count=0).as_py())
        for leaf, _ in leaves(column, column)
        if pa.types.is_floating(leaf.type)
    )


def loses_digits(digits: str, bits: int = 64) -> bool:
    """Whether an integer is neither what a float of so many bits holds nor how that float is written in short.

    Example:
        >>> loses_digits("9007199254740993"), loses_digits("10000000000000000000000")
        (True, False)
        >>> loses_digits("16777217", 32), loses_digits("10000000000000000000000", 32)
        (True, False)
    """
    if len(digits.lstrip("-")) > MOST_DIGITS:
        return True
    with np.errstate(over="ignore"):
        value = np.dtype(f"f{bits // 8}").type(float(digits))
    if np.isinf(value):
        return True
    return int(digits) != int(value) and Decimal(digits) != Decimal(str(value))


def _converted(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(column.type) and pa.types.is_time(kind):  # which Arrow only reads behind a date
        moments = pc.binary_join_element_wise("1970-01-01T", column, "")
        return moments.cast(pa.timestamp(kind.unit)).cast(kind)
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
        return fitted(column, kind.value_type).dictionary_encode().cast(kind)
    if holds(column.type, pa.types.is_decimal) and holds(kind, pa.types.is_floating):
        # Arrow's own conversion makes 3.3000000000000003 of 3.30.
        column = column.cast(mapped(column.type, lambda inner: pa.string() if pa.types.is_decimal(inner) else inner))
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        if not (holds(column.type, pa.types.is_integer) and holds(kind, pa.types.is_decimal)):
            raise
        # Arrow asks whether the decimal holds all values of the integer's type, not whether it holds those there are.
        digits = mapped(column.type, lambda inner: pa.decimal128(20, 0) if pa.types.is_integer(inner) else inner)
        return column.cast(digits).cast(kind)


def _may_lose(before: pa.DataType, after: pa.DataType) -> bool:
    """Whether Arrow's safe conversion lets values change."""
    return bool(
        (pa.types.is_timestamp(before) and pa.types.is_date(after))
        or ((pa.types.is_integer(before) or pa.types.is_floating(before)) and pa.types.is_boolean(after))
        or (pa.types.is_integer(before) and pa.types.is_float16(after))
        or (pa.types.is_floating(before) and pa.types.is_decimal(after))
        or (pa.types.is_decimal(before) and pa.types.is_floating(after))
    )


def _decoded(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _began(times: pa.Array, before: pa.Array) -> bool:
    """Whether moments are times of the day with which the count of moments begins, as which some writers store them."""
    counts = times.cast(pa.int32() if pa.types.is_time32(times.type) else pa.int64()).cast(pa.int64())
    plain = pa.timestamp(before.type.unit)
    return bool(counts.cast(pa.timestamp(times.type.unit)).cast(plain).equals(before.cast(plain)))


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def leaves(before: pa.Array, after: pa.Array) -> Iterator[tuple[pa.Array, pa.Array]]:
    """The values inside of nested arrays, each with what became of it."""
    if pa.types.is_struct(before.type) and pa.types.is_struct(after.type):
        parts = dict(zip((field.name for field in after.type), after.flatten(), strict=True))
        for field, part in zip(before.type, before.flatten(), strict=True):
            if field.name in parts:
                yield from leaves(part, parts[field.name])
    elif pa.types.is_nested(before.type) and pa.types.is_nested(after.type):
        yield from leaves(*(pc.list_flatten(_without_map(array)) for array in (before, after)))
    else:
        yield before, after


def _without_map(array: pa.Array) -> pa.Array:
    kind = array.type
    return array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))) if pa.types.is_map(kind) else array
