"""Plans of the first rows of an input, which look no further than they read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from distilbeam.transforms.errors import InputError

from . import planning
from .planning import list_inputs, numbered
from .read_settings import ReadSettings
from .reading import count_rows
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
        splits = planning.plan_splits(settings, apart=apart, infos=infos[:some])
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
            rows = left
            with suppress(InputError):  # reading tells of it
                rows = count_rows(part, settings, left + 1)
            parts.append(_cut(part, left) if rows > left else part)
            left -= min(rows, left)
            if not left:
                break
        first.append(replace(split, parts=tuple(parts)))
        if not left:
            break
    return first, left


def _cut(part: Part, rows: int) -> Part:
    if part.format == "parquet" and part.stop is not None:
        return replace(part, stop=part.start + rows)
    return replace(part, limit=rows)
