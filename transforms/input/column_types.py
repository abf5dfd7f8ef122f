"""Arrow types of columns: the one type in which all rows of an input, and all files of an output, agree."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

__all__ = [
    "VIEWS",
    "can_cast",
    "common_type",
    "holds",
    "mapped",
    "reads_as",
    "settled_type",
    "shown_type",
    "shown_types",
    "without_dictionaries",
]

VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
"""Views of texts, and the types that they are read as."""

_MAX_SHOWN = 200  # characters of a type that a message shows


def mapped(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type after a change to each type inside of it, and then to itself.

    Example:
        >>> import pyarrow as pa
        >>> str(mapped(pa.list_(pa.int8()), lambda kind: pa.int64() if kind == pa.int8() else kind))
        'list<item: int64>'
    """

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(mapped(field.type, change))

    if pa.types.is_struct(kind):
        kind = pa.struct([inner(field) for field in kind])
    elif pa.types.is_map(kind):
        kind = pa.map_(inner(kind.key_field), inner(kind.item_field), keys_sorted=kind.keys_sorted)
    elif pa.types.is_fixed_size_list(kind):
        kind = pa.list_(inner(kind.value_field), kind.list_size)
    elif pa.types.is_dictionary(kind):
        kind = pa.dictionary(kind.index_type, mapped(kind.value_type, change), kind.ordered)
    elif pa.types.is_run_end_encoded(kind):
        kind = pa.run_end_encoded(kind.run_end_type, mapped(kind.value_type, change))
    else:
        for is_kind, make in _LISTS:
            if is_kind(kind):
                kind = make(inner(kind.value_field))
    return change(kind)


