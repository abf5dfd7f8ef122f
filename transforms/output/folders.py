"""The files of a folder on any store, and work on many of them at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from distilbeam.transforms.storage import filesystems

__all__ = ["concurrently", "listed", "sha256_of"]

T = TypeVar("T")
R = TypeVar("R")


def listed(output: str) -> dict[str, filesystems.FileInfo]:
    """Every file below a folder, by path below it.

    Raises:
        InputError: the folder cannot be listed.
    """
    _, root = filesystems.resolve(output)
    infos = filesystems.list_files(output)
    return {filesystems.resolve(info.url)[1].removeprefix(root.rstrip("/")).lstrip("/"): info for info in infos}


def sha256_of(output: str, path: str) -> str:
    """SHA-256 of a file below the output folder.

    Raises:
        InputError: it cannot be read.
    """
    digest = hashlib.sha256()
    with filesystems.open_input(filesystems.join(output, path)) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def concurrently(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Calls a function that waits for a store on every item, in threads; the first error is raised."""
    items = list(items)
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(16, len(items)), thread_name_prefix="distilbeam-output") as pool:
        return list(pool.map(function, items))
