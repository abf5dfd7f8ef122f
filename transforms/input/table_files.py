"""Files of a table's metadata, which whoever can write into its folder has made: read whole, and no more than that."""

from __future__ import annotations

import bz2
import io
import re
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa
import zstandard

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage.filesystems import failing_as, open_input

from .formats.base import Unreadable
from .formats.compression import Unpacked

__all__ = ["MAX_FILE_BYTES", "path_of", "plain_avro", "read_bounded", "too_large"]

MAX_FILE_BYTES = 256 << 20
"""Bytes of one file of a table's metadata at most, unpacked."""

_WINDOW = 64 << 20
_SYNC = 16
_FILE_URL = re.compile(r"file:(?://)?(?=/)")


def path_of(location: str) -> str:
    """A location in which a local path is none of the URLs that Hadoop, Java and others make of it.

    >>> path_of("file:/lake/t"), path_of("file:///lake/t"), path_of("s3://lake/t")
    ('/lake/t', '/lake/t', 's3://lake/t')
    """
    return _FILE_URL.sub("", location, count=1) if location.startswith("file:") else location


def too_large(url: str) -> InputError:
    """The error for a file of a table's metadata that is larger than such files are."""
    return InputError(
        f"{url!r} holds more than {MAX_FILE_BYTES >> 20} MiB, which is more than is read of one file of a table's "
        "metadata; if the table is sound, expire its old versions, or export it to Parquet"
    )


def read_bounded(url: str) -> bytes:
    """The bytes of a file, unpacked if gzip packed it.

    Raises:
        InputError: it cannot be read, or holds more than ``MAX_FILE_BYTES``.
    """
    with failing_as(InputError, "read", url), open_input(url, "none") as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if data.startswith(b"\x1f\x8b"):
        try:
            unpacked = Unpacked(io.BytesIO(data), "gzip", _WINDOW)
            data = unpacked.read(MAX_FILE_BYTES + 1)
            if len(data) <= MAX_FILE_BYTES:
                unpacked.read(1)  # a damage is told only after what comes before it
        except Unreadable as error:
            raise InputError(f"cannot read {url!r}: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise too_large(url)
    return data


def plain_avro(data: bytes, url: str) -> bytes:
    """An Avro file whose blocks are not packed, with what is in those of another one.

    What reads it then has nothing to unpack, so that a small file stays small.

    Args:
        data: the file.
        url: its name, for messages.

    Raises:
        InputError: its blocks hold more than ``MAX_FILE_BYTES``, or are packed in a way that is not known.
        ValueError, EOFError: it is no Avro file, or is damaged.
    """
    source = _Source(data)
    magic, entries = source.take(4), dict(source.entries())
    if magic != b"Obj\x01":
        raise ValueError("no Avro file")
    sync = source.take(_SYNC)
    codec = entries.get(b"avro.codec", b"null").decode("ascii", "replace")
    if codec not in _CODECS:
        raise InputError(f"the blocks of {url!r} are packed in a way that is not read; write it anew with deflate")
    plain = bytearray(magic) + _long(len(entries))
    for key, value in (entries | {b"avro.codec": b"null"} if b"avro.codec" in entries else entries).items():
        plain += _long(len(key)) + key + _long(len(value)) + value
    plain += _long(0) + sync
    while not source.ended:
        count, block = source.long(), source.sized()
        if source.take(_SYNC) != sync:
            raise ValueError("damaged Avro file")
        left = MAX_FILE_BYTES - len(plain)
        unpacked = _CODECS[codec](block, left + 1)
        if len(unpacked) > left:
            raise too_large(url)
        plain += _long(count) + _long(len(unpacked)) + unpacked + sync
    return bytes(plain)


class _Source:
    """Avro's primitive values, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self._at:
            raise EOFError
        self._at += count
        return self._data[self._at - count : self._at]

    def long(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return (value >> 1) ^ -(value & 1)
        raise ValueError("damaged Avro file")

    def sized(self) -> bytes:
        return self.take(self.long())

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        while count := self.long():
            if count < 0:
                count = -count
                self.long()
            for _ in range(count):
                yield self.sized(), self.sized()


def _long(value: int) -> bytes:
    rest, found = (value << 1) ^ (value >> 63), bytearray()
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*found, rest])


def _zstandard(block: bytes, most: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(block) as stream:
        return stream.read(most)


def _snappy(block: bytes, most: int) -> bytes:
    size = shift = 0
    for byte in block[:5]:  # the length of what was packed, which nothing longer comes out of
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    # After the data stands a checksum of four bytes.
    return bytes(most) if size >= most else pa.decompress(block[:-4], size, "snappy", asbytes=True)


_CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "null": lambda block, most: block,
    "deflate": lambda block, most: zlib.decompressobj(-zlib.MAX_WBITS).decompress(block, most),
    "bzip2": lambda block, most: bz2.BZ2Decompressor().decompress(block, most),
    "zstandard": _zstandard,
    "snappy": _snappy,
}
