"""Arrow types of columns: what a type becomes so that all rows of an input, and all files of an output, agree in it."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

__all__ = ["holds", "mapped", "with_wide_categories", "without_dictionaries"]


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


def with_wide_categories(kind: pa.DataType) -> pa.DataType:
    """The type with 32-bit indices in all of its dictionaries, however many categories one file has.

    pandas and others choose the smallest index type that holds the categories of one file; all files together may have
    more, and then no reader opens the column as one. Signed, since pandas reads no unsigned indices.

    Example:
        >>> import pyarrow as pa
        >>> str(with_wide_categories(pa.list_(pa.dictionary(pa.int8(), pa.string()))))
        'list<item: dictionary<values=string, indices=int32, ordered=0>>'
    """
    return mapped(kind, _widened)


def without_dictionaries(kind: pa.DataType) -> pa.DataType:
    """The type with the values themselves where it has dictionaries of them."""
    return mapped(kind, lambda inner: inner.value_type if pa.types.is_dictionary(inner) else inner)


def _widened(kind: pa.DataType) -> pa.DataType:
    return pa.dictionary(pa.int32(), kind.value_type, kind.ordered) if pa.types.is_dictionary(kind) else kind


_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)
