"""The newest version of an Iceberg table, read from its metadata by pyiceberg."""

from __future__ import annotations

import io
import re
from threading import Lock
from typing import Any

import pyarrow as pa
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile
from pyiceberg.table import StaticTable
from pyiceberg.table.metadata import TableMetadataUtil
from pyiceberg.transforms import IdentityTransform

from distilbeam.transforms.errors import DistilbeamError, InputError
from distilbeam.transforms.storage.filesystems import exists, file_info, join, list_names, read_bytes

from .table_files import path_of, plain_avro, read_bounded
from .tables import LiveFile, Snapshot, plain_schema, texts

__all__ = ["read_snapshot"]

_HINT = "version-hint.text"
_MAX_TOTAL_BYTES = 4 << 30  # of all manifests of a table, unpacked
_NUMBER = re.compile(r"v?(\d+)[^/]*\.metadata\.json(\.gz)?")


def read_snapshot(root: str) -> Snapshot:
    """The files of the newest version of a table.

    Args:
        root: path or URL of its folder.

    Raises:
        InputError: its metadata cannot be read, or it has rows deleted by delete files, or files elsewhere.
    """
    newest = _newest(root)
    try:
        # Not by ``from_metadata``, which imports whatever module the table's properties name.
        metadata = TableMetadataUtil.parse_raw(read_bounded(newest).decode())
        files = _Files(root, metadata.location)
        table = StaticTable(("table",), metadata, newest, files, NoopCatalog("none"))
        schema = table.schema()
        if any(getattr(field, "initial_default", None) is not None for field in schema.fields):
            raise _refused(root, "has columns with a default for older rows")
        tasks = list(table.scan().plan_files())
        if any(task.delete_files for task in tasks):
            raise _refused(root, "has rows deleted by delete files")
        live = [LiveFile(files.below(task.file.file_path), _values(table, task.file)) for task in tasks]
        columns = plain_schema(schema.as_arrow(), ids=True)
    except DistilbeamError:
        raise
    except Exception as error:  # of pyiceberg, pydantic, or a parser below them, which may quote values of the rows
        raise InputError(
            f"cannot read the metadata of the Iceberg table {root!r} ({type(error).__name__}): it is damaged, or of a "
            "kind that pyiceberg does not read; repair the table, or export it to Parquet"
        ) from None
    snapshot = table.metadata.current_snapshot_id
    return Snapshot(str(snapshot), columns, tuple(live))


def _refused(root: str, what: str) -> InputError:
    return InputError(
        f"the Iceberg table {root!r} {what}, which distilbeam does not read; write its files anew "
        "(rewrite_data_files), or export it to Parquet"
    )


def _newest(root: str) -> str:
    """URL of the metadata file that a catalog of files would take, or else of the one with the highest number."""
    folder = join(root, "metadata")
    names = {name: int(found[1]) for name in list_names(folder) if (found := _NUMBER.fullmatch(name))}
    if _HINT in list_names(folder):
        hint = read_bytes(join(folder, _HINT))[:100].decode(errors="replace").strip()
        if hint.isdigit():
            # A writer adds the hint after the metadata, so what comes later goes.
            names = {name: number for name, number in names.items() if number >= int(hint)} or names
    highest = max(names.values(), default=-1)
    newest = sorted(name for name, number in names.items() if number == highest)
    if len(newest) > 1:
        raise InputError(
            f"the Iceberg table {root!r} has several newest metadata files, {' and '.join(map(repr, newest[:2]))}, of "
            "which only its catalog knows the one that goes; remove the other, or export the table to Parquet"
        )
    return join(folder, newest[0])


def _values(table: StaticTable, file: Any) -> tuple[tuple[str, str | None], ...]:
    """The values of partition columns as they are; files that came from Hive hold them nowhere else."""
    values = []
    for number, field in enumerate(table.specs()[file.spec_id].fields):
        if isinstance(field.transform, IdentityTransform):
            column = table.schema().find_field(field.source_id)
            kind = plain_schema(pa.schema([table.schema().as_arrow().field(column.name)])).field(0).type
            stored = file.partition[number]
            storage = pa.int32() if pa.types.is_date(kind) else pa.int64() if pa.types.is_temporal(kind) else kind
            values.append((column.name, texts(pa.array([stored], storage).cast(kind), kind)[0]))
    return tuple(values)


class _File(InputFile):
    """A file of the table's metadata, opened by our own driver."""

    def __init__(self, location: str, url: str, files: _Files) -> None:
        super().__init__(location)
        self._url = url
        self._files = files

    def __len__(self) -> int:
        return file_info(self._url).size

    def exists(self) -> bool:
        return exists(self._url)

    def open(self, seekable: bool = True) -> InputStream:
        data = plain_avro(read_bounded(self._url), self._url)
        self._files.count(len(data))
        return io.BytesIO(data)


class _Files(FileIO):
    """The files below a table's folder, wherever the table was when it was written; no others."""

    def __init__(self, root: str, location: str) -> None:
        super().__init__({})
        self._root = root
        self._folders = tuple(path_of(folder).rstrip("/") + "/" for folder in (root, location))
        self._bytes = 0
        self._lock = Lock()

    def count(self, size: int) -> None:
        """Counts the bytes that were read.

        Raises:
            InputError: they are too many.
        """
        with self._lock:
            self._bytes += size
        if self._bytes > _MAX_TOTAL_BYTES:
            raise InputError(
                f"the manifests of the Iceberg table {self._root!r} hold more than {_MAX_TOTAL_BYTES >> 30} GiB; "
                "rewrite them, or export the table to Parquet"
            )

    def below(self, location: str) -> str:
        """The path of a file below the table's folder.

        Raises:
            InputError: it lies elsewhere.
        """
        whole = path_of(location)
        for folder in self._folders:
            path = whole.removeprefix(folder)
            if path != whole and ".." not in path.split("/"):
                return path
        raise InputError(f"the Iceberg table {self._root!r} has a file outside of its folder, {location!r}")

    def new_input(self, location: str) -> InputFile:
        return _File(location, join(self._root, self.below(location)), self)

    def new_output(self, location: str) -> OutputFile:
        raise NotImplementedError("tables are only read")

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise NotImplementedError("tables are only read")
