"""Opening the files of a checkpoint that nobody vouches for: regular ones only, and no more of them than expected."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from distilbeam.transforms.errors import CheckpointError

__all__ = [
    "MAX_SETTINGS_BYTES",
    "digest",
    "instead_of",
    "is_there",
    "open_regular",
    "parse_json",
    "parse_object",
    "plain",
    "read_json",
    "read_whole",
    "shown",
]

_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_REFUSALS = (b'{"error"', b"entry not found", b"repository not found", b"invalid username or password", b"<?xml")

MAX_SETTINGS_BYTES = 16 * 1024 * 1024
"""Bytes of a file that is read whole, at most: those of every file but the weights."""


def is_there(path: Path) -> bool:
    """Whether a folder has an entry of this name, be it a file or not: what is no file is refused, not overlooked."""
    return os.path.lexists(path)


def open_regular(path: Path) -> BinaryIO:
    """A regular file, or a link to one as the Hub's cache has them, open for reading.

    Raises:
        FileNotFoundError: it is not there.
        CheckpointError: it is a pipe, a device or a folder, or cannot be opened.
    """
    try:
        # Looked at before it is opened, since opening alone can act on a device or wait for a pipe.
        if stat.S_ISREG(path.stat().st_mode):
            number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            if stat.S_ISREG(os.fstat(number).st_mode):
                return os.fdopen(number, "rb")
            os.close(number)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot open {shown(path)}: {_reason(error)}") from None
    raise CheckpointError(f"{shown(path)} is no regular file; take the checkpoint as it was published")


def read_whole(path: Path) -> bytes:
    """The bytes of a file of at most ``MAX_SETTINGS_BYTES``.

    Raises:
        FileNotFoundError: it is not there.
        CheckpointError: it is larger, no regular file, or cannot be read.
    """
    with open_regular(path) as file:
        try:
            content = file.read(MAX_SETTINGS_BYTES + 1)
        except OSError as error:
            raise CheckpointError(f"cannot read {shown(path)}: {_reason(error)}") from None
    if len(content) > MAX_SETTINGS_BYTES:
        raise CheckpointError(
            f"{shown(path)} has more than {MAX_SETTINGS_BYTES >> 20} MiB, which no file of a DistilBERT but its "
            "weights has; take the checkpoint as it was published"
        )
    if other := instead_of(content):
        raise CheckpointError(f"{shown(path)} {other}")
    return content


def instead_of(content: bytes) -> str | None:
    """What is said of a file, by its first bytes, that was saved in the place of the real one; None of any other."""
    start = content[:512].lstrip().lower()
    if start.startswith(_POINTERS):
        return (
            "is a Git LFS pointer, which only names the real file; run 'git lfs pull' in the clone, or download the "
            "file itself"
        )
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, saved in the place of the file; download it again, logged in if that is needed"
    if start.startswith(_REFUSALS):
        return "is an error message of a server, saved in the place of the file; download it again"
    return None


def parse_json(content: bytes, path: Path, *, unique: bool = False) -> Any:
    """JSON; with ``unique`` no object may name a key twice, which parsers understand differently.

    Raises:
        CheckpointError: it is not valid.
    """
    try:
        return json.loads(content, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{shown(path)} is not valid JSON; copy it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        CheckpointError: it is not there or holds something else.
    """
    try:
        content = parse_json(read_whole(path), path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{shown(path.parent)} has no {path.name}; give the folder of a DistilBERT checkpoint"
        ) from None
    return _object(content, path)


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """As ``parse_json``, and an object.

    Raises:
        CheckpointError: it is not.
    """
    return _object(parse_json(content, path), path)


def _object(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown(path)} is not a JSON object; copy it again")
    return content


def digest(contents: Sequence[bytes]) -> str:
    """SHA-256 over several contents, one after the other."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content)
    return found.hexdigest()


def shown(value: object, limit: int = 200) -> str:
    """A path, or a value that a checkpoint holds, as part of a message: on one line, and not endless."""
    return plain(str(value), 4096) if isinstance(value, Path) else plain(repr(value), limit)


def plain(text: str, limit: int = 200) -> str:
    """A text of a checkpoint's as part of a message, as ``shown`` but without quotes."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in cut)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
