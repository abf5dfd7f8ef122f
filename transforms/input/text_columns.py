"""Text columns: which types of a file can be read as text."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from distilbeam.transforms.errors import InputError

from .formats.base import is_text_type
from .formats.kinds import detect_file
from .nested import hint
from .read_settings import ReadSettings

__all__ = ["check_text"]


def check_text(settings: ReadSettings, name: str, types: Mapping[pa.DataType, str]) -> None:
    """Checks that a text column is one in all files, before every row fails on it.

    Args:
        settings: what to read and how.
        name: the column.
        types: its types, each with a file that has it.

    Raises:
        InputError: it is something else in a file. Of JSON lines some rows may be, each of which becomes a reject.
    """
    texts = any(map(is_text_type, types))
    for kind, url in types.items():
        by_line = detect_file(url, settings.format)[0] == "jsonl"
        if is_text_type(kind) or pa.types.is_null(kind) or (texts and by_line):
            continue
        can_be = by_line or _can_be_text(kind)
        if can_be and name in settings.as_text:
            continue
        # The names inside of a document are not told.
        shown = str(kind).partition("<")[0] if by_line else str(kind)
        told = hint(name, {name: [kind]}, tell=not by_line)
        cure = "convert it, or give it the type string with `types`" if can_be else "convert it"
        raise InputError(f"the text column {name!r} of {url!r} is {shown}, not a string; {cure}{told}")


def _can_be_text(kind: pa.DataType) -> bool:
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        return False
    return True
