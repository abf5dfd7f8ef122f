"""Table folders: those whose log, and not what lies in them, tells which files hold the rows of now.

A file that was found by a folder or a glob and lies in such a table is read only if the newest version of the table has
it. What a glob itself spells the table's folder of is read as it lies, with a warning; so is a file that is named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage.filesystems import FileInfo, Match, join, list_names

from .partitions import HIVE_NULL

__all__ = ["LiveFile", "Snapshot", "TableFile", "plain_schema", "read_tables", "texts", "unmapped_column"]

_LOG = logging.getLogger(__name__)
_THREADS = 16
_FIELD_ID = b"PARQUET:field_id"
_ICEBERG_METADATA = r"v?\d+[^/]*\.metadata\.json(\.gz)?"
# By what lies in a table's folder. Of several in one folder the first goes: a Delta table may carry metadata of others.
_KINDS = {
    "Delta": re.compile(r"_delta_log/[^/]+\.(json|parquet)"),
    "Iceberg": re.compile(rf"metadata/{_ICEBERG_METADATA}"),
    "Hudi": re.compile(r"\.hoodie/.+"),
    "Lance": re.compile(r"_versions/[^/]+\.manifest"),
    "Paimon": re.compile(r"snapshot/snapshot-\d+"),
}
_MARKERS = {kind: marker.pattern.partition("/")[0].replace("\\", "") for kind, marker in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A file that a table has: its path below the table's folder, and the values of its partition as texts."""

    path: str
    values: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The newest version of a table: its number, its columns, and its files."""

    version: str
    schema: pa.Schema
    files: tuple[LiveFile, ...]


@dataclass(frozen=True, slots=True)
class TableFile(FileInfo):
    """A file of a table.

    Attributes:
        table: the kind of the table and its folder, for messages.
        schema: Arrow IPC of the columns of the table, which all of its files are read into.
        values: partition values, spelled as in the names of hive folders, for columns that the file itself lacks.
    """

    table: str = ""
    schema: bytes = b""
    values: tuple[tuple[str, str], ...] = ()


def read_tables(match: Match, format: str | None) -> tuple[list[FileInfo], list[FileInfo]]:
    """The files that a folder or glob stands for: those in no table, and those that the tables there have.

    Args:
        match: what the folder or glob stands for.
        format: the format that the user has set.

    Raises:
        InputError: a table is of a kind, or makes use of a feature, that cannot be read; its library is not installed;
            a file of it is missing; or it has no rows.
    """
    roots = dict(_roots(match))
    files: list[FileInfo] = []
    by_root: dict[str, dict[str, FileInfo]] = {root: {} for root in roots}
    for info in match.files:
        root = _root_of(info.url, roots)
        if root is None:
            files.append(info)
        else:
            by_root[root][info.url] = info
    live: list[FileInfo] = []
    for root, kind in sorted(roots.items()):
        if match.is_glob and f"{match.root}/".startswith(f"{root}/"):
            _LOG.warning(
                "the glob below %r spells the folder of the %s table %r, so its files are read as they lie: rows that "
                "were deleted from the table may be among them; give the folder alone to read what the table has",
                *(match.root, kind, root),
            )
            files += by_root[root].values()
            continue
        if format not in (None, "parquet"):
            raise InputError(
                f"{root!r} is a {kind} table, which holds Parquet; leave out `format`, which is {format!r}"
            )
        seen = by_root[root] if match.is_glob else match.seen
        live += _live(root, kind, seen, None if match.is_glob else match.root)
    return files, live


def unmapped_column(table: pa.Schema, file: pa.Schema) -> str | None:
    """The first column of a table's file that its name does not tell, since columns were renamed; None if all do.

    Both schemas have the ids of fields in their metadata, as far as these are known.
    """
    return _unmapped(list(table), list(file))


def _unmapped(table: list[pa.Field], file: list[pa.Field]) -> str | None:
    ids = {number: field.name for field in table if (number := _field_id(field)) is not None}
    named = {field.name: field for field in table}
    for field in file:
        number, wanted = _field_id(field), named.get(field.name)
        if number is not None and ids.get(number, field.name) != field.name:
            return ids[number]
        if wanted is None:
            continue
        if number is not None and _field_id(wanted) not in (None, number):
            return str(field.name)
        inner = _unmapped(_children(wanted.type), _children(field.type))
        if inner is not None:
            return f"{field.name}.{inner}"
    return None


def _field_id(field: pa.Field) -> int | None:
    value = (field.metadata or {}).get(_FIELD_ID)
    return int(value) if value is not None and value.isdigit() else None


def _children(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(number) for number in range(kind.num_fields)] if pa.types.is_nested(kind) else []


def _roots(match: Match) -> Iterator[tuple[str, str]]:
    """The folders of tables that the files of a match lie in, each with its kind."""
    folders: dict[str, list[str]] = {}
    for url in match.seen:
        # The folder that holds a marker is the table's; one pass over the names, since there may be millions.
        for kind, marker in _MARKERS.items():
            at = url.find(f"/{marker}/")
            while at >= 0:
                if _KINDS[kind].fullmatch(url, at + 1):
                    folders.setdefault(url[:at], []).append(kind)
                    break
                at = url.find(f"/{marker}/", at + 1)
    for folder in [match.root, *_above(match.root)] if match.root else ():
        if folder not in folders:
            with suppress(InputError):  # what lies above an input may be closed to its reader
                folders[folder] = list(_kinds_in(folder, _MARKERS.values()))
    if match.is_glob:  # it has matched files alone, so the folders that they lie in are looked into
        below = {folder for url in match.seen for folder in _above(url) if folder.startswith(f"{match.root}/")}
        below = {folder for folder in below - folders.keys() if "=" not in folder.rpartition("/")[2]}
        with ThreadPoolExecutor(_THREADS) as threads:
            kinds_in = threads.map(lambda folder: list(_kinds_in(folder, list_names(folder))), sorted(below))
            folders.update(zip(sorted(below), kinds_in, strict=True))
    for folder, kinds in folders.items():
        if kinds:
            yield folder, min(kinds, key=list(_KINDS).index)


def _kinds_in(folder: str, names: Iterable[str]) -> Iterator[str]:
    """The kinds of table that a folder is, of whose names those given are worth a look."""
    names = frozenset(names)
    for kind, marker in _MARKERS.items():
        if marker in names and any(
            _KINDS[kind].fullmatch(f"{marker}/{name}") for name in list_names(join(folder, marker))
        ):
            yield kind


def _above(url: str) -> Iterator[str]:
    """The folders that a file or folder lies in, from the nearest to the farthest."""
    protocol, separator, path = url.rpartition("://")
    while "/" in path.rstrip("/"):
        path = path.rstrip("/").rpartition("/")[0]
        if path:
            yield protocol + separator + path


def _root_of(url: str, roots: Mapping[str, str]) -> str | None:
    return next((folder for folder in _above(url) if folder in roots), None) if roots else None


def _live(root: str, kind: str, seen: Mapping[str, FileInfo], below: str | None) -> list[FileInfo]:
    """The files that a table has and that were seen; those ``below`` a folder must have been."""
    readers: dict[str, Callable[[], Callable[[str], Snapshot]]] = {"Delta": _delta, "Iceberg": _iceberg}
    if kind not in readers:
        raise InputError(
            f"{root!r} is a {kind} table, which distilbeam cannot read, and its folder does not tell which rows are "
            f"deleted; export it to Parquet, or give a glob such as {join(root, '**', '*.parquet')!r} to read the "
            "files as they lie"
        )
    try:
        read = readers[kind]()
    except ImportError:
        raise InputError(
            f"{root!r} is a {kind} table, and the library that reads its log is not installed: pip install "
            f"'distilbeam[{kind.lower()}]', or give a glob such as {join(root, '*.parquet')!r} to read the files as "
            "they lie, deleted rows too"
        ) from None
    snapshot = read(root)
    schema = snapshot.schema.serialize().to_pybytes()
    files: list[FileInfo] = []
    for file in snapshot.files:
        url = join(root, file.path)
        info = seen.get(url)
        if info is None:
            if below is None or not url.startswith(f"{below.rstrip('/')}/"):
                continue
            raise InputError(
                f"the {kind} table {root!r} of version {snapshot.version} has a file {url!r}, which is not there; "
                "repair the table, or restore the file"
            )
        values = tuple((name, HIVE_NULL if value is None else quote(value, safe="")) for name, value in file.values)
        table = f"the {kind} table {root!r}"
        files.append(TableFile(url, info.size, info.version, table, schema, values))
    if not files and below == root:
        raise InputError(f"the {kind} table {root!r} has no rows in its version {snapshot.version}")
    return files


def _delta() -> Callable[[str], Snapshot]:
    from .delta import read_snapshot

    return read_snapshot


def _iceberg() -> Callable[[str], Snapshot]:
    from .iceberg import read_snapshot

    return read_snapshot


def plain_schema(schema: pa.Schema, *, ids: bool = False) -> pa.Schema:
    """The schema with 32-bit offsets in place of 64-bit ones, without metadata save for the ids of columns if asked."""
    return pa.schema([_plain(field, ids) for field in schema])


def _plain(field: pa.Field, ids: bool) -> pa.Field:
    metadata = {key: value for key, value in (field.metadata or {}).items() if ids and key == _FIELD_ID}
    return pa.field(field.name, _plain_type(field.type, ids), True, metadata or None)


def _plain_type(kind: pa.DataType, ids: bool) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_field, ids))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_field, ids), kind.list_size)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain_type(kind.value_type, ids), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([_plain(field, ids) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type, ids), _plain_type(kind.item_type, ids))
    return kind


def texts(values: Iterable[object], kind: pa.DataType) -> list[str | None]:
    """Values of a partition as texts, which Arrow casts back into the type.

    >>> texts([1, None], pa.int64())
    ['1', None]
    """
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
    found: list[str | None] = array.cast(pa.string()).to_pylist()
    return found
