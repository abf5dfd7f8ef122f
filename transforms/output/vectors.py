"""Arrow types of vectors in the files of an output: one for a column over all shards, whatever rows a shard has.

Parquet stores fixed-size lists and lists alike, and what a reader makes of them is noted in the footer. pyarrow refuses
to read a fixed-size list that is null, since Parquet keeps no elements of it, so a column that may hold one is a list.
Elements are never null and declared so, for some engines (ClickHouse's distances) take no others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from distilbeam.transforms.input.column_types import mapped

__all__ = ["VECTOR_TYPES", "stored_schema", "vector_columns"]

VECTOR_TYPES = ("fixed", "list")
"""Allowed values of ``vector_type``: fixed-size lists where no vector may be null, or lists."""


def vector_columns(models: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Names of the columns with the vectors of all stages.

    Args:
        models: identity of each stage, as ``Provenance.models``.
    """
    settings = [model.get("settings") or {} for model in models]
    return frozenset(
        (each.get("prefix") or "") + "embedding" for each in settings if "embedding" in (each.get("features") or ())
    )


def stored_schema(schema: pa.Schema, vectors: Collection[str], vector_type: str) -> pa.Schema:
    """Schema of the files for batches of a schema; it follows from types and settings alone, never from rows.

    Args:
        schema: that of the batches. A column of vectors that is declared not null becomes a fixed-size list.
        vectors: names of the columns with vectors.
        vector_type: one of ``VECTOR_TYPES``; ``list`` turns all fixed-size lists into lists, those of the input too.

    Examples:
        >>> vector = pa.field("embedding", pa.list_(pa.float32(), 2), nullable=False)
        >>> stored_schema(pa.schema([vector]), ["embedding"], "fixed").field(0).type
        FixedSizeListType(fixed_size_list<element: float not null>[2])
        >>> stored_schema(pa.schema([vector.with_nullable(True)]), ["embedding"], "fixed").field(0).type
        ListType(list<element: float not null>)
    """
    fields = []
    for field in schema:
        if field.name in vectors and pa.types.is_fixed_size_list(field.type):
            element = pa.field("element", field.type.value_type, nullable=False)
            length = -1 if field.nullable or vector_type == "list" else field.type.list_size
            # The column itself stays nullable: tables that grow by such files take other columns no better.
            field = pa.field(field.name, pa.list_(element, length), metadata=field.metadata)
        elif vector_type == "list":
            field = field.with_type(mapped(field.type, _unsized))
        fields.append(field)
    return pa.schema(fields, schema.metadata)


def _unsized(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_field) if pa.types.is_fixed_size_list(kind) else kind
