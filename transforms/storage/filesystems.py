"""Files and folders on any fsspec store, named by path or URL.

What fails for a moment is tried again, see ``retries``. A file is written whole or not at all, and what was written or
read has the size it must have, or an error says so.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.core import url_to_fs

from distilbeam.transforms.discretion import cause, lacks_credentials
from distilbeam.transforms.errors import DistilbeamError, InputError, OutputError, SettingsError

from . import stores
from .retries import retry
from .urls import EXTRAS, check_url, is_local, join, named, split

__all__ = [
    "FileInfo",
    "Match",
    "NoFilesError",
    "check_url",
    "create",
    "delete",
    "delete_empty",
    "download",
    "exists",
    "failing_as",
    "file_info",
    "is_local",
    "join",
    "list_files",
    "list_names",
    "match_all",
    "match_files",
    "move",
    "nothing_matches",
    "open_input",
    "read_bytes",
    "resolve",
    "sync",
    "write_bytes",
]

_HIDDEN = ("_", ".")
# What changes when a file does, best first. Stores spell it differently.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file: its path or URL, its bytes, and a text that changes when the file does."""

    url: str
    size: int
    version: str


def resolve(url: str | os.PathLike[str]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path inside it.

    Raises:
        SettingsError: as ``check_url``, or the driver of the store is not installed.
    """
    url = check_url(url)
    protocol, _ = split(url)
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        cure = f"pip install 'distilbeam[{extra}]'" if extra else str(error)
        raise SettingsError(f"{protocol}:// needs a driver that is not installed: {cure}") from error
    return filesystem, str(path)


def exists(url: str) -> bool:
    """Whether there is a file or folder."""
    filesystem, path = resolve(url)
    with failing_as(InputError, "look at", url):
        return stores.find_info(filesystem, path) is not None


def file_info(url: str) -> FileInfo:
    """Size and version of one file as they are now.

    Raises:
        InputError: there is no such file, or it cannot be looked at.
    """
    filesystem, path = resolve(url)
    with failing_as(InputError, "look at", url):
        return _file_info(url, stores.info(filesystem, path))


def read_bytes(url: str) -> bytes:
    """All bytes of a file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    filesystem, path = resolve(url)
    with failing_as(InputError, "read", url):
        if is_local(url):
            return Path(path).read_bytes()
        return stores.read_all(filesystem, path)


def open_input(url: str, cache: str = "readahead") -> BinaryIO:
    """A seekable binary file for reading; the caller closes it.

    A read from a store gives all the bytes asked for that the file has, or raises OSError: a lost connection or a body
    that was cut is read again.

    Args:
        url: path or URL.
        cache: fsspec's name of how remote bytes are held; ``none`` where the reader buffers by itself.

    Raises:
        InputError: there is no such file, or it cannot be opened.
    """
    filesystem, path = resolve(url)
    with failing_as(InputError, "open", url):
        if is_local(url):
            return open(path, "rb")
        return stores.RemoteFile(filesystem, path, cache)  # type: ignore[return-value]


def download(url: str, path: str | os.PathLike[str]) -> None:
    """Copies a file to a path on this machine.

    Raises:
        InputError: there is no such file, it cannot be read, or the copy cannot be written.
    """
    filesystem, source = resolve(url)
    with failing_as(InputError, "fetch", url):
        stores.fetch(filesystem, source, os.fspath(path))


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
    with failing_as(OutputError, "write", url):
        stores.write(filesystem, path, len(data), lambda: filesystem.pipe_file(path, data))


@contextmanager
def create(url: str) -> Iterator[BinaryIO]:
    """A binary file to write, visible whole when the block ends and never if it fails.

    Locally it is written beside its place under a hidden name, synced and renamed. For other stores it is written to a
    file without a name here, which is gone with the process however that ends, and then uploaded, since stores show an
    upload only once it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    filesystem, path = resolve(url)
    try:
        if is_local(url):
            with stores.create_locally(Path(path)) as stream:
                yield stream
        else:
            with stores.unnamed_file() as (stream, name):
                yield stream
                stream.flush()
                size = stream.tell()
                with failing_as(OutputError, "write", url):
                    stores.write(filesystem, path, size, lambda: filesystem.put_file(name, path))
    except OSError as error:
        raise OutputError(f"cannot write {url!r}: {cause(error)}") from error


def move(source: str, target: str) -> None:
    """Moves a file inside one store, in place of what was there; atomic on a local disk.

    Elsewhere it is copied, and deleted only once the copy has its size. A local move lasts once ``sync`` was called.

    Raises:
        OutputError: it cannot be moved.
    """
    filesystem, old = resolve(source)
    _, new = resolve(target)
    with failing_as(OutputError, "move", source):
        if is_local(source):
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            Path(old).replace(new)
            return
        size = int(stores.info(filesystem, old)["size"])
        stores.write(filesystem, new, size, lambda: filesystem.cp_file(old, new))
        stores.remove_file(filesystem, old)


def delete(url: str) -> None:
    """Deletes a file, or a folder with all below it; nothing happens where there is none.

    Raises:
        OutputError: it cannot be deleted.
    """
    filesystem, path = resolve(url)
    with failing_as(OutputError, "delete", url):
        if not is_local(url):
            stores.remove(filesystem, path)
        elif Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def delete_empty(folder: str) -> None:
    """Deletes a local folder if nothing is in it; stores have no empty folders."""
    if is_local(folder):
        _, path = resolve(folder)
        with suppress(OSError):
            Path(path).rmdir()


def sync(folder: str) -> None:
    """Makes the names in a local folder last through a power cut; stores need no such thing.

    Raises:
        OutputError: the disk refuses.
    """
    if not is_local(folder):
        return
    _, path = resolve(folder)
    with failing_as(OutputError, "sync", folder), suppress(FileNotFoundError):
        stores.sync_folder(Path(path))


def list_files(url: str) -> list[FileInfo]:
    """All files below a folder, hidden ones too, sorted by URL; none if there is no such folder.

    Raises:
        InputError: the folder, or one below it, cannot be listed.
    """
    filesystem, path = resolve(url)
    with failing_as(InputError, "list", url):
        return _sorted(url, stores.find(filesystem, path))


@dataclass(frozen=True, slots=True)
class Match:
    """What a file name, a glob or a folder stands for.

    Attributes:
        files: the data files, sorted by URL.
        seen: all files that were listed on the way, hidden ones too, by URL.
        root: the folder, or the part of a glob before its first folder with magic, as a URL; empty for a file's name.
        is_glob: whether it is a glob.
    """

    files: list[FileInfo]
    seen: dict[str, FileInfo]
    root: str
    is_glob: bool


def match_files(pattern: str) -> list[FileInfo]:
    """The data files that a file name, a glob or a folder stands for, sorted by URL.

    A folder stands for all files below it. Below a folder, and where a glob matches folders, names that begin with
    ``.`` or ``_`` are left out, as in Spark and Hive, and so is an output of distilbeam in a folder of its own: what a
    job has written beside its input is not input of the next. Links on a local disk stand for what they lead to, save
    for links to folders where the glob has ``**``.

    Raises:
        InputError: nothing matches, a link leads nowhere, or the store cannot be listed.
    """
    match = match_all(pattern)
    if not match.files:
        raise nothing_matches(pattern)
    return match.files


class NoFilesError(InputError):
    """A pattern matches no file."""


def nothing_matches(pattern: str) -> NoFilesError:
    """The error for a pattern without files."""
    return NoFilesError(f"no file matches {pattern!r}; give a file, a glob or a folder that holds data files")


def match_all(pattern: str) -> Match:
    """As ``match_files``, with all that was seen, and without an error where nothing matches."""
    filesystem, path = resolve(pattern)
    with failing_as(InputError, "list", pattern):
        there = stores.find_info(filesystem, path)
        if there and there["type"] == "file":
            file = _file_info(pattern if not is_local(pattern) else path, there)
            return Match([file], {file.url: file}, "", False)
        found: dict[str, dict[str, Any]] = {}
        seen: dict[str, dict[str, Any]] = {}
        roots = [path]
        literal = path
        magic = None if there else re.search(r"[*?\[]", path)
        if magic:
            literal = path[: magic.start()].rpartition("/")[0]
            matches = retry(lambda: filesystem.glob(path, detail=True))
            seen = {name: info for name, info in matches.items() if info["type"] == "file"}
            visible = {
                name: stores.followed(info) for name, info in matches.items() if _is_visible(name, literal, path)
            }
            found = {name: info for name, info in visible.items() if info["type"] != "directory"}
            roots = [name for name, info in visible.items() if info["type"] == "directory" and "**" not in path]
        for root in roots:
            below = stores.find(filesystem, root, follow=True)
            seen.update(below)
            outputs = _outputs_below(root, below)
            found.update(
                (name, info) for name, info in below.items() if _is_visible(name, root) and not name.startswith(outputs)
            )
    # Object stores keep empty objects named "folder/" to stand for folders.
    files = {name: info for name, info in found.items() if not (name.endswith("/") and not info.get("size"))}
    for name, info in files.items():
        if info["type"] != "file" and info.get("islink"):
            raise InputError(f"{name!r} is a link that leads to no file; mend it or take it out of the input")
    everything = {each.url: each for each in _sorted(pattern, {**seen, **files})}
    listed = [everything[url] for url in sorted(named(pattern, name) for name in files) if url in everything]
    return Match(listed, everything, named(pattern, literal), magic is not None)


def list_names(folder: str) -> list[str]:
    """The names of what lies directly in a folder; none if there is no such folder.

    Raises:
        InputError: it cannot be listed.
    """
    filesystem, path = resolve(folder)
    with failing_as(InputError, "list", folder):
        try:
            listed = retry(lambda: filesystem.ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [str(name).rstrip("/").rpartition("/")[2] for name in listed]


def _outputs_below(root: str, names: Iterable[str]) -> tuple[str, ...]:
    """Folders below ``root``, each with a slash at its end, that hold an output of distilbeam."""
    marker = "/_distilbeam/"
    folders = {name.partition(marker)[0] for name in names if marker in name}
    return tuple(folder + "/" for folder in folders - {root.rstrip("/")})


def _file_info(url: str, info: dict[str, Any]) -> FileInfo:
    if info["type"] != "file":
        raise InputError(f"{url!r} is a folder, not a file")
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    if isinstance(version, datetime):  # a store may give a date here and seconds there
        version = version.timestamp()
    return FileInfo(url, int(info["size"]), str(version).strip('"'))


def _sorted(like: str, found: dict[str, dict[str, Any]]) -> list[FileInfo]:
    infos = [_file_info(named(like, name), info) for name, info in found.items() if info["type"] == "file"]
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
def failing_as(kind: type[DistilbeamError], what: str, url: str) -> Iterator[None]:
    """Turns what a disk or a driver raises into an error of ours that names the file and holds no credentials."""
    try:
        yield
    except DistilbeamError:
        raise
    except FileNotFoundError as error:
        raise kind(f"cannot {what} {url!r}: there is no such file or folder") from error
    except Exception as error:
        failure = SettingsError if lacks_credentials(error) else kind
        raise failure(f"cannot {what} {url!r}: {cause(error)}") from error
