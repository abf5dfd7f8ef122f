"""The bytes of a damaged compressed file that can be trusted: right before a damage values may be other ones."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from .base import Unreadable
from .compression import Damaged, Unpacked, open_stream

__all__ = ["open_trusted", "trusted_bytes"]

# What a decompressor gives right before it notices a damage may be wrong already: a block of bzip2 holds up to 900,000
# bytes, one of deflate rarely more than this.
_DOUBTFUL_BYTES = 1 << 20
_BEFORE_BAD_LINE = 4 << 10
_READ_BYTES = 1 << 20
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def open_trusted(
    url: str, format: str, compression: str | None, memory: int, *, salvage: bool, lenient: bool = False
) -> Any:
    """A line file for reading, as ``open_stream`` opens it; of a damaged one only what can be trusted.

    Args:
        url: the file.
        format: ``jsonl``, ``csv``, ``tsv`` or ``text``.
        compression: None, ``gzip``, ``bzip2``, ``xz`` or ``zstd``.
        memory: bytes that the window or dictionary of the compression may take.
        salvage: whether the rows before a damage are kept. The file is then unpacked once more, to find the damage.
        lenient: whether a damage is the end of the file.
    """
    stream = open_stream(url, compression, memory, lenient)
    if salvage and isinstance(stream, Unpacked):
        stream.limit = trusted_bytes(url, format, compression, memory, stream.size)
    return stream


@lru_cache(maxsize=256)
def trusted_bytes(url: str, format: str, compression: str | None, memory: int, size: int) -> int | None:
    """The bytes of a compressed file that hold what was once written; None for all that can be unpacked.

    A file that is cut off is right as far as it goes. Where a checksum does not fit, nothing of its stream is certain;
    where data are damaged, not the last mebibyte before. If that part holds a line that is none of the format, the
    damage begins there, and little before it is given up.

    Args:
        url: the file.
        format: ``jsonl``, ``csv``, ``tsv`` or ``text``.
        compression: ``gzip``, ``bzip2``, ``xz`` or ``zstd``.
        memory: bytes that the window or dictionary of the compression may take.
        size: bytes of the file, for another file of the same name.
    """
    total = 0
    with open_stream(url, compression, memory) as stream:
        try:
            while data := stream.read(_READ_BYTES):
                total += len(data)
            return None
        except Damaged as error:
            start = stream.stream_start
            doubtful = start if error.checksum else max(start, total - _DOUBTFUL_BYTES)
        except (Unreadable, OSError, EOFError):
            return None  # cut off, or told by the one who reads
    with open_stream(url, compression, memory) as stream:
        bad = _first_bad_line(stream, format, doubtful, total)
    return doubtful if bad is None else max(doubtful, bad - _BEFORE_BAD_LINE)


def _first_bad_line(stream: Unpacked, format: str, start: int, stop: int) -> int | None:
    """Where the first line behind a byte begins that is no line of the format."""
    left = start
    while left:
        left -= len(stream.read(min(_READ_BYTES, left)))
    rest, position, whole = b"", start, not start
    while position + len(rest) < stop:
        rest += stream.read(min(_READ_BYTES, stop - position - len(rest)))
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if whole and _is_bad(line, format):
                return position
            whole = True  # the first line may have begun before
            position += len(line) + 1
    return None


def _is_bad(line: bytes, format: str) -> bool:
    if _CONTROL.search(line):
        return True
    try:
        text = line.decode()
        if format == "jsonl" and text.strip():
            json.loads(text)
    except (ValueError, RecursionError):
        return True
    return False