def holds(kind: pa.DataType, is_sought: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type, or any type inside of it, is one that is sought."""
    found = []

    def look(inner: pa.DataType) -> pa.DataType:
        found.append(is_sought(inner))
        return inner

    mapped(kind, look)
    return any(found)


def settled_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is read, whatever its files say of how they hold the same values.

    Dictionaries have 32-bit indices: pandas and others choose the smallest type that tells the categories of one file
    apart, and all files together may have more, so that no reader opens the column as one. They are signed, since
    pandas reads no others. Views of texts and run-end encoded columns are plain, since Arrow cannot drop a row from
    them.

    Example:
        >>> import pyarrow as pa
        >>> str(settled_type(pa.list_(pa.dictionary(pa.int8(), pa.string_view()))))
        'list<item: dictionary<values=string, indices=int32, ordered=0>>'
    """
    return mapped(kind, _settled)


def shown_type(kind: pa.DataType, *, tell: bool = True) -> str:
    """A type for a message, of bounded length.

    Args:
        kind: the type.
        tell: whether the names of fields may be told; those that come from JSON lines are keys, which are data.

    Example:
        >>> import pyarrow as pa
        >>> shown_type(pa.list_(pa.struct({"a": pa.int8()})), tell=False)
        'list of struct'
    """
    name = str(kind) if tell or not holds(kind, pa.types.is_struct) else _by_kind(kind)
    return name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "..."


def shown_types(found: pa.DataType, kind: pa.DataType, *, tell: bool) -> tuple[str, str]:
    """Both types for a message: that of a file, whose names of fields may be told or not, and that of the plan.

    The type of the plan has names of other files, which may be JSON lines, so only those of this file are told.

    Example:
        >>> import pyarrow as pa
        >>> shown_types(pa.struct({"a": pa.int8()}), pa.struct({"a": pa.int8(), "key": pa.int8()}), tell=True)
        ('struct<a: int8>', 'struct')
    """
    return shown_type(found, tell=tell), shown_type(kind, tell=tell and _names(kind) <= _names(found))


def _names(kind: pa.DataType) -> set[str]:
    """The names of all fields of structs inside of a type."""
    names: set[str] = set()

    def look(inner: pa.DataType) -> pa.DataType:
        if pa.types.is_struct(inner):
            names.update(field.name for field in inner)
        return inner

    mapped(kind, look)
    return names


def _by_kind(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "struct"
    if pa.types.is_map(kind):
        return f"map of {_by_kind(kind.item_type)}"
    if pa.types.is_nested(kind) and kind.num_fields:
        return f"list of {_by_kind(kind.field(0).type)}"
    return str(kind).partition("<")[0]


def without_dictionaries(kind: pa.DataType) -> pa.DataType:
    """The type with the values themselves where it has dictionaries of them."""
    return mapped(kind, lambda inner: inner.value_type if pa.types.is_dictionary(inner) else inner)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The smallest type that can hold the values of both; single values may still not fit into it.

    It is wide enough for all that has the same meaning: units of time, precisions and scales of decimals, sizes of
    numbers and texts, fields that one struct lacks. Moments are the same in every time zone, so of two the zone is UTC.

    Raises:
        pyarrow.ArrowTypeError: there is none.

    Example:
        >>> import pyarrow as pa
        >>> str(common_type(pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("us", "Asia/Tokyo")))
        'timestamp[us, tz=UTC]'
    """
    one, other = settled_type(one), settled_type(other)
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        if pa.types.is_dictionary(one) and pa.types.is_dictionary(other) and one.ordered == other.ordered:
            return pa.dictionary(pa.int32(), common_type(one.value_type, other.value_type), one.ordered)
        return common_type(without_dictionaries(one), without_dictionaries(other))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _common_struct(one, other)
    if pa.types.is_map(one) and pa.types.is_map(other):
        return pa.map_(_common(one.key_field, other.key_field), _common(one.item_field, other.item_field))
    if _is_list(one) and _is_list(other):
        field = _common(one.value_field, other.value_field)
        if pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other) and one.list_size == other.list_size:
            return pa.list_(field, one.list_size)
        return (pa.large_list if any(map(pa.types.is_large_list, (one, other))) else pa.list_)(field)
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and (one.tz is None) == (other.tz is None):
        return pa.timestamp(max(one.unit, other.unit, key=_UNITS.index), one.tz if one.tz == other.tz else "UTC")
    for day, moment in ((one, other), (other, one)):
        if pa.types.is_date(day) and pa.types.is_timestamp(moment) and moment.tz is None:
            return moment
    if pa.types.is_decimal(one) or pa.types.is_decimal(other):
        return _common_decimal(one, other)
    schemas = [pa.schema([pa.field("", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def reads_as(found: pa.DataType, kind: pa.DataType) -> bool:
    """Whether values of a type found in a file mean the same as those of another, so that they can be read as it.

    Values that do not fit are another matter; but a narrower float would round almost every value, and a struct without
    one of the fields would drop them all.
    """
    found = settled_type(found)
    if found == kind or pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found) or pa.types.is_dictionary(kind):
        return reads_as(without_dictionaries(found), without_dictionaries(kind))
    if pa.types.is_struct(found) and pa.types.is_struct(kind):
        return all(kind.get_field_index(f.name) >= 0 and reads_as(f.type, kind.field(f.name).type) for f in found)
    if pa.types.is_map(found) and pa.types.is_map(kind):
        return reads_as(found.key_type, kind.key_type) and reads_as(found.item_type, kind.item_type)
    if _is_list(found) and _is_list(kind):
        if all(map(pa.types.is_fixed_size_list, (found, kind))) and found.list_size != kind.list_size:
            return False
        return reads_as(found.value_type, kind.value_type) and can_cast(found, kind)
    if pa.types.is_floating(found) and pa.types.is_floating(kind):
        return bool(found.bit_width <= kind.bit_width)
    try:
        common_type(found, kind)
    except pa.ArrowException:
        return False
    return can_cast(found, kind)


def can_cast(found: pa.DataType, kind: pa.DataType) -> bool:
    """Whether Arrow converts one type into another, and what comes out means the same.

    Clock times without a time zone are no moments, so they are read as UTC but as no other zone, and the other way
    round. Moments are no times of day, and a struct is none that lacks one of its fields. All that holds inside of
    other types, too.

    Example:
        >>> import pyarrow as pa
        >>> can_cast(pa.struct({"a": pa.int8(), "b": pa.int8()}), pa.struct({"a": pa.int64()}))
        False
    """
    if not _means_the_same(found, kind):
        return False
    try:
        pa.nulls(0, found).cast(kind)
    except pa.ArrowException:
        return False
    return True


def _means_the_same(found: pa.DataType, kind: pa.DataType) -> bool:
    """Whether nothing tells that values of one type mean something else in another, if Arrow converts them."""
    found, kind = without_dictionaries(found), without_dictionaries(kind)
    if pa.types.is_timestamp(found) and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        zones = {kind.tz if pa.types.is_timestamp(kind) else None, found.tz}
        return None not in zones or zones <= {None, "UTC", "+00:00"}
    if pa.types.is_timestamp(found):
        return not pa.types.is_time(kind)
    if pa.types.is_struct(found) and pa.types.is_struct(kind):
        return all(
            kind.get_field_index(f.name) >= 0 and _means_the_same(f.type, kind.field(f.name).type) for f in found
        )
    if pa.types.is_map(found) and pa.types.is_map(kind):
        return _means_the_same(found.key_type, kind.key_type) and _means_the_same(found.item_type, kind.item_type)
    if _is_list(found) and _is_list(kind):
        return _means_the_same(found.value_type, kind.value_type)
    return True


def _common(one: pa.Field, other: pa.Field) -> pa.Field:
    return pa.field(one.name, common_type(one.type, other.type), one.nullable or other.nullable)


def _common_struct(one: pa.StructType, other: pa.StructType) -> pa.StructType:
    both = [
        _common(field, other.field(field.name)) if other.get_field_index(field.name) >= 0 else field.with_nullable(True)
        for field in one
    ]
    return pa.struct([*both, *(field.with_nullable(True) for field in other if one.get_field_index(field.name) < 0)])


def _common_decimal(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The decimal that has the digits of both; a float has other digits than those it shows, so it is none."""
    kinds = []
    for kind in (one, other):
        if pa.types.is_integer(kind):
            digits = len(str(2 ** (kind.bit_width - pa.types.is_signed_integer(kind))))
            kinds.append((digits, 0, 0))
        elif pa.types.is_decimal(kind):
            kinds.append((kind.precision - kind.scale, kind.scale, kind.bit_width))
        else:
            raise pa.ArrowTypeError(f"{one} and {other} have no type in common")
    scale = max(kind[1] for kind in kinds)
    precision = scale + max(kind[0] for kind in kinds)
    for make, width, most in _DECIMALS:
        if width >= max(kind[2] for kind in kinds) and precision <= most:
            return make(precision, scale)
    raise pa.ArrowTypeError(f"{one} and {other} have together more digits than a decimal")


def _settled(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
    if pa.types.is_run_end_encoded(kind):
        return kind.value_type
    return VIEWS.get(kind, kind)


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


_UNITS = ("s", "ms", "us", "ns")
_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)
_DECIMALS = (
    (pa.decimal32, 32, 9),
    (pa.decimal64, 64, 18),
    (pa.decimal128, 128, 38),
    (pa.decimal256, 256, 76),
)
