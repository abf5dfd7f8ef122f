"""Writes that a store does only if nobody else has written: they decide between two jobs on one output.

| store              | a new file                | in place of a version                                |
|--------------------|---------------------------|------------------------------------------------------|
| local disk         | a whole file, hard-linked | compared and renamed under a lock of the folder      |
| memory             | under a lock              | under a lock                                         |
| S3                 | PUT with If-None-Match    | PUT with If-Match                                    |
| Google Cloud       | ifGenerationMatch=0       | ifGenerationMatch                                    |
| Azure              | PUT with If-None-Match    | PUT with If-Match                                    |
| any other          | looked at, then written   | looked at, then written                              |

The last row also stands for an S3 server that does not know conditions: two jobs may both win there. A network disk
that cannot lock folders still creates exclusively; on one that has no hard links a new file may be seen half written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from distilbeam.transforms.checks import check_system
from distilbeam.transforms.errors import DistilbeamError, InputError, OutputError

from . import filesystems, stores
from .retries import http_status, retry

__all__ = ["create", "read", "replace", "version_of"]

_KINDS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_VERSIONS = {"s3": "ETag", "gs": "generation", "az": "etag"}
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_MEMORY_LOCK = threading.Lock()  # the only lock that a store in memory needs: no other process sees it
_TRIES = 5


def read(url: str) -> tuple[bytes, str]:
    """The bytes of a file, and the version that ``replace`` compares.

    Should the file change in between, the version is that of before, so that ``replace`` refuses.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    key = _VERSIONS.get(_kind(url))
    if key is None:
        data = filesystems.read_bytes(url)
        return data, hashlib.sha256(data).hexdigest()
    filesystem, path = filesystems.resolve(url)
    with filesystems.failing_as(InputError, "look at", url):
        version = str(stores.info(filesystem, path)[key])
    return filesystems.read_bytes(url), version


