"""Text columns: which types of a file can be read as text."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa

from distilbeam.transforms.errors import InputError

from .column_types import shown_type
from .formats.base import is_text_type
from .nested import find_path, hint
from .read_settings import ReadSettings

__all__ = ["check_text", "cure_of_csv", "warn_of_absent"]

_LOG = logging.getLogger(__name__)


def check_text(settings: ReadSettings, name: str, types: Mapping[pa.DataType, str], formats: Mapping[str, str]) -> None:
    """Checks that a text column is one in all files, before every row fails on it.

    Args:
        settings: what to read and how.
        name: the column.
        types: its types, each with a file that has it.
        formats: the formats of the files.

    Raises:
        InputError: it is something else in a file. Of JSON lines some rows may be, each of which becomes a reject.
    """
    texts = any(map(is_text_type, types))
    for kind, url in types.items():
        by_line = formats[url] == "jsonl"
        if is_text_type(kind) or pa.types.is_null(kind) or (texts and by_line):
            continue
        can_be = by_line or _can_be_text(kind)
        if can_be and name in settings.as_text:
            continue
        # The names inside of a document are not told.
        shown = str(kind).partition("<")[0] if by_line else shown_type(kind)
        told = hint(name, {name: [kind]}, tell=not by_line)
        cure = "convert it, or give it the type string with `types`" if can_be else "convert it"
        raise InputError(f"the text column {name!r} of {url!r} is {shown}, not a string; {cure}{told}")


def _can_be_text(kind: pa.DataType) -> bool:
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        return False
    return True


def cure_of_csv(formats: Collection[str], columns: int) -> str:
    """What to set where the first line of CSV files does not name the columns as it is read."""
    cures = []
    if "csv" in formats and columns == 1:
        cures.append("if another character than the comma stands between the fields, give it as `csv_delimiter`")
    if {"csv", "tsv"}.intersection(formats):
        cures.append("if the files have no header, name their columns with `columns`")
    return "".join(f"; {cure}" for cure in cures)


def warn_of_absent(
    settings: ReadSettings,
    schemas: Iterable[tuple[str, pa.Schema]],
    formats: Mapping[str, str],
    partitions: Collection[str] = (),
) -> None:
    """Warns, once for an input, of a file none of whose rows has a text, since it has no text column.

    Of JSON lines any row may lack a key, so nothing follows from a file that has none.

    Args:
        settings: what to read and how.
        schemas: the schemas of the files, each with the first file that has it.
        formats: the formats of the files.
        partitions: columns that the folders of files give.
    """
    if any(name in partitions for name in settings.text):
        return
    for url, schema in schemas:
        if any(name in schema.names or find_path(schema, name) for name in settings.text):
            continue
        if formats[url] != "jsonl":
            what = "is set aside" if settings.nulls == "reject" else "is kept without features"
            _LOG.warning(
                "%r, and each file with the same columns, has no column %s, so that every row of it %s as one without "
                "a text; leave the file out, or rename its column",
                url,
                " or ".join(map(repr, settings.text)),
                what,
            )
            return
