"""The newest version of a Delta table, read from its log by the library of that name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from distilbeam.transforms.discretion import cause
from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage.filesystems import download, is_local, join, list_files

from .tables import LiveFile, Snapshot, plain_schema, texts

__all__ = ["read_snapshot"]

_LOG = "_delta_log"
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
            raise InputError(f"cannot read the log of the Delta table {root!r}: {cause(error)}") from None
        features = set(protocol.reader_features or ())
        if unknown := sorted(features - _HARMLESS):
            raise _refused(root, f"needs {', '.join(map(repr, unknown))} of its readers")
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
    if "://" not in path and not path.startswith(("/", "file:")):
        return path
    if path.startswith(root.rstrip("/") + "/"):
        return path.removeprefix(root.rstrip("/") + "/")
    raise _refused(root, f"has a file outside of its folder, {path!r}")


@contextmanager
def _with_log_here(root: str) -> Iterator[str]:
    """A local folder with the log of a table, fetched with our own driver and credentials where it lies elsewhere."""
    if is_local(root):
        yield str(Path(root).absolute())
        return
    with tempfile.TemporaryDirectory() as folder:
        log = join(root, _LOG)
        for info in list_files(log):
            place = Path(folder, _LOG, info.url.removeprefix(log).lstrip("/"))
            place.parent.mkdir(parents=True, exist_ok=True)
            download(info.url, place)
        yield folder
