"""Files and folders on any fsspec store, named by path or URL."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.core import url_to_fs

from .errors import DistilbeamError, InputError, OutputError, SettingsError

__all__ = [
    "FileInfo",
    "check_url",
    "create",
    "delete",
    "exists",
    "file_info",
    "is_local",
    "join",
    "list_files",
    "match_files",
    "move",
    "open_input",
    "read_bytes",
    "resolve",
    "write_bytes",
]

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
# Stores that show a file only once all of it is there. Others, such as hdfs and dbfs, write in place.
_PROTOCOLS = frozenset({"file", "local", "memory", "hf", "oci", "oss", "lakefs", *_EXTRAS})
_HIDDEN = ("_", ".")
_LOCAL = frozenset({"file", "local"})
# What changes when a file does, best first. Stores spell it differently.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file: its path or URL, its bytes, and a text that changes when the file does."""

    url: str
    size: int
    version: str


def check_url(url: str | os.PathLike[str]) -> str:
    """The path or URL as text, if it is one we accept; looks at nothing but the text.

    Raises:
        SettingsError: the URL is chained, holds credentials, or names an unknown or refused protocol.
    """
    url = os.fspath(url)
    if not isinstance(url, str) or not url:
        raise SettingsError(f"a path or URL must be a non-empty text, not {url!r}")
    if "\0" in url:
        raise SettingsError(f"the path {url!r} holds a NUL character")
    if "::" in url:
        raise SettingsError(f"chained URLs such as {_masked(url)!r} are not supported; name the file itself")
    protocol, authority = _split(url)
    # A secret may hold a slash; no bucket's name holds a colon.
    if "://" in url and ":" in authority and "@" in url:
        raise SettingsError(
            f"the URL {_masked(url)!r} holds a password; leave it out and give credentials through the "
            "environment or the fsspec configuration"
        )
    if protocol not in _PROTOCOLS:
        allowed = ", ".join(f"{name}://" for name in sorted(_PROTOCOLS))
        raise SettingsError(f"cannot use {protocol}:// in {_masked(url)!r}; use a local path or one of {allowed}")
    return url


def resolve(url: str | os.PathLike[str]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path inside it.

    Raises:
        SettingsError: as ``check_url``, or the driver of the store is not installed.
    """
    url = check_url(url)
    protocol, _ = _split(url)
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        cure = f"pip install 'distilbeam[{extra}]'" if extra else str(error)
        raise SettingsError(f"{protocol}:// needs a driver that is not installed: {cure}") from error
    return filesystem, str(path)


def is_local(url: str) -> bool:
    """Whether the path or URL lies on this machine's disk."""
    return _split(url)[0] in _LOCAL


def join(url: str, *names: str) -> str:
    """The URL of something below a folder."""
    folder = url if url.endswith("://") else url.rstrip("/") + "/"
    return folder + "/".join(name.strip("/") for name in names)


def exists(url: str) -> bool:
    """Whether there is a file or folder."""
    filesystem, path = resolve(url)
    with _failing_as(InputError, "look at", url):
        filesystem.invalidate_cache()
        return bool(filesystem.exists(path))


def file_info(url: str) -> FileInfo:
    """Size and version of one file as they are now.

    Raises:
        InputError: there is no such file, or it cannot be looked at.
    """
    filesystem, path = resolve(url)
    with _failing_as(InputError, "look at", url):
        filesystem.invalidate_cache()
        return _file_info(url, filesystem.info(path))


def read_bytes(url: str) -> bytes:
    """All bytes of a file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    filesystem, path = resolve(url)
    with _failing_as(InputError, "read", url):
        filesystem.invalidate_cache()
        return bytes(filesystem.cat_file(path))


def open_input(url: str, cache: str = "readahead") -> BinaryIO:
    """A seekable binary file for reading; the caller closes it.

    Args:
        url: path or URL.
        cache: fsspec's name of how remote bytes are held; ``none`` where the reader buffers by itself.

    Raises:
        InputError: there is no such file, or it cannot be opened.
    """
    filesystem, path = resolve(url)
    with _failing_as(InputError, "open", url):
        if is_local(url):
            return open(path, "rb")
        stream: BinaryIO = filesystem.open(path, "rb", block_size=4 << 20, cache_type=cache)
        return stream


def write_bytes(url: str, data: bytes) -> None:
    """Writes a file whole or not at all, in place of what was there.

    Raises:
        OutputError: it cannot be written.
    """
    if is_local(url):
        with create(url) as stream:
            stream.write(data)
        return
    filesystem, path = resolve(url)
    with _failing_as(OutputError, "write", url):
        filesystem.pipe_file(path, data)


@contextmanager
def create(url: str) -> Iterator[BinaryIO]:
    """A binary file to write, visible whole when the block ends and never if it fails.

    Locally it is written beside its place under a hidden name, synced and renamed. For other stores it is written to a
    temporary file here and then uploaded, since stores show an upload only once it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    filesystem, path = resolve(url)
    try:
        if is_local(url):
            with _create_locally(Path(path)) as stream:
                yield stream
        else:
            with tempfile.NamedTemporaryFile(prefix="distilbeam-") as stream:
                yield stream  # type: ignore[misc]
                stream.flush()
                with _failing_as(OutputError, "write", url):
                    filesystem.put_file(stream.name, path)
    except OSError as error:
        raise OutputError(f"cannot write {url!r}: {type(error).__name__}: {error}") from error


def move(source: str, target: str) -> None:
    """Moves a file inside one store, in place of what was there; atomic on a local disk.

    Raises:
        OutputError: it cannot be moved.
    """
    filesystem, old = resolve(source)
    _, new = resolve(target)
    with _failing_as(OutputError, "move", source):
        if is_local(source):
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            Path(old).replace(new)
        else:
            filesystem.cp_file(old, new)
            filesystem.rm_file(old)


def delete(url: str) -> None:
    """Deletes a file, or a folder with all below it; nothing happens where there is none.

    Raises:
        OutputError: it cannot be deleted.
    """
    filesystem, path = resolve(url)
    with _failing_as(OutputError, "delete", url):
        if is_local(url):
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)
            return
        filesystem.invalidate_cache()
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def list_files(url: str) -> list[FileInfo]:
    """All files below a folder, hidden ones too, sorted by URL; none if there is no such folder.

    Raises:
        InputError: the folder cannot be listed.
    """
    filesystem, path = resolve(url)
    with _failing_as(InputError, "list", url):
        filesystem.invalidate_cache()
        found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    return _sorted(url, found)


