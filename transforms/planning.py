"""Which files are read, with which schema, in which splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from .errors import InputError, SettingsError
from .filesystems import FileInfo, check_url, match_files
from .formats import delimited, jsonl, parquet
from .formats.base import FORMATS, Unreadable, detect, is_text_type, reading, unify
from .formats.lines import Block, open_stream
from .provenance import ROW
from .splits import Part, Split

__all__ = ["ReadSettings", "list_inputs", "plan_splits", "read_schema"]

_THREADS = 16
_SAMPLED_FILES = 16
_MAX_PARTS = 1024
_COMPRESSION_RATIO = 4  # a guess, for the size of a split only
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What to read and how; see ``ReadDocuments``.

    Raises:
        SettingsError: a setting is wrong.
    """

    path: str | Sequence[str]
    text: str | Sequence[str] = "text"
    keep: Sequence[str] | None = None
    format: str | None = None
    nulls: str = "reject"
    id: str | None = None
    separator: str = " "
    types: Mapping[str, str | pa.DataType] = field(default_factory=dict)
    split_bytes: int = 8 << 20
    batch_rows: int = 4096
    batch_bytes: int = 16 << 20
    max_line_bytes: int = 64 << 20
    rejects_include_text: bool = False

    def __post_init__(self) -> None:
        paths = [self.path] if isinstance(self.path, str) or hasattr(self.path, "__fspath__") else list(self.path)
        if not paths:
            raise SettingsError("path is an empty list; give at least one file, glob or folder")
        object.__setattr__(self, "path", tuple(map(check_url, paths)))
        object.__setattr__(self, "text", _names("text", self.text))
        object.__setattr__(self, "keep", None if self.keep is None else _names("keep", self.keep, may_be_empty=True))
        object.__setattr__(self, "types", {name: _type(name, kind) for name, kind in (self.types or {}).items()})
        _one_of("format", self.format, (None, *FORMATS))
        _one_of("nulls", self.nulls, ("reject", "keep"))
        if not isinstance(self.separator, str):
            raise SettingsError(f"separator must be a text, not {self.separator!r}")
        if self.id is not None:
            _names("id", self.id)
        for name, least, most in (
            ("split_bytes", 1, 1 << 40),
            ("batch_rows", 1, 1 << 20),
            ("batch_bytes", 1, 1 << 30),
            ("max_line_bytes", 1, 1 << 30),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise SettingsError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        for name in self.text:
            if name in self.types and not is_text_type(self.types[name]):
                raise SettingsError(f"types gives the text column {name!r} the type {self.types[name]}; leave it out")

    @property
    def asked(self) -> tuple[str, ...] | None:
        """The columns to read, those to keep first; None for all."""
        if self.keep is None:
            return None
        return tuple(dict.fromkeys((*self.keep, *self.text, *([self.id] if self.id else []))))

    @property
    def transient(self) -> tuple[str, ...]:
        """The columns that are read but not kept."""
        return tuple(name for name in self.asked or () if name not in (self.keep or ()))

    @property
    def digest(self) -> str:
        """Equal for settings that make equal batches of equal parts, so that a resumed job mixes no others in."""
        names = ("text", "keep", "nulls", "id", "separator", "batch_rows", "batch_bytes", "max_line_bytes")
        values = [getattr(self, name) for name in (*names, "rejects_include_text")]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the plan sees it: what it holds, and in which row ranges it would be read."""

    info: FileInfo
    format: str
    compression: str | None
    fields: tuple[pa.Field, ...] = ()
    rows: tuple[tuple[int, int, int], ...] = ()
    sampled: bool = False
    empty: bool = False

    @property
    def partitions(self) -> tuple[tuple[str, str], ...]:
        """Values of hive partitions (``key=value`` folders) in the path, as they are written there."""
        folders = self.info.url.split("/")[:-1]
        pairs = (folder.partition("=") for folder in folders if folder.partition("=")[0] and "=" in folder)
        return tuple({unquote(key): value for key, _, value in pairs}.items())


def list_inputs(settings: ReadSettings) -> list[FileInfo]:
    """The files of all paths, each once, sorted by URL.

    Raises:
        InputError: a path matches nothing.
    """
    files = {info.url: info for path in settings.path for info in match_files(path)}
    return [files[url] for url in sorted(files)]


def plan_splits(settings: ReadSettings) -> list[Split]:
    """All splits of the input, in order: each about ``split_bytes`` of the columns to read.

    Raises:
        InputError: nothing matches, a file cannot be read, a column is missing or is no text, or the files disagree.
    """
    files = _look(settings, list_inputs(settings))
    schema = _unified(settings, files)
    encoded = schema.serialize().to_pybytes()
    in_files = {column.name for file in files for column in file.fields}
    partitions = set(schema.names) - in_files
    pieces = [piece for file in files for piece in _pieces(file, partitions, settings)]
    groups = list(_grouped(pieces, settings.split_bytes))
    return [
        Split(
            parts=tuple(part for part, _ in group),
            ordinal=ordinal,
            splits=len(groups),
            schema=encoded,
            size=sum(size for _, size in group),
            reading=settings.digest,
        )
        for ordinal, group in enumerate(groups)
    ]


def read_schema(split: Split) -> pa.Schema:
    """The schema that every batch of the plan has, without ``ROW``."""
    return pa.ipc.read_schema(pa.py_buffer(split.schema))


def partition_value(value: str) -> str | None:
    """What a partition's folder name stands for."""
    return None if value == _HIVE_NULL else unquote(value)


def _look(settings: ReadSettings, infos: list[FileInfo]) -> list[_File]:
    files = [_File(info, *detect(info.url, settings.format)) for info in infos]
    # Types of JSON are guessed from a sample; all other formats say in their heads what they hold.
    guessed = [index for index, file in enumerate(files) if file.format == "jsonl"]
    sample = {guessed[len(guessed) * n // _SAMPLED_FILES] for n in range(_SAMPLED_FILES)} if guessed else set()
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(
            threads.map(
                lambda n: _inspect(settings, files[n], files[n].format != "jsonl" or n in sample), range(len(files))
            )
        )


def _inspect(settings: ReadSettings, file: _File, sampled: bool) -> _File:
    url = file.info.url
    if not sampled:
        return file
    if file.format == "parquet":
        with parquet.open_parquet(url) as opened:
            names = opened.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1 and _wanted(settings, name)})
            if twice:
                raise InputError(f"{url!r} has {', '.join(map(repr, twice))} twice; rename one of them")
            fields = tuple(name.remove_metadata() for name in opened.schema_arrow)
            columns = [name for name in names if _wanted(settings, name)]
            rows = tuple(parquet.ranges(opened.metadata, columns, settings.split_bytes))
            return replace(file, fields=fields, rows=rows, sampled=True)
    if file.format == "text":
        with reading(url), open_stream(url, file.compression):
            name = settings.text[0] if len(settings.text) == 1 else "text"
        return replace(file, fields=(pa.field(name, pa.string()),), sampled=True)
    try:
        with reading(url), open_stream(url, file.compression) as stream:
            if file.format == "jsonl":
                found, count = jsonl.infer(stream, settings.text, settings.max_line_bytes)
                return replace(file, fields=tuple(found), sampled=True, empty=not count)
            header = delimited.read_header(stream, file.format, settings.max_line_bytes)
    except Unreadable as error:
        raise InputError(f"cannot read {url!r}: {error}") from None
    return replace(file, fields=tuple(pa.field(name, pa.string()) for name in header), sampled=True)


def _wanted(settings: ReadSettings, name: str) -> bool:
    return settings.asked is None or name in settings.asked


def _unified(settings: ReadSettings, files: list[_File]) -> pa.Schema:
    """The schema of the plan: the columns of the files, then those of their partitions."""
    known: dict[str, list[tuple[str, pa.Field]]] = {}
    for file in files:
        for column in file.fields:
            known.setdefault(column.name, []).append((file.info.url, column))
    partitions = {name: None for file in files for name, _ in file.partitions if name not in known}
    fields = {name: _field(settings, name, columns) for name, columns in known.items() if _wanted(settings, name)}
    fields |= {name: pa.field(name, pa.string()) for name in partitions if _wanted(settings, name)}
    if all(file.empty for file in files if file.sampled):  # no JSON object anywhere, so nothing contradicts the user
        fields |= {name: pa.field(name, pa.string()) for name in settings.asked or settings.text if name not in fields}
    for name, kind in settings.types.items():
        if name not in fields and not any(file.format == "jsonl" for file in files):
            raise InputError(f"types names a column {name!r} that is not read; leave it out, or add it to keep")
        if name in fields or _wanted(settings, name):
            fields[name] = pa.field(name, kind if name not in settings.text else pa.string())
    _check_types(files, {name: field.type for name, field in fields.items() if name in settings.types})
    available = [*known, *partitions]
    for name in settings.asked or (*settings.text, *([settings.id] if settings.id else [])):
        if name not in fields:
            raise InputError(
                f"there is no column {name!r} in {files[0].info.url!r}"
                + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
                + f"; the columns are {', '.join(map(repr, available)) or '(none)'}"
            )
    if ROW in fields:
        raise InputError(
            f"the input has a column {ROW!r}, a name that is used for the position of a row; rename it, or leave it "
            "out by listing the columns to keep"
        )
    return pa.schema([fields[name] for name in settings.asked or fields])


def _check_types(files: list[_File], types: Mapping[str, pa.DataType]) -> None:
    """Raises InputError for a type that a format cannot give, before every row fails on it."""
    for format in {file.format for file in files} & {"jsonl", "csv", "tsv"}:
        for name, kind in types.items():
            schema = pa.schema([(name, kind)])
            empty = Block(b"{}" if format == "jsonl" else b"", *(np.array([n]) for n in (0, 2, 0)))
            try:
                if format == "jsonl":
                    jsonl.parser(schema)(empty)
                else:
                    pa.array([], pa.string()).cast(kind)
            except pa.ArrowException:
                raise InputError(
                    f"column {name!r} cannot be read as {kind} from {format} files; change types="
                ) from None


def _field(settings: ReadSettings, name: str, columns: list[tuple[str, pa.Field]]) -> pa.Field:
    if name in settings.text:
        for url, column in columns:
            if not is_text_type(column.type) and not pa.types.is_null(column.type):
                raise InputError(f"the text column {name!r} of {url!r} is {column.type}, not a string; convert it")
        return pa.field(name, pa.string())
    if name in settings.types:
        return pa.field(name, settings.types[name])
    field = columns[0][1].with_nullable(True)
    source = columns[0][0]
    for url, column in columns[1:]:
        if column.type == field.type:
            continue
        try:
            field, source = unify([field, column]), url
        except pa.ArrowException:
            raise InputError(
                f"column {name!r} is {field.type} in {source!r} but {column.type} in {url!r}; leave it out by listing "
                "the columns to keep, or give it a type with types="
            ) from None
    return field


def _pieces(file: _File, partitions: Collection[str], settings: ReadSettings) -> Iterator[tuple[Part, int]]:
    size = file.info.size
    values = tuple((name, value) for name, value in file.partitions if name in partitions)
    whole = Part(file.info.url, file.format, size, file.info.version, file.compression, partitions=values)
    if file.format == "parquet":
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


def _names(setting: str, value: str | Sequence[str], may_be_empty: bool = False) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) and name for name in names) or not (names or may_be_empty):
        raise SettingsError(f"{setting} must be a column name or a list of them, not {value!r}")
    if ROW in names:
        raise SettingsError(f"{setting} names {ROW!r}, which is used for the position of a row; rename the column")
    if len(set(names)) < len(names):
        raise SettingsError(f"{setting} names a column twice: {', '.join(map(repr, names))}")
    return names


def _one_of(setting: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{setting} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _type(name: str, kind: str | pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.DataType):
        return kind
    try:
        return pa.type_for_alias(kind)
    except (ValueError, TypeError):
        raise SettingsError(
            f"types gives column {name!r} the type {kind!r}, which Arrow does not know; for example double, int64, "
            "bool, string, date32, timestamp[us]"
        ) from None
