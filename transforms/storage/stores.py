"""What ``filesystems`` asks of a file system of fsspec: complete answers, tried again where the store fails."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from .retries import SizeError, retry

__all__ = [
    "RemoteFile",
    "StoreError",
    "create_locally",
    "fetch",
    "find",
    "find_info",
    "followed",
    "info",
    "read_all",
    "remove",
    "remove_file",
    "sync_folder",
    "unnamed_file",
    "write",
]


class StoreError(OSError):
    """What a driver has raised as an EOFError or a bare OSError, which would be told for a damaged file."""


class RemoteFile(io.RawIOBase):
    """A file of a store, read whole where it is read: a range that came short is asked for again."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str, cache: str) -> None:
        super().__init__()
        filesystem.invalidate_cache()
        self._stream: BinaryIO = retry(lambda: filesystem.open(path, "rb", block_size=4 << 20, cache_type=cache))
        self.size = self._stream.seek(0, os.SEEK_END)
        self._position = self._stream.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        try:
            data = retry(lambda: self._fetch(wanted)) if wanted else b""
        except (OSError, EOFError) as error:
            if isinstance(error, EOFError) or (type(error) is OSError and error.errno is None):
                raise StoreError(f"{type(error).__name__}: {error}") from error
            raise
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _fetch(self, wanted: int) -> bytes:
        self._stream.seek(self._position)
        data = self._stream.read(wanted)
        if len(data) != wanted:
            raise SizeError(f"{len(data)} bytes came where {wanted} were asked for, at {self._position}")
        return data


def read_all(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes:
    """All bytes of a file, of one version of it."""
    for last in (False, False, True):
        try:
            with RemoteFile(filesystem, path, "none") as stream:
                return stream.read()
        except OSError as error:
            # It was replaced between two requests; s3fs notices and refuses.
            if last or type(error).__name__ != "FileExpired":
                raise
    raise AssertionError


def info(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """What a store says of a file or folder now.

    Raises:
        FileNotFoundError: there is none.
    """

    def look() -> dict[str, Any]:
        filesystem.invalidate_cache()
        found: dict[str, Any] = filesystem.info(path)
        return followed(found)

    return retry(look)


def followed(found: dict[str, Any]) -> dict[str, Any]:
    """What a symbolic link of the local disk leads to, under the link's name; anything else as it is."""
    if not found.get("islink"):
        return found
    try:
        there = Path(found["name"]).stat()
    except OSError:  # nowhere, or in a circle
        return found
    kind = "directory" if stat.S_ISDIR(there.st_mode) else "file" if stat.S_ISREG(there.st_mode) else "other"
    return {**found, "type": kind, "size": there.st_size, "mtime": there.st_mtime}


def find_info(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """As ``info``; None if there is none. The drivers' own ``exists`` takes some failures for an answer."""
    try:
        return info(filesystem, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def find(filesystem: fsspec.AbstractFileSystem, path: str, *, follow: bool = False) -> dict[str, dict[str, Any]]:
    """All files below a folder by their path, or the file itself; none where there is neither.

    Links to files count as files; links to folders are entered if ``follow``.
    """
    if isinstance(filesystem, LocalFileSystem):
        # Its own walk passes over links, and over a folder that it may not read.
        above = frozenset(os.path.realpath(folder) for folder in Path(path).parents)
        return {found["name"]: found for found in _walk(filesystem, path, follow, above)}

    def look() -> dict[str, dict[str, Any]]:
        filesystem.invalidate_cache()
        found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
        return found

    return retry(look)


def write(filesystem: fsspec.AbstractFileSystem, path: str, size: int, function: Callable[[], object]) -> None:
    """Calls a function that writes a file, until the store has it in its full size.

    Raises:
        SizeError: the store keeps another number of bytes.
    """
    for _ in range(2):
        retry(function)
        found = int(info(filesystem, path)["size"])
        if found == size:
            return
    raise SizeError(f"{found} bytes are there where {size} were written")


def fetch(filesystem: fsspec.AbstractFileSystem, path: str, target: str) -> None:
    """Copies a file to this machine.

    Raises:
        SizeError: another number of bytes arrived than the store has.
    """
    size = int(info(filesystem, path)["size"])
    for _ in range(2):
        retry(lambda: filesystem.get_file(path, target))
        found = Path(target).stat().st_size
        if found == size:
            return
    raise SizeError(f"{found} bytes came where the store has {size}")


def remove(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Deletes a file, or a folder with all below it, if there is one.

    Raises:
        SizeError: files are left.
    """
    found = find_info(filesystem, path)
    if found is None:
        return
    if found["type"] == "file":
        remove_file(filesystem, path)
        return
    for _ in range(2):
        with suppress(FileNotFoundError):  # deleted, though the reply was lost, or by another
            retry(lambda: filesystem.rm(path, recursive=True))
        # A driver that deletes many at once may not say that some are left.
        left = find(filesystem, path)
        if not left:
            return
    raise SizeError(f"{len(left)} files are still there after they were deleted")


def remove_file(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Deletes a file if there is one."""
    with suppress(FileNotFoundError):  # deleted, though the reply was lost
        retry(lambda: filesystem.rm_file(path))


@contextmanager
def unnamed_file() -> Iterator[tuple[BinaryIO, str]]:
    """A file to write and a path to read it by, of which nothing is left when the process is killed, given /proc."""
    with tempfile.TemporaryFile() as stream:
        # Not /dev/fd: what is opened there may share the position, which is at the end.
        path = f"/proc/self/fd/{stream.fileno()}"
        if os.path.exists(path):  # noqa: PTH110 - an open file, not a place
            yield stream, path
            return
    with tempfile.NamedTemporaryFile() as named_file:
        yield named_file, named_file.name  # type: ignore[misc]


@contextmanager
def create_locally(path: Path) -> Iterator[BinaryIO]:
    """A file to write under a hidden name, synced and renamed when the block ends, removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(filesystem: LocalFileSystem, folder: str, follow: bool, above: frozenset[str]) -> Iterator[dict[str, Any]]:
    above |= {os.path.realpath(folder)}
    try:
        listing = filesystem.ls(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return  # it may have gone meanwhile, as a staging folder does
    for found in map(followed, listing):
        if found["type"] != "directory":
            yield found
        elif not found["islink"] or (follow and os.path.realpath(found["name"]) not in above):
            yield from _walk(filesystem, found["name"], follow, above)
