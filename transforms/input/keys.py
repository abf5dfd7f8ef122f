"""The columns of JSON lines: those that a sample shows, and those that only come up later or in other files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Protocol

import pyarrow as pa

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage.filesystems import FileInfo

from .formats.base import reading, unify
from .formats.jsonl import SAMPLE_BYTES, is_empty, settled_type
from .formats.salvage import open_trusted
from .formats.survey import merge, news, survey
from .read_settings import ReadSettings

__all__ = ["complete"]

SURVEY_BYTES = 4 << 30
"""Looked at in one plan, spread over all files; what only comes up elsewhere is noticed when it is read."""

_MAX_FILES = 10_000
_RANGE_BYTES = 64 << 20
_THREADS = 16
_COMPRESSION_RATIO = 4

Found = tuple[int, pa.Schema]


class _File(Protocol):
    """What is asked of an ``InputFile``."""

    @property
    def info(self) -> FileInfo: ...
    @property
    def format(self) -> str: ...
    @property
    def compression(self) -> str | None: ...
    @property
    def sampled(self) -> bool: ...
    @property
    def bad(self) -> bool: ...


def complete(settings: ReadSettings, files: Sequence[_File], samples: Sequence[Found]) -> list[Found]:
    """The schemas of samples, and of what else the files hold, each with the position of the first file that has it.

    In one sample the type of a value that comes first goes; samples that contradict each other are left to do so. What
    comes after them makes a column wider where all of its values fit.

    Args:
        settings: what to read and how.
        files: all files.
        samples: unsettled schemas, as ``jsonl.infer`` gives them, with positions of files.
    """
    known: dict[str, pa.Field] = {}
    for _, schema in samples:
        known = merge(known, schema)
    found = list(samples)
    asked = settings.asked
    given = {*settings.types, *settings.text}
    if asked is None or not given.issuperset(asked) or not known.keys() >= set(settings.text):
        tasks = list(_ranges(files, settings.limit))
        look = partial(_survey, settings, files, known)
        with ThreadPoolExecutor(_THREADS) as threads:
            for task, fields in zip(tasks, threads.map(look, tasks), strict=True):
                wider = merge(known, fields)
                new = list(news(known, wider).values())
                known = wider
                if new:
                    found.append((task[0], pa.schema(new)))
    return [(position, _settled(schema, known)) for position, schema in found]


def _survey(
    settings: ReadSettings, files: Sequence[_File], known: dict[str, pa.Field], task: tuple[int, int, int | None]
) -> list[pa.Field]:
    position, start, stop = task
    file = files[position]
    lenient = settings.bad_files == "reject"
    with (
        suppress(InputError),  # whatever is wrong is told when the file is read
        reading(file.info.url),
        open_trusted(
            file.info.url, "jsonl", file.compression, settings.decode_bytes, salvage=lenient, lenient=lenient
        ) as stream,
    ):
        found = survey(
            stream,
            start,
            stop,
            known,
            settings.text,
            max_line_bytes=settings.max_line_bytes,
            max_lines=settings.limit,
            texts=settings.as_text,
        )
        return list(found.values())
    return []


def _ranges(files: Sequence[_File], limit: int | None) -> Iterator[tuple[int, int, int | None]]:
    """Position, start and stop of what is to be looked at."""
    positions = [n for n, file in enumerate(files) if file.format == "jsonl" and not file.bad]
    count = min(len(positions), _MAX_FILES)
    positions = [positions[len(positions) * n // count] for n in range(count)]
    total = sum(_bytes(files[n]) for n in positions)
    share = min(1.0, SURVEY_BYTES / max(total, 1))
    for n in positions:
        file, size = files[n], _bytes(files[n])
        end = int(size * share)
        if file.compression:
            if end or share == 1:
                yield n, 0, None if share == 1 else end
            continue
        step = _RANGE_BYTES if limit is None else max(end, 1)
        for start in range(SAMPLE_BYTES if file.sampled else 0, end, step):
            yield n, start, min(start + step, end)


def _bytes(file: _File) -> int:
    return file.info.size * (_COMPRESSION_RATIO if file.compression else 1)


def _settled(schema: pa.Schema, known: dict[str, pa.Field]) -> pa.Schema:
    """The schema with types that files can hold; where it tells nothing, others may."""
    fields = []
    for field in schema:
        with suppress(pa.ArrowException):
            field = unify([field, known[field.name]])
        if not is_empty(field.type):
            fields.append(field.with_type(settled_type(field.type)))
    return pa.schema(fields)
