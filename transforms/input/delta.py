"""The newest version of a Delta table, read from its log by the library of that name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage.filesystems import FileInfo, download, is_local, join, list_files

from .table_files import MAX_FILE_BYTES, path_of, too_large
from .tables import LiveFile, Snapshot, plain_schema, texts

__all__ = ["newest", "read_snapshot"]

_LOG = "_delta_log"
_THREADS = 16
_MAX_FILES = 20_000
_MAX_TOTAL_BYTES = 4 << 30
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet")
_UNKNOWN = re.compile(r"Unsupported: Feature '([\w.-]{1,50})' is not supported")
_OTHER_CHECKPOINT = re.compile(r"\d{20}\.checkpoint\.[^.]{11,}\.(json|parquet)")
# What a reader of Parquet has not to know of. A widened type is that of the table's schema, to which files are cast.
_HARMLESS = frozenset(
    {
        *("appendOnly", "columnMapping", "deletionVectors", "domainMetadata", "inCommitTimestamp", "invariants"),
        *("timestampNtz", "typeWidening", "typeWidening-preview", "v2Checkpoint", "vacuumProtocolCheck"),
    }
)


def read_snapshot(root: str) -> Snapshot:
    """The files of the newest version of a table.

    Args:
        root: path or URL of its folder.

    Raises:
        InputError: its log cannot be read, or it has deletion vectors, mapped columns or a feature that is not known.
    """
    with _with_log_here(root) as here:
        try:
            table = DeltaTable(here)
            protocol, mode = table.protocol(), table.metadata().configuration.get("delta.columnMapping.mode", "none")
            adds = pa.table(table.get_add_actions(flatten=False))
            schema = pa.schema(table.schema())
        except (DeltaError, OSError, ValueError) as error:
            if unknown := _UNKNOWN.search(str(error)):
                raise _refused(root, f"needs {unknown[1]!r} of its readers") from None
            # What the library says may quote the least and greatest values that the log tells of columns.
            raise InputError(
                f"cannot read the log of the Delta table {root!r} ({type(error).__name__}): it is damaged, or of a "
                "kind that deltalake does not read; repair the table, or export it to Parquet"
            ) from None
        features = set(protocol.reader_features or ())
        if others := sorted(features - _HARMLESS):
            raise _refused(root, f"needs {', '.join(map(repr, others))} of its readers")
        if mode != "none":
            raise _refused(root, f"maps its columns to other names in its files (column mapping by {mode})")
        if "deletionVectors" in features and _has_deletion_vectors(table):
            raise _refused(root, "has rows deleted by deletion vectors", "REORG TABLE ... APPLY (PURGE)")
        version = str(table.version())
    values: list[list[tuple[str, str | None]]] = [[] for _ in range(len(adds))]
    for name in table.metadata().partition_columns:
        column = adds["partition"].combine_chunks().field(name)
        for found, value in zip(values, texts(column, column.type), strict=True):
            found.append((name, value))
    files = [
        LiveFile(_below(root, unquote(path)), tuple(found))
        for path, found in zip(adds["path"].to_pylist(), values, strict=True)
    ]
    return Snapshot(version, plain_schema(schema, ids=True), tuple(files))


def _refused(root: str, what: str, cure: str = "a copy without") -> InputError:
    return InputError(
        f"the Delta table {root!r} {what}, which distilbeam does not read; write it anew ({cure}), or export it to "
        "Parquet"
    )


def _has_deletion_vectors(table: DeltaTable) -> bool:
    try:
        return len(pa.table(table.deletion_vectors())) > 0
    except (AttributeError, DeltaError):  # an older library, or they lie where the log alone does not
        return True


def _below(root: str, path: str) -> str:
    """The path of a file below its table's folder; a clone names files of other tables by their URL."""
    whole = path_of(path)
    if "://" not in whole and not whole.startswith("/"):
        return whole
    if whole.startswith(root.rstrip("/") + "/"):
        return whole.removeprefix(root.rstrip("/") + "/")
    raise _refused(root, f"has a file outside of its folder, {path!r}")


@contextmanager
def _with_log_here(root: str) -> Iterator[str]:
    """A local folder with the log of a table, fetched with our own driver and credentials where it lies elsewhere."""
    log = join(root, _LOG)
    needed = newest(root, {info.url.removeprefix(log).lstrip("/"): info for info in list_files(log)})
    if is_local(root):
        yield str(Path(root).absolute())
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_THREADS) as threads:

        def fetch(name: str) -> None:
            place = Path(folder, _LOG, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            download(needed[name].url, place)

        for _ in threads.map(fetch, needed):
            pass
        yield folder


def newest(root: str, log: dict[str, FileInfo]) -> dict[str, FileInfo]:
    """The files of a log that its newest version is made of: the last checkpoint, and the commits from there on.

    All of them where the last checkpoint is none of the first kind, which needs no files beside its own.

    Args:
        root: the table, for messages.
        log: the files of its log by their paths in it.

    Raises:
        InputError: one is larger than such files are, or they are more, or larger together, than is read.
    """
    needed = log
    parts: dict[tuple[int, int], set[int]] = {}
    for name in log:
        if found := _CHECKPOINT.fullmatch(name):
            parts.setdefault((int(found[1]), int(found[3] or 1)), set()).add(int(found[2] or 1))
    whole = {version: count for (version, count), seen in parts.items() if seen == set(range(1, count + 1))}
    others = [int(name[:20]) for name in log if _OTHER_CHECKPOINT.fullmatch(name)]
    if whole and (last := max(whole)) > max(others, default=-1):
        needed = {
            name: info
            for name, info in log.items()
            if ((commit := _COMMIT.fullmatch(name)) and int(commit[1]) >= last)
            or ((found := _CHECKPOINT.fullmatch(name)) and (int(found[1]), int(found[3] or 1)) == (last, whole[last]))
        }
    for info in needed.values():
        if info.size > MAX_FILE_BYTES:
            raise too_large(info.url)
    if len(needed) > _MAX_FILES or sum(info.size for info in needed.values()) > _MAX_TOTAL_BYTES:
        raise InputError(
            f"the log of the Delta table {root!r} is {len(needed)} files, or more than {_MAX_TOTAL_BYTES >> 30} GiB, "
            "since its last checkpoint; make a checkpoint of it, or export the table to Parquet"
        )
    return needed