def match_files(pattern: str) -> list[FileInfo]:
    """The data files that a file name, a glob or a folder stands for, sorted by URL.

    A folder stands for all files below it. Below a folder, and where a glob matches folders, names that begin with
    ``.`` or ``_`` are left out, as in Spark and Hive, and so is an output of distilbeam in a folder of its own: what a
    job has written beside its input is not input of the next.

    Raises:
        InputError: nothing matches, or the store cannot be listed.
    """
    filesystem, path = resolve(pattern)
    with _failing_as(InputError, "list", pattern):
        filesystem.invalidate_cache()
        if filesystem.isfile(path):
            return [_file_info(pattern if not is_local(pattern) else path, filesystem.info(path))]
        found: dict[str, dict[str, Any]] = {}
        roots = [path]
        magic = re.search(r"[*?\[]", path)
        if magic and not filesystem.isdir(path):
            literal = path[: magic.start()].rpartition("/")[0]
            matches = filesystem.glob(path, detail=True)
            visible = {name: info for name, info in matches.items() if _is_visible(name, literal, path)}
            found = {name: info for name, info in visible.items() if info["type"] == "file"}
            roots = [name for name, info in visible.items() if info["type"] == "directory" and "**" not in path]
        for root in roots:
            below = filesystem.find(root, detail=True)
            outputs = _outputs_below(root, below)
            found.update(
                (name, info) for name, info in below.items() if _is_visible(name, root) and not name.startswith(outputs)
            )
    # Object stores keep empty objects named "folder/" to stand for folders.
    files = {name: info for name, info in found.items() if not (name.endswith("/") and not info.get("size"))}
    if not files:
        raise InputError(f"no file matches {pattern!r}; give a file, a glob or a folder that holds data files")
    return _sorted(pattern, files)


def _outputs_below(root: str, names: Iterable[str]) -> tuple[str, ...]:
    """Folders below ``root``, each with a slash at its end, that hold an output of distilbeam."""
    marker = "/_distilbeam/"
    folders = {name.partition(marker)[0] for name in names if marker in name}
    return tuple(folder + "/" for folder in folders - {root.rstrip("/")})


def _split(url: str) -> tuple[str, str]:
    protocol, separator, rest = url.partition("://")
    if separator:
        return protocol.lower(), rest.partition("/")[0]
    return "file", ""


def _masked(url: str) -> str:
    """The URL without what may be a secret: a password, which may hold a slash, and a query."""
    return re.sub(r"://[^/@]*:.*@", "://***@", url).partition("?")[0]


def _named(like: str, path: str) -> str:
    """The URL of a store's inner path, spelled as the URL the user gave."""
    protocol, authority = _split(like)
    if protocol in _LOCAL:
        return path
    path = path.lstrip("/")
    if "@" in authority:  # abfs://container@account: the inner path holds the container alone
        return f"{protocol}://{authority}/{path.partition('/')[2]}"
    return f"{protocol}://{path}"


def _file_info(url: str, info: dict[str, Any]) -> FileInfo:
    if info["type"] != "file":
        raise InputError(f"{url!r} is a folder, not a file")
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    if isinstance(version, datetime):  # a store may give a date here and seconds there
        version = version.timestamp()
    return FileInfo(url, int(info["size"]), str(version).strip('"'))


def _sorted(like: str, found: dict[str, dict[str, Any]]) -> list[FileInfo]:
    infos = [_file_info(_named(like, name), info) for name, info in found.items() if info["type"] == "file"]
    return sorted(infos, key=lambda info: info.url)


def _is_visible(path: str, root: str, pattern: str = "") -> bool:
    """Whether no name below the root is hidden, save for names that the pattern itself spells out."""
    asked = [part for part in pattern.split("/") if part[:1] in _HIDDEN]
    return not any(
        name[:1] in _HIDDEN and not any(fnmatchcase(name, part) for part in asked)
        for name in path.removeprefix(root).split("/")
        if name
    )


@contextmanager
def _failing_as(kind: type[DistilbeamError], what: str, url: str) -> Iterator[None]:
    try:
        yield
    except DistilbeamError:
        raise
    except FileNotFoundError as error:
        raise kind(f"cannot {what} {url!r}: there is no such file or folder") from error
    except Exception as error:
        raise kind(f"cannot {what} {url!r}: {type(error).__name__}: {error}") from error


@contextmanager
def _create_locally(path: Path) -> Iterator[BinaryIO]:
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a power cut too
    finally:
        os.close(folder)