def version_of(url: str) -> str:
    """The version that ``read`` gives, without the bytes, however many they are.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    key = _VERSIONS.get(_kind(url))
    if key is not None:
        filesystem, path = filesystems.resolve(url)
        with filesystems.failing_as(InputError, "look at", url):
            return str(stores.info(filesystem, path)[key])
    digest = hashlib.sha256()
    with filesystems.open_input(url) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def create(url: str, data: bytes) -> bool:
    """Writes a file that is not there yet, whole or not at all.

    Returns:
        False if there is one with other bytes. Equal bytes were ours: the reply of the store was lost.

    Raises:
        OutputError: it cannot be written.
    """
    return _write(url, data, None)


def replace(url: str, data: bytes, version: str) -> bool:
    """Writes a file in place of a version of it, whole or not at all.

    Args:
        url: path or URL of the file.
        data: its new bytes.
        version: what ``read`` gave with the old ones.

    Returns:
        False if the file has changed since, or is gone. If it has these bytes already, they were ours.

    Raises:
        OutputError: it cannot be written.
    """
    return _write(url, data, version)


def _write(url: str, data: bytes, version: str | None) -> bool:
    filesystem, path = filesystems.resolve(url)
    kind = _kind(url)
    with filesystems.failing_as(OutputError, "write", url):
        try:
            if kind == "local":
                done = _link(Path(path), data) if version is None else _swap(Path(path), data, version)
            elif kind in _VERSIONS:
                done = _put(filesystem, path, data, kind, version)
            else:
                with _MEMORY_LOCK if kind == "memory" else nullcontext():
                    done = _look_and_write(filesystem, path, data, version)
        except DistilbeamError:
            raise
        except Exception:
            if _holds(url, data):
                return True
            raise
        return done or _holds(url, data)


def _put(filesystem: Any, path: str, data: bytes, kind: str, version: str | None) -> bool:
    """One conditional request."""
    for attempt in range(_TRIES):
        try:
            retry(lambda: _request(filesystem, path, data, kind, version))
        except FileExistsError:
            return False
        except FileNotFoundError:
            if version is None:
                raise
            return False
        except Exception as error:
            if _is_unknown(error):
                return _look_and_write(filesystem, path, data, version, _VERSIONS[kind])
            status = http_status(error)
            if status == 412:
                return False
            if status != 409 or attempt == _TRIES - 1:
                raise
            time.sleep(0.1 * 2**attempt)  # another request on the same name is under way
        else:
            filesystem.invalidate_cache()
            return True
    return False


def _request(filesystem: Any, path: str, data: bytes, kind: str, version: str | None) -> None:
    # A file in several parts would not be conditional everywhere, so all of it goes in one.
    whole = {"chunksize": max(50 << 20, len(data) + 1)}
    if kind == "s3":
        condition = {"mode": "create"} if version is None else {"IfMatch": version}
        filesystem.pipe_file(path, data, **whole, **condition)
    elif kind == "az":
        if version is None:
            filesystem.pipe_file(path, data, mode="create")
        else:
            from azure.core import MatchConditions

            filesystem.pipe_file(path, data, etag=version, match_condition=MatchConditions.IfNotModified)
    elif version is None:
        filesystem.pipe_file(path, data, mode="create", **whole)
    else:
        # gcsfs itself knows only the condition that there is no file.
        bucket, key, _ = filesystem.split_path(path)
        filesystem.call(
            "POST",
            filesystem.base.replace("/storage/", "/upload/storage/") + "b/{}/o",
            bucket,
            uploadType="media",
            name=key,
            ifGenerationMatch=version,
            headers={"Content-Type": "application/octet-stream"},
            data=data,
        )


def _look_and_write(filesystem: Any, path: str, data: bytes, version: str | None, key: str | None = None) -> bool:
    """As good as it gets where the store knows no conditions."""
    found = stores.find_info(filesystem, path)
    if version is None:
        if found is not None:
            return False
    else:
        if found is None:
            return False
        try:
            now = str(found[key]) if key else hashlib.sha256(stores.read_all(filesystem, path)).hexdigest()
        except FileNotFoundError:
            return False
        if now != version:
            return False
    stores.write(filesystem, path, len(data), lambda: filesystem.pipe_file(path, data))
    return True


def _link(path: Path, data: bytes) -> bool:
    """A hard link appears with all of the file behind it, and never in place of another."""
    for attempt in range(_TRIES):
        try:
            with _beside(path, data) as temporary:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    if not _write_exclusively(path, data):
                        return False
            stores.sync_folder(path.parent)
            return True
        except FileNotFoundError:  # the commit of another job has removed the temporary file
            if attempt == _TRIES - 1:
                raise
    return False


def _write_exclusively(path: Path, data: bytes) -> bool:
    try:
        stream = open(path, "xb")  # noqa: SIM115 - closed below
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:  # the half of it would stand in the way of all that come after
        path.unlink(missing_ok=True)
        raise
    return True


def _swap(path: Path, data: bytes, version: str) -> bool:
    if not path.exists():
        return False
    with _locked(path.parent):
        try:
            now = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            return False
        if now != version:
            return False
        with stores.create_locally(path) as stream:
            stream.write(data)
        return True


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file with the data, synced, in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine out; the lock ends with the process."""
    check_system("folders are written under locks")
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network disk may not lock folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _holds(url: str, data: bytes) -> bool:
    """Whether the file has these bytes; no, if it cannot be read."""
    try:
        return filesystems.read_bytes(url) == data
    except InputError:
        return False


def _kind(url: str) -> str:
    if filesystems.is_local(url):
        return "local"
    protocol = url.partition("://")[0].lower()
    return _KINDS.get(protocol, protocol)


def _is_unknown(error: Exception) -> bool:
    """Whether the store says that it knows no conditions."""
    return getattr(error, "errno", None) == errno.ENOSYS or http_status(error) == 501
