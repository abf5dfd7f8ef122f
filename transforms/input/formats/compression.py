"""Compressed line files: unpacked in bounded memory, each stream of the file after the other."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

import zstandard

from distilbeam.transforms.storage.filesystems import open_input

from .base import Unreadable

__all__ = ["Damaged", "Unpacked", "open_stream"]

_INPUT_BYTES = 1 << 20  # read from the file at once
_PIECE_BYTES = 64 << 10  # given to a decompressor at once
_FIRST_BYTES = 4 << 10  # and as the first piece of a stream, since there are files of very many small streams
_OUTPUT_BYTES = 1 << 20  # taken from it at once
_FREE_BYTES = 64 << 20  # may come out of a packed file however small it is
_MAX_RATIO = 250
_SKIPPABLE = b"\x2a\x4d\x18"  # with 5x before it
_CUT_OFF = "it ends in the middle of its compressed data: it is cut off, or still being written"


class Damaged(Unreadable):
    """Compressed data that are not as they were written.

    Attributes:
        checksum: whether all could be unpacked, and its checksum alone tells so.
    """

    def __init__(self, name: str, checksum: bool) -> None:
        super().__init__(f"its {name} data are damaged")
        self.checksum = checksum


class Unpacked:
    """What a compressed file holds, unless it is so much more than the file that only a bomb can be meant.

    Args:
        raw: the compressed file.
        compression: ``gzip``, ``bzip2``, ``xz`` or ``zstd``.
        memory: bytes that the window or dictionary of the compression may take.
        lenient: whether a damage after the first bytes is the end of the file.

    Attributes:
        limit: bytes that are given at most, where what follows is damaged.
        stream_start: bytes that the streams before the present one hold.
    """

    limit: int | None = None
    stream_start = 0

    def __init__(self, raw: BinaryIO, compression: str, memory: int, lenient: bool = False) -> None:
        self._raw = raw
        self._lenient = lenient
        self._input = _Input(raw)
        self._pieces: Iterator[bytes] = _READERS[compression](self._input, memory)
        self._rest = b""
        self._bytes = self._given = self._streams = 0
        self._failure: Exception | None = None

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(self, *error: object) -> None:
        self._raw.close()

    @property
    def consumed(self) -> int:
        """Bytes of the compressed file that were unpacked so far."""
        return self._input.position

    @property
    def size(self) -> int:
        """Bytes of the compressed file."""
        position = self._raw.tell()
        size = self._raw.seek(0, 2)
        self._raw.seek(position)
        return size

    def read(self, size: int) -> bytes:
        """Up to so many bytes, none at the end. What comes before a damage is given before the damage is told.

        Raises:
            Unreadable: the file is damaged, cut off, needs too much memory, or unpacks to far more than its size.
        """
        if self.limit is not None:
            size = min(size, self.limit - self._given)
            if not size:
                if self._lenient and self._given:
                    return b""
                raise Unreadable("its compressed data are damaged, which also makes the rows right before uncertain")
        data = self._read(size)
        self._given += len(data)
        return data

    def _read(self, size: int) -> bytes:
        pieces = [self._rest] if self._rest else []
        length = len(self._rest)
        while length < size and self._failure is None:
            try:
                piece = next(self._pieces, None)
            except (Unreadable, OSError) as error:
                self._failure = error
                piece = None
            if self._streams != self._input.streams:
                self._streams, self.stream_start = self._input.streams, self._bytes
            if piece is None:
                break
            self._bytes += len(piece)
            if self._bytes > _FREE_BYTES and self._bytes > _MAX_RATIO * self._input.position:
                self._failure = Unreadable(
                    f"it unpacks to more than {_MAX_RATIO} times its size, as a bomb does; if it is sound, unpack it "
                    "before"
                )
            pieces.append(piece)
            length += len(piece)
        if self._failure is not None and not length:
            if self._lenient and self._bytes:
                return b""
            raise self._failure
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._rest = data[size:]
        return data[:size]


def open_stream(url: str, compression: str | None, memory: int, lenient: bool = False) -> Any:
    """A binary file for reading, unpacked if it is compressed; streams after the first are read too.

    Args:
        url: the file.
        compression: None, ``gzip``, ``bzip2``, ``xz`` or ``zstd``.
        memory: bytes that the window or dictionary of the compression may take.
        lenient: whether a damage after the first bytes of a compressed file is its end.

    Raises:
        InputError: there is no such file, or it cannot be opened.
        Unreadable: it is empty, which no compressed file is.
    """
    stream = open_input(url)
    if compression is None:
        return stream
    if not stream.seek(0, 2):
        stream.close()
        raise Unreadable("it is empty, which no compressed file is")
    stream.seek(0)
    return Unpacked(stream, compression, memory, lenient)


class _Input:
    """A compressed file, read in large pieces and handed out in small ones."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._held = b""
        self._at = 0
        self.position = 0  # of the next byte in the file
        self.streams = 0  # begun so far

    def some(self, most: int) -> bytes:
        """Up to so many bytes; none only at the end of the file."""
        if self._at == len(self._held):
            self._held, self._at = self._raw.read(_INPUT_BYTES), 0
        data = self._held[self._at : self._at + most]
        self._at += len(data)
        self.position += len(data)
        return data

    def exactly(self, count: int) -> bytes:
        """So many bytes.

        Raises:
            Unreadable: the file ends before.
        """
        data = self.some(count)
        while len(data) < count:
            more = self.some(count - len(data))
            if not more:
                raise Unreadable(_CUT_OFF)
            data += more
        return data

    def seek(self, position: int) -> None:
        """Goes to a byte."""
        self._raw.seek(position)
        self._held, self._at, self.position = b"", 0, position

    def skip_zeros(self) -> bool:
        """Passes over zeros, as tapes and some uploads pad files with; tells whether anything comes after them."""
        while data := self.some(_FIRST_BYTES):
            if rest := data.lstrip(b"\0"):
                self.give_back(len(rest))
                return True
        return False

    def give_back(self, count: int) -> None:
        """Has the next bytes begin again with the last so many of those that ``some`` has just given."""
        self._at -= count
        self.position -= count


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gunzip:
    """A gzip member, in the manner of ``bz2.BZ2Decompressor``."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


def _streams(source: _Input, name: str, make: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """What the streams of a file hold, one after the other, with zeros between or after them."""
    more = True
    while more:
        start = source.position
        source.streams += 1
        yield from _stream(source, make, start, name)
        more = source.skip_zeros()


def _stream(source: _Input, make: Callable[[], _Decompressor], start: int, name: str) -> Iterator[bytes]:
    decompressor = make()
    most = _FIRST_BYTES
    fed = start
    given = 0
    held = b""  # kept back, since a block of bzip2 may turn out to be damaged once its beginning was taken
    while not decompressor.eof:
        data = b""
        if decompressor.needs_input:
            fed = source.position
            data = source.some(most)
            most = min(2 * most, _PIECE_BYTES)
        try:
            piece = decompressor.decompress(data, _OUTPUT_BYTES)
        except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
            if isinstance(error, lzma.LZMAError) and "emory usage" in str(error):
                raise Unreadable(
                    "its dictionary takes more memory than `decode_bytes` allows; raise `decode_bytes`, or unpack "
                    "it before"
                ) from None
            # A decompressor that fails keeps what it has made at the same call.
            for piece in _salvaged(source, make, start, fed, given):
                given += len(piece)
                yield piece
            if fed > start or given:
                raise Damaged(name, "incorrect" in str(error)) from None
            if start:
                raise Unreadable(f"after the end of its {name} data it has bytes that are none") from None
            raise Unreadable(f"it is no {name} file, or damaged") from None
        if piece:
            if held:
                given += len(held)
                yield held
            held = piece
        elif not data and decompressor.needs_input and not decompressor.eof:
            if held:
                yield held
            raise Unreadable(_CUT_OFF)
    if held:
        yield held
    source.give_back(len(decompressor.unused_data))


def _salvaged(source: _Input, make: Callable[[], _Decompressor], start: int, fed: int, given: int) -> Iterator[bytes]:
    """What a stream that starts at a byte holds beyond so many bytes that it has given.

    It is read anew, and byte by byte from ``fed`` on, the piece that was put into the decompressor before it failed.
    """
    source.seek(start)
    decompressor = make()
    try:
        while not decompressor.eof:
            data = b""
            if decompressor.needs_input:
                data = source.some(min(_PIECE_BYTES, max(fed - source.position, 1)))
                if not data:
                    return
            piece = decompressor.decompress(data, _OUTPUT_BYTES)
            if len(piece) > given:
                yield piece[given:]
            given = max(given - len(piece), 0)
    except (zlib.error, OSError, EOFError, lzma.LZMAError):
        return


def _gzip(source: _Input, memory: int) -> Iterator[bytes]:
    return _streams(source, "gzip", _Gunzip)


def _bzip2(source: _Input, memory: int) -> Iterator[bytes]:
    return _streams(source, "bzip2", bz2.BZ2Decompressor)


def _xz(source: _Input, memory: int) -> Iterator[bytes]:
    return _streams(source, "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory))


def _zstd(source: _Input, memory: int) -> Iterator[bytes]:
    """Frames of Zstandard, block by block: a block gives at most 128 KiB, and its end in the file is known."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    more = True
    while more:
        magic = source.exactly(4)
        if magic[0] >> 4 == 5 and magic[1:] == _SKIPPABLE:
            left = int.from_bytes(source.exactly(4), "little")
            while left:
                left -= len(source.exactly(min(left, _PIECE_BYTES)))
        else:
            source.streams += 1
            yield from _frame(source, decompressor, magic, memory)
        more = source.skip_zeros()


def _frame(source: _Input, decompressor: zstandard.ZstdDecompressor, magic: bytes, memory: int) -> Iterator[bytes]:
    head = magic + source.exactly(1)
    try:
        head += source.exactly(zstandard.frame_header_size(head + bytes(16)) - len(head))
        frame = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError:
        if source.position > len(head):
            raise Unreadable("after the end of its zstd data it has bytes that are none") from None
        raise Unreadable("it is no zstd file, or damaged") from None
    if frame.dict_id:
        raise Unreadable("its zstd data need a dictionary, which is not supported; unpack it with zstd -D before")
    if frame.window_size > memory:
        log = (frame.window_size - 1).bit_length()
        raise Unreadable(
            f"its zstd window takes {frame.window_size} bytes of memory, more than `decode_bytes={memory}` allows; "
            f"raise `decode_bytes` to that, or unpack it with zstd -d --long={log}"
        )
    unpacking = decompressor.decompressobj()
    data = head
    last = False
    while True:
        try:
            piece = unpacking.decompress(data)
        except zstandard.ZstdError as error:
            raise Damaged("zstd", "checksum" in str(error)) from None
        if piece:
            yield piece
        if last:
            break
        header = source.exactly(3)
        word = int.from_bytes(header, "little")
        last = bool(word & 1)
        data = header + source.exactly(1 if word >> 1 & 3 == 1 else word >> 3)
        if last and frame.has_checksum:
            data += source.exactly(4)


_READERS: dict[str, Callable[[_Input, int], Iterator[bytes]]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "zstd": _zstd,
}
