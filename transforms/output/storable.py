"""Columns of every Arrow type, in types that every reader of the written files takes."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distilbeam.transforms.errors import OutputError
from distilbeam.transforms.input.column_types import VIEWS, mapped, shown_type, without_dictionaries

__all__ = ["check_parquet", "storable_batch", "storable_schema"]


def storable_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with types that Arrow can encode, for the same values.

    Dictionaries of texts have 32-bit indices, as a file's index type must hold the categories of all files that are
    read with it; dictionaries of anything else, which Parquet has not, and run-end encoded columns are written out.
    Lists of a fixed size inside of other columns are plain lists, since Arrow cannot read them back where one is null.

    Example:
        >>> import pyarrow as pa
        >>> str(storable_schema(pa.schema({"shop": pa.dictionary(pa.int8(), pa.string())})))
        'shop: dictionary<values=string, indices=int32, ordered=0>'
    """
    return pa.schema([field.with_type(_in_file(field.type)) for field in schema], schema.metadata)


def storable_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the types of its ``storable_schema``.

    Raises:
        OutputError: Arrow does not convert a column.
    """
    if batch.schema.types == schema.types and not any(
        dictionary.null_count for column in batch.columns for dictionary in _dictionaries(column)
    ):
        return batch
    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        try:
            columns.append(_stored(column, field.type))
        except pa.ArrowException:
            raise OutputError(
                f"Arrow cannot store column {field.name!r} of type {shown_type(column.type, tell=False)} as "
                f"{shown_type(field.type, tell=False)}; leave it out with `keep`, or give it another type with `types`"
            ) from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def check_parquet(schema: pa.Schema) -> None:
    """Raises OutputError for the first column of a type that Parquet does not have."""
    if _is_parquet(schema):
        return
    for field in schema:
        if not _is_parquet(pa.schema([field])):
            raise OutputError(
                f"Parquet has nothing for column {field.name!r} of type {shown_type(field.type, tell=False)}; leave it "
                "out with `keep`, or give it another type with `types`"
            )


def _is_parquet(schema: pa.Schema) -> bool:
    try:
        pq.ParquetWriter(pa.MockOutputStream(), schema).close()
    except (pa.ArrowException, OSError):
        return False
    return True


def _in_file(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType) and pa.types.is_fixed_size_list(kind.storage_type):
        kind = kind.storage_type
    if pa.types.is_fixed_size_list(kind) and kind.list_size:
        return pa.list_(kind.value_field.with_type(mapped(kind.value_type, _storable)), kind.list_size)
    return mapped(kind, _storable)


def _storable(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field)
    if pa.types.is_run_end_encoded(kind):
        return kind.value_type
    if pa.types.is_decimal(kind) and kind.scale < 0:
        make = pa.decimal256 if kind.precision - kind.scale > 38 else pa.decimal128
        return make(kind.precision - kind.scale, 0)
    if not pa.types.is_dictionary(kind):
        return kind
    value = VIEWS.get(kind.value_type, kind.value_type)
    return pa.dictionary(pa.int32(), value, kind.ordered) if _is_text(value) else value


def _stored(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_run_end_encoded(array.type):
        return _stored(pc.run_end_decode(array), kind)
    if pa.types.is_dictionary(array.type) and array.type.value_type in VIEWS:
        values = array.dictionary.cast(VIEWS[array.type.value_type])  # Arrow takes nothing from views
        array = pa.DictionaryArray.from_arrays(array.indices, values, ordered=array.type.ordered)
    if any(dictionary.null_count for dictionary in _dictionaries(array)):
        array = array.cast(without_dictionaries(kind))  # Parquet has no null among the categories
    return array.cast(kind)


def _dictionaries(array: pa.Array) -> Iterator[pa.Array]:
    """The values of all dictionaries in an array."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        yield array.dictionary
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _dictionaries(array.field(index))
    elif pa.types.is_map(kind):
        yield from _dictionaries(array.keys)
        yield from _dictionaries(array.items)
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        yield from _dictionaries(array.values)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )
