"""Which files are read, with which schema, in which splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Lock

import numpy as np
import pyarrow as pa

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.names import columns_like
from distilbeam.transforms.provenance import ROW
from distilbeam.transforms.storage.filesystems import FileInfo, is_local

from .column_types import can_cast, settled_type, shown_type
from .discovery import find_files
from .fitting import fitted
from .formats import delimited, jsonl, parquet
from .formats.base import MAX_COLUMNS, count_leaves, reading, unify
from .formats.compression import open_stream
from .formats.kinds import CONTAINERS, detect_files
from .formats.lines import Block
from .formats.salvage import open_trusted
from .keys import complete
from .nested import hint, know_nested, mark_nested, without_marks
from .partitions import partition_value, partition_values
from .read_settings import ReadSettings
from .splits import Part, Split
from .tables import TableFile, plain_schema, unmapped_column
from .text_columns import check_text, cure_of_csv, warn_of_absent

__all__ = [
    "UNTYPED",
    "InputFile",
    "cut",
    "find_misfit",
    "list_inputs",
    "look",
    "numbered",
    "plan_splits",
    "read_schema",
    "wanted",
]

_THREADS = 16
_SAMPLED_FILES = 16
_MAX_PARTS = 1024
_MAX_LISTED = 100  # columns that a message names
UNTYPED = ("jsonl", "csv", "tsv", "text")
"""Formats whose files tell no types, so that values are read as whatever is asked for."""

_COMPRESSION_RATIO = 4  # a guess, for the size of a split only


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as the plan sees it: whether it was looked into, and in which row ranges it would be read.

    One that cannot be read (``bad``) has no say in the plan, and is a single part, which will be found bad again.
    """

    info: FileInfo
    format: str
    compression: str | None
    rows: tuple[tuple[int, int | None, int], ...] = ()
    sampled: bool = False
    empty: bool = False
    bad: bool = False
    given: tuple[tuple[str, str], ...] = ()  # partition values that a table's log tells, of columns the file lacks

    @property
    def partitions(self) -> tuple[tuple[str, str], ...]:
        """Values of hive partitions (``key=value`` folders) in the path, as they are written there."""
        if isinstance(self.info, TableFile):
            return ()  # the names of a table's folders mean nothing
        return partition_values(self.info.url)

    def part(self, partitions: Collection[str]) -> Part:
        """The whole file as one part, with those of its partition values that are columns."""
        values = self.given + tuple((name, value) for name, value in self.partitions if name in partitions)
        return Part(self.info.url, self.format, self.info.size, self.info.version, self.compression, partitions=values)


def list_inputs(settings: ReadSettings) -> list[FileInfo]:
    """The files of all paths, each once however it is spelled, sorted by URL.

    Raises:
        InputError: as ``find_files``.
    """
    files: dict[str, FileInfo] = {}
    for info in find_files(settings.path, settings.format):
        files.setdefault(os.path.normpath(info.url) if is_local(info.url) else info.url, info)
    return sorted(files.values(), key=lambda info: info.url)


def plan_splits(settings: ReadSettings, *, apart: bool = False, infos: list[FileInfo] | None = None) -> list[Split]:
    """All splits of the input, in order: each about ``split_bytes`` of the columns to read.

    Args:
        settings: what to read and how.
        apart: whether no split is to hold parts of two files, so that a changed file concerns no other.
        infos: the files, where not all of the input are planned.

    Raises:
        InputError: nothing matches, a file cannot be read, a column is missing or is no text, or the files disagree.
    """
    files, schemas = look(settings, list_inputs(settings) if infos is None else infos)
    schema = _unified(settings, files, schemas)
    encoded = schema.serialize().to_pybytes()
    reading = settings.digest
    partitions = frozenset(schema.names)
    pieces = [list(cut(file, partitions, settings)) for file in files]
    if not apart:
        pieces = [[piece for several in pieces for piece in several]]
    return numbered(
        Split(
            parts=tuple(part for part, _ in group),
            ordinal=0,
            splits=0,
            schema=encoded,
            size=sum(size for _, size in group),
            reading=reading,
        )
        for several in pieces
        for group in _grouped(several, settings.split_bytes)
    )


def numbered(splits: Iterable[Split]) -> list[Split]:
    """Splits with their positions in the plan that they make up."""
    splits = list(splits)
    return [replace(split, ordinal=ordinal, splits=len(splits)) for ordinal, split in enumerate(splits)]


def read_schema(split: Split) -> pa.Schema:
    """The schema that every batch of the plan has, without ``ROW``."""
    return without_marks(pa.ipc.read_schema(pa.py_buffer(split.schema)))


def look(
    settings: ReadSettings, infos: list[FileInfo], *, known: bool = False
) -> tuple[list[InputFile], list[tuple[str, pa.Schema]]]:
    """Looks into the files. Gives each schema that they have once, with the first file that has it.

    Args:
        settings: what to read and how.
        infos: the files.
        known: whether the columns are known without them, so that all of them may be bad.
    """
    kinds = detect_files([info.url for info in infos], settings.format)
    files = [InputFile(info, *kind) for info, kind in zip(infos, kinds, strict=True)]
    # Types of JSON are guessed, from a sample first; all other formats say in their heads what they hold.
    guessed = [index for index, file in enumerate(files) if file.format == "jsonl"]
    sample = {guessed[len(guessed) * n // _SAMPLED_FILES] for n in range(_SAMPLED_FILES)} if guessed else set()
    schemas: dict[bytes, tuple[int, pa.Schema]] = {}
    bad: dict[int, InputError] = {}
    lock = Lock()

    def look(index: int) -> None:
        try:
            files[index], schema = _inspect(settings, files[index])
        except InputError as error:
            if settings.bad_files == "fail" or error.reason is None:
                raise
            files[index], bad[index] = replace(files[index], bad=True), error
            return
        digest = hashlib.sha256(schema.serialize()).digest()
        with lock:
            first, _ = schemas.get(digest, (index, schema))
            schemas[digest] = min(first, index), schema

    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(look, [n for n, file in enumerate(files) if file.format != "jsonl" or n in sample]):
            pass
    if bad and not schemas and len(bad) == len(files) and not known:
        raise bad[min(bad)]
    found = sorted(schemas.values(), key=lambda pair: pair[0])
    if guessed:
        others = [(n, schema) for n, schema in found if files[n].format != "jsonl"]
        found = others + complete(settings, files, [(n, schema) for n, schema in found if files[n].format == "jsonl"])
    return files, [(files[n].info.url, schema) for n, schema in sorted(found, key=lambda pair: pair[0])]


def _inspect(settings: ReadSettings, file: InputFile) -> tuple[InputFile, pa.Schema]:
    """What a look into the file tells, and its schema."""
    url = file.info.url
    settings.check_format(url, file.format)
    file = replace(file, sampled=True)
    if file.format in CONTAINERS:
        split_bytes, memory = settings.split_bytes, settings.decode_bytes
        schema, rows = parquet.look(url, settings.asked, split_bytes, memory, file.format)
        twice = sorted(name for name, count in Counter(wanted(settings, schema.names)).items() if count > 1)
        if twice:
            raise InputError(f"{url!r} has {', '.join(map(repr, twice))} twice; rename one of them")
        if isinstance(file.info, TableFile):
            given, schema = _in_table(file.info, schema)
            file = replace(file, given=given)
        return replace(file, rows=tuple(rows)), pa.schema([field.remove_metadata() for field in schema])
    if file.format == "text":
        with reading(url), open_stream(url, file.compression, settings.decode_bytes):
            name = settings.text[0] if len(settings.text) == 1 else "text"
        return file, pa.schema([(name, pa.string())])
    lenient = settings.bad_files == "reject"  # then rows before a damage are read, so they have a say
    with (
        reading(url),
        open_trusted(
            url, file.format, file.compression, settings.decode_bytes, salvage=lenient, lenient=lenient
        ) as stream,
    ):
        if file.format == "jsonl":
            found, count = jsonl.infer(stream, settings.text, settings.max_line_bytes, settings.as_text, settled=False)
            return replace(file, empty=not count), pa.schema(found)
        limit, columns = settings.max_line_bytes, settings.columns
        header = delimited.columns_of(url, stream, file.format, limit, columns, settings.dialect)
    return file, pa.schema([(name, pa.string()) for name in header])


def _in_table(info: TableFile, schema: pa.Schema) -> tuple[tuple[tuple[str, str], ...], pa.Schema]:
    """The partition values that a file of a table needs, and the columns of the table, which stand for its own."""
    table = pa.ipc.read_schema(pa.py_buffer(info.schema))
    if name := unmapped_column(table, schema):
        raise InputError(
            f"column {name!r} of {info.table} was renamed or made anew, and {info.url!r} still has the one of before, "
            "which distilbeam does not read; rewrite the table's files, or export it to Parquet"
        )
    return tuple((name, value) for name, value in info.values if name not in schema.names), plain_schema(table)


def wanted(settings: ReadSettings, names: Iterable[str]) -> list[str]:
    """Those of the names that are to be read."""
    asked = None if settings.asked is None else frozenset(settings.asked)
    return [name for name in names if asked is None or name in asked]


def _unified(settings: ReadSettings, files: list[InputFile], schemas: list[tuple[str, pa.Schema]]) -> pa.Schema:
    """The schema of the plan: the columns of the files, then those of their partitions."""
    known: dict[str, dict[pa.DataType, str]] = {}  # the types of each column, each with the first file that has it
    for url, schema in schemas:
        for column in schema:
            known.setdefault(column.name, {}).setdefault(column.type, url)
    format_of = {file.info.url: file.format for file in files}
    formats = set(format_of.values())
    names = settings.asked or (*settings.text, *([settings.id] if settings.id else []))
    paths = know_nested(names, known, schemas)
    partitions = {name: None for file in files for name, _ in file.partitions if name not in known}
    fields = {name: _field(settings, name, known[name], format_of) for name in wanted(settings, known)}
    shown = {column: kinds for column, kinds in known.items() if column not in paths}
    fields |= {name: pa.field(name, pa.string()) for name in wanted(settings, partitions)}
    if all(file.empty for file in files if file.sampled):  # no JSON object anywhere, so nothing contradicts the user
        fields |= {name: pa.field(name, pa.string()) for name in settings.asked or settings.text if name not in fields}
    for name, kind in settings.types.items():
        if name not in fields and "jsonl" not in formats:
            raise InputError(f"`types` names a column {name!r} that is not read; leave it out, or add it to `keep`")
        if name in fields or wanted(settings, [name]):
            fields[name] = pa.field(name, kind if name not in settings.text else pa.string())
    _check_types(formats, {name: field.type for name, field in fields.items() if name in settings.types})
    available = [*known, *partitions]
    for name in names:
        if name not in fields:
            raise InputError(
                f"there is no column {name!r} in {files[0].info.url!r}"
                + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
                + f"; {_columns(name, available, formats, settings)}"
                + hint(name, shown, formats <= set(CONTAINERS))
            )
    if ROW in fields:
        raise InputError(
            f"the input has a column {ROW!r}, a name that is used for the position of a row; rename it, or leave it "
            "out by listing the columns to `keep`"
        )
    warn_of_absent(settings, schemas, format_of, partitions)
    fields |= {name: mark_nested(fields[name], path) for name, path in paths.items() if name in fields}
    schema = pa.schema([fields[name] for name in settings.asked or fields])
    if (misfit := find_misfit(files, schema)) is not None:
        url, field = misfit
        raise InputError(
            f"column {field.name!r} is {shown_type(field.type, tell='jsonl' not in formats)}, but the value that the "
            f"folders of {url!r} give for it is none; rename the folders, leave the column out by listing the columns "
            "to `keep`, or give it a type with `types`"
        )
    if not formats <= set(CONTAINERS) and (leaves := count_leaves(schema)) > MAX_COLUMNS:
        raise InputError(f"the input has {leaves} columns, more than {MAX_COLUMNS}; list the columns to `keep`")
    return schema


def find_misfit(files: Iterable[InputFile], schema: pa.Schema) -> tuple[str, pa.Field] | None:
    """The first file whose folders give a column a value that is none of its type, and that column."""
    seen = set()
    for file in files:
        for name, value in (*file.given, *file.partitions):
            at = schema.get_field_index(name)
            if at < 0 or (name, value) in seen:
                continue
            seen.add((name, value))
            try:
                partition_value(value, schema.field(at).type)
            except pa.ArrowException:
                return file.info.url, schema.field(at)
    return None


def _columns(name: str, available: Sequence[str], formats: Collection[str], settings: ReadSettings) -> str:
    """What is told of the columns there are: a Parquet file's schema is no document, a line that may be none is."""
    if settings.columns is not None:
        return f"`columns` names {', '.join(map(repr, available))}"
    if set(formats) <= set(CONTAINERS) and len(available) <= _MAX_LISTED:
        return f"the columns are {', '.join(map(repr, available)) or '(none)'}"
    if set(formats) <= set(CONTAINERS):
        return columns_like(name, available)
    place = "the first lines of the file show them" if "jsonl" in formats else "its first line names them"
    return f"{columns_like(name, available)}; {place}{cure_of_csv(formats, len(available))}"


def _check_types(formats: Collection[str], types: Mapping[str, pa.DataType]) -> None:
    """Raises InputError for a type that a format cannot give, before every row fails on it."""
    for format in sorted({"jsonl", "csv", "tsv"}.intersection(formats)):
        for name, kind in types.items():
            schema = pa.schema([(name, kind)])
            empty = Block(b"{}" if format == "jsonl" else b"", *(np.array([n]) for n in (0, 2, 0)))
            try:
                if format == "jsonl":
                    jsonl.parser(schema)(empty)
                else:
                    fitted(pa.array([], pa.string()), kind)
            except pa.ArrowException:
                raise InputError(
                    f"column {name!r} cannot be read as {kind} from {format} files; change `types`"
                ) from None


def _field(settings: ReadSettings, name: str, types: Mapping[pa.DataType, str], formats: Mapping[str, str]) -> pa.Field:
    """The field that a column of these types has, each type with a file that has it."""
    if name in settings.text:
        check_text(settings, name, types, formats)
        return pa.field(name, pa.string())
    if name in settings.types:
        for kind, url in types.items():
            is_guess = formats[url] in UNTYPED  # its values are still to be read as the type
            if not is_guess and not can_cast(kind, settings.types[name]):
                raise InputError(
                    f"column {name!r} of {url!r} is {shown_type(kind)}, which cannot be read as "
                    f"{shown_type(settings.types[name])}; give it another type with `types`"
                )
        return pa.field(name, settings.types[name])
    (field, source), *others = ((pa.field(name, settled_type(kind)), url) for kind, url in types.items())
    for other, url in others:
        try:
            both = unify([field, other])
        except pa.ArrowException:
            one, two = _shown(formats, types, field.type, other.type)
            raise InputError(
                f"column {name!r} is {one} in {source!r} but {two} in {url!r}; leave it out by listing the columns to "
                "`keep`, or give it a type with `types`, such as string"
            ) from None
        if both.type != field.type:
            field, source = both, url
    for kind, url in types.items():
        if not can_cast(kind, field.type):
            one, two = _shown(formats, types, kind, field.type)
            raise InputError(
                f"column {name!r} is {one} in {url!r}, which Arrow cannot read as {two}; leave it out by listing the "
                "columns to `keep`"
            )
    return field


def _shown(formats: Mapping[str, str], types: Mapping[pa.DataType, str], *kinds: pa.DataType) -> list[str]:
    """Types made of those of a column, which may have keys of JSON lines in them, for a message."""
    tell = all(formats[url] != "jsonl" for url in types.values())
    return [shown_type(kind, tell=tell) for kind in kinds]


def cut(file: InputFile, partitions: Collection[str], settings: ReadSettings) -> Iterator[tuple[Part, int]]:
    """The parts of a file, each of at most about ``split_bytes``, and their bytes."""
    size, whole = file.info.size, file.part(partitions)
    if file.bad:
        yield whole, size
    elif file.format in CONTAINERS:
        for start, stop, weight in file.rows:
            yield replace(whole, start=start, stop=stop), weight
    elif file.compression or file.format == "csv" or size <= settings.split_bytes:
        yield whole, size * (_COMPRESSION_RATIO if file.compression else 1)
    else:
        count = -(-size // settings.split_bytes)
        edges = [size * number // count for number in range(count + 1)]
        for start, stop in pairwise(edges):
            # The last range has no end, so that a byte more or less is noticed as a changed file and nothing else.
            yield replace(whole, start=start, stop=stop if stop < size else None), stop - start


def _grouped(pieces: list[tuple[Part, int]], split_bytes: int) -> Iterator[list[tuple[Part, int]]]:
    group: list[tuple[Part, int]] = []
    weight = 0
    for piece in pieces:
        if group and (weight + piece[1] > split_bytes or len(group) == _MAX_PARTS):
            yield group
            group, weight = [], 0
        group.append(piece)
        weight += piece[1]
    if group:
        yield group
