"""Values that hive partitions, ``key=value`` folders in a path, give to the rows of a file."""

from __future__ import annotations

from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from .fitting import fitted

__all__ = ["HIVE_NULL", "filled", "partition_value", "partition_values"]

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""Value of a partition that stands for null."""


def partition_values(url: str) -> tuple[tuple[str, str], ...]:
    """Names and values of the partitions in a path, the values as they are written there.

    Example:
        >>> partition_values("/lake/lang=en/day=2024%2D05/part.parquet")
        (('lang', 'en'), ('day', '2024%2D05'))
    """
    folders = url.split("/")[:-1]
    pairs = (folder.partition("=") for folder in folders if folder.partition("=")[0] and "=" in folder)
    return tuple({unquote(key): value for key, _, value in pairs}.items())


def partition_value(value: str, kind: pa.DataType) -> pa.Scalar:
    """The value that a folder's name stands for, in the type of its column.

    Raises:
        pyarrow.ArrowException: the name is no value of this type.

    Example:
        >>> import pyarrow as pa
        >>> partition_value("2024%2D05%2D01", pa.date32()).as_py()
        datetime.date(2024, 5, 1)
    """
    text = pa.array([None if value == HIVE_NULL else unquote(value)], pa.string())
    return fitted(text, kind)[0]


def filled(column: pa.Array, value: pa.Scalar) -> pa.Array:
    """A column of a file with the value of its folder where it has none.

    Raises:
        ValueError: the column has another value than the folder.
    """
    if not value.is_valid:
        return column
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    expected = pa.repeat(value, 1).cast(plain.type)[0]
    if not pc.all(pc.equal(plain, expected), min_count=0).as_py():
        raise ValueError("the column has other values than the folder")
    return pa.repeat(value, len(column)) if column.null_count else column
