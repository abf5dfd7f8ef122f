"""The splits of a manifest that are too many for one file, in pieces of bounded size.

``OUT/_distilbeam/manifest/000007-00000-1a2b3c4d5e6f7a8b.json.zst`` is the first piece of commit 7: the commit's number,
the piece's, and the beginning of its SHA-256. Pieces are written before the manifest that names them, each with its
hash and size. No two commits share a piece, and a commit deletes only those of earlier ones, so that whoever cleans up
late deletes none that is still named.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage import filesystems

from .records import is_count

__all__ = ["MAX_JSON_BYTES", "PIECES", "PIECE_BYTES", "Piece", "in_pieces", "piece_number", "read_piece", "write_piece"]

PIECES = "_distilbeam/manifest"
MAX_JSON_BYTES = 256 << 20
"""A larger manifest, piece of one, history entry or staged record is refused unread: it would cost more memory than it
may."""
PIECE_BYTES = 32 << 20
"""JSON of a piece, at most, unless a single split has more. Splits that take no more lie in the manifest itself."""

_NAME = re.compile(rf"{PIECES}/(\d{{6,12}})-\d{{5,}}-[0-9a-f]{{16}}\.json\.zst")


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece as the manifest names it.

    Attributes:
        path: below the output folder.
        splits: number of splits.
        bytes: of the file.
        json_bytes: of the JSON in it.
        sha256: of the file.
    """

    path: str
    splits: int
    bytes: int
    json_bytes: int
    sha256: str

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Piece:
        """The piece in a manifest.

        Raises:
            TypeError, ValueError: it is none that we could have written.
        """
        piece = cls(**fields)
        counts = (piece.splits, piece.bytes, piece.json_bytes)
        if _NAME.fullmatch(piece.path) is None or not all(map(is_count, counts)) or not isinstance(piece.sha256, str):
            raise ValueError("not a piece of a manifest")
        return piece


def in_pieces(splits: Iterable[Mapping[str, Any]]) -> Iterator[list[bytes]]:
    """The splits, as JSON values, in groups whose JSON takes at most ``PIECE_BYTES``."""
    group: list[bytes] = []
    size = 0
    for split in splits:
        data = json.dumps(split, ensure_ascii=False, separators=(",", ":")).encode()
        if group and size + len(data) > PIECE_BYTES:
            yield group
            group, size = [], 0
        group.append(data)
        size += len(data) + 1
    if group:
        yield group


def write_piece(output: str, commit: int, number: int, group: list[bytes]) -> Piece:
    """Writes one piece, whole or not at all; again with the same contents is harmless.

    Raises:
        OutputError: it cannot be written.
    """
    text = b"[" + b",\n".join(group) + b"]"
    data = pa.compress(text, codec="zstd", asbytes=True)
    digest = hashlib.sha256(data).hexdigest()
    path = f"{PIECES}/{commit:06d}-{number:05d}-{digest[:16]}.json.zst"
    filesystems.write_bytes(filesystems.join(output, path), data)
    return Piece(path, len(group), len(data), len(text), digest)


def read_piece(output: str, piece: Piece) -> list[dict[str, Any]]:
    """The splits in a piece, as JSON values.

    Raises:
        InputError: it is not there, too large, or not what the manifest says.
    """
    url = filesystems.join(output, piece.path)
    if max(piece.bytes, piece.json_bytes, filesystems.file_info(url).size) > MAX_JSON_BYTES:
        raise InputError(f"{url!r} has more than the {MAX_JSON_BYTES} bytes that distilbeam reads; it may be damaged")
    data = filesystems.read_bytes(url)
    try:
        if (len(data), hashlib.sha256(data).hexdigest()) != (piece.bytes, piece.sha256):
            raise ValueError
        text = pa.decompress(data, decompressed_size=piece.json_bytes, codec="zstd", asbytes=True)
        splits = json.loads(text)
        if not isinstance(splits, list) or len(splits) != piece.splits:
            raise ValueError
    except (ValueError, RecursionError, OSError):
        raise InputError(f"{url!r} is not what the manifest says; it may be damaged") from None
    return splits


def piece_number(path: str) -> int | None:
    """The number of the commit that a piece was written for; None if the path is not that of a piece."""
    match = _NAME.fullmatch(path)
    return int(match[1]) if match else None
