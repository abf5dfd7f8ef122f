"""What every file format has in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa

from distilbeam.transforms.discretion import cause
from distilbeam.transforms.errors import DistilbeamError, InputError
from distilbeam.transforms.input.column_types import common_type
from distilbeam.transforms.provenance import Reject

__all__ = [
    "MAX_COLUMNS",
    "Chunk",
    "Unreadable",
    "count_leaves",
    "decode_text",
    "is_text_type",
    "reading",
    "unify",
]

MAX_COLUMNS = 10_000
"""Of CSV, TSV and JSON lines; each column costs memory in each batch, however few bytes it takes in the file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a part, in order.

    Attributes:
        batch: the good rows, with those of the plan's columns that lie in the file.
        rows: int64 array, the position of each good row.
        rejects: the bad rows between the previous chunk and the end of this one.
        seen: rows read so far from the part, good and bad.
        lines: physical lines, or rows where rows are counted, read so far from the part.
        position: bytes of the file that were read for these rows and all before them, where it is a file of lines.
        lost: rows that a damage has taken beside the rejects, about; None where nobody knows.
    """

    batch: pa.RecordBatch
    rows: pa.Array
    rejects: tuple[Reject, ...]
    seen: int
    lines: int
    position: int = 0
    lost: int | None = 0


class Unreadable(Exception):  # noqa: N818 - it never leaves ``reading``
    """What is wrong with a whole file, in a sentence without document text; ``reading`` names the file."""


def is_text_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a text column: strings or binary, also in a dictionary."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def decode_text(column: pa.Array) -> pa.Array:
    """A text column as binary, without dictionary or view; its bytes are still to be checked."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if str(column.type) in ("string", "string_view"):
        column = column.cast(pa.string()).view(pa.binary())
    elif str(column.type) == "large_string":
        column = column.view(pa.large_binary())
    return column.cast(pa.binary())


def count_leaves(kind: pa.DataType | pa.Schema) -> int:
    """The columns that a type or schema has once structs and lists are taken apart."""
    if isinstance(kind, pa.Schema) or pa.types.is_struct(kind):
        return sum(count_leaves(field.type) for field in kind)
    return count_leaves(kind.value_type) if pa.types.is_list(kind) else 1


def unify(fields: Sequence[pa.Field]) -> pa.Field:
    """One nullable field that all of these fit into.

    Raises:
        pyarrow.ArrowTypeError: there is none.
    """
    return fields[0].with_type(reduce(common_type, (field.type for field in fields))).with_nullable(True)


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns what a driver, a parser or we raise about a whole file into an InputError that names it."""
    try:
        yield
    except (DistilbeamError, GeneratorExit):
        raise
    except Unreadable as error:
        raise _at_fault(url, str(error)) from None
    except (OSError, EOFError) as error:
        # Unpacking fails with a bare OSError; what a disk or a store raises has a number or a class of its own.
        if isinstance(error, EOFError) or (type(error) is OSError and error.errno is None):
            raise _at_fault(url, f"{type(error).__name__}: {error}") from error
        raise InputError(f"cannot read {url!r}: {cause(error)}") from error
    except pa.ArrowException as error:
        # Arrow may quote what it read, so its message stays out.
        reason = f"it is damaged, or Arrow cannot read what it holds ({type(error).__name__})"
        raise _at_fault(url, reason) from None


def _at_fault(url: str, reason: str) -> InputError:
    error = InputError(f"cannot read {url!r}: {reason}")
    error.reason = reason
    return error
