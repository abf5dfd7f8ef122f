"""The newest version of an Iceberg table, read from its metadata by pyiceberg."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile
from pyiceberg.table import StaticTable
from pyiceberg.transforms import IdentityTransform

from distilbeam.transforms.discretion import cause
from distilbeam.transforms.errors import DistilbeamError, InputError
from distilbeam.transforms.storage.filesystems import exists, file_info, join, list_names, open_input, read_bytes

from .tables import LiveFile, Snapshot, plain_schema, texts

__all__ = ["read_snapshot"]

_HINT = "version-hint.text"
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
        table = StaticTable.from_metadata(newest, {"py-io-impl": f"{__name__}.Files", Files.ROOT: root})
        files = table.io
        assert isinstance(files, Files)
        files.location = table.metadata.location
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
    except Exception as error:  # of pyiceberg, pydantic, or a parser below them
        raise InputError(f"cannot read the metadata of the Iceberg table {root!r}: {cause(error)}") from None
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
    """A file of the table, opened by our own driver."""

    def __init__(self, location: str, url: str) -> None:
        super().__init__(location)
        self._url = url

    def __len__(self) -> int:
        return file_info(self._url).size

    def exists(self) -> bool:
        return exists(self._url)

    def open(self, seekable: bool = True) -> InputStream:
        return open_input(self._url)


class Files(FileIO):
    """The files below a table's folder, wherever the table was when it was written; no others."""

    ROOT = "distilbeam.root"

    def __init__(self, properties: dict[str, str] | None = None) -> None:
        super().__init__(properties or {})
        self.location = self._root = str(self.properties.get(self.ROOT, ""))

    def below(self, location: str) -> str:
        """The path of a file below the table's folder.

        Raises:
            InputError: it lies elsewhere.
        """
        for folder in (self._root, self.location):
            for start in {folder.rstrip("/") + "/", "file://" + folder.rstrip("/") + "/"}:
                path = location.removeprefix(start)
                if path != location and ".." not in path.split("/"):
                    return path
        raise InputError(f"the Iceberg table {self._root!r} has a file outside of its folder, {location!r}")

    def new_input(self, location: str) -> InputFile:
        return _File(location, join(self._root, self.below(location)))

    def new_output(self, location: str) -> OutputFile:
        raise NotImplementedError("tables are only read")

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise NotImplementedError("tables are only read")
