"""Plans of the first rows of an input, which look no further than they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from distilbeam.transforms.errors import InputError

from . import planning
from .formats.base import reading
from .formats.kinds import CONTAINERS
from .formats.lines import BadLine
from .planning import list_inputs, numbered, read_schema
from .read_settings import ReadSettings
from .reading import _blocks, _documents, _header, _opened, _read_parquet
from .splits import Part, Split

__all__ = ["plan_splits"]


def plan_splits(settings: ReadSettings, *, apart: bool = False) -> list[Split]:
    """All splits of the input as ``planning.plan_splits`` has them, or those of its first rows if there is a limit.

    The files are counted in the order of their URLs, and bad rows count too. The columns are then those of the files
    that are read.

    Raises:
        InputError: as ``planning.plan_splits``.
    """
    if settings.limit is None:
        return planning.plan_splits(settings, apart=apart)
    infos = list_inputs(settings)
    some = 1
    while True:
        try:
            splits = planning.plan_splits(settings, apart=apart, infos=infos[:some])
        except InputError as error:  # those that are after it may be sound
            if settings.bad_files == "fail" or error.reason is None or some >= len(infos):
                raise
        else:
            first, left = _first(splits, settings, settings.limit)
            if not left or some >= len(infos):
                return numbered(first)
        some *= 4


def _first(splits: list[Split], settings: ReadSettings, left: int) -> tuple[list[Split], int]:
    """The splits of the first rows, and how many rows they lack."""
    first: list[Split] = []
    for split in splits:
        parts: list[Part] = []
        for part in split.parts:
            rows = _count_rows(part, read_schema(split), settings, left + 1)
            parts.append(_cut(part, left) if rows > left else part)
            left -= min(rows, left)
            if not left:
                break
        first.append(replace(split, parts=tuple(parts)))
        if not left:
            break
    return first, left


def _count_rows(part: Part, schema: pa.Schema, settings: ReadSettings, most: int) -> int:
    """The rows of a part, good and bad, counted up to ``most``; one stands for what of a damaged file is lost."""
    count = 0
    try:
        for count in _counts(part, schema, settings):
            if count >= most:
                break
    except InputError as error:
        if settings.bad_files == "fail" or error.reason is None:
            return most  # reading ends here, and tells of it
        count += 1
    return min(count, most)


def _counts(part: Part, schema: pa.Schema, settings: ReadSettings) -> Iterator[int]:
    """The rows so far, parsed only where the format asks for it.

    Raises:
        InputError: the file cannot be read.
    """
    if part.format in CONTAINERS:
        if part.stop is not None:
            yield part.stop - part.start
            return
        for chunk in _read_parquet(part, schema, settings):
            yield chunk.seen
        return
    names, count = _header(part, settings), 0
    with reading(part.source), _opened(part, settings) as stream:
        for block in _blocks(part, stream, settings):
            count += 1 if isinstance(block, BadLine) else len(_documents(part, block, names, settings))
            yield count


def _cut(part: Part, rows: int) -> Part:
    if part.format in CONTAINERS and part.stop is not None:
        return replace(part, stop=part.start + rows)
    return replace(part, limit=rows)
