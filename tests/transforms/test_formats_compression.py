"""Compressed files hold what Python's own libraries find in them, in bounded memory, up to where they are damaged."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import random
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.formats.base import Unreadable, reading
from distilbeam.transforms.input.formats.compression import Unpacked, open_stream
from distilbeam.transforms.input.formats.kinds import detect

MEMORY = 512 << 20
LINES = b"".join(b'{"id": %d, "text": "line %x"}\n' % (n, n * n * 7919) for n in range(6_000))
FIRST, SECOND = LINES[: len(LINES) // 3], LINES[len(LINES) // 3 :]
SKIPPABLE = b"\x53\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"
PACK = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstandard.compress,
}
NAMES = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zstd": ".zst"}


def unpacked(data: bytes, compression: str, *, size: int = 1 << 20, memory: int = MEMORY) -> tuple[bytes, str | None]:
    """All that can be read, and why no more can."""
    stream = Unpacked(io.BytesIO(data), compression, memory)
    found = b""
    try:
        while chunk := stream.read(size):
            assert len(chunk) <= size
            found += chunk
    except Unreadable as error:
        return found, str(error)
    assert stream.consumed == len(data)
    return found, None


def bgzip(data: bytes) -> bytes:
    """What samtools' bgzip writes: members of at most 64 KiB that tell their size, and an empty one at the end."""
    members = []
    for at in [*range(0, len(data), 60_000), len(data)]:
        piece = data[at : at + 60_000]
        squeeze = zlib.compressobj(wbits=-15)
        body = squeeze.compress(piece) + squeeze.flush()
        extra = b"BC" + struct.pack("<HH", 2, len(body) + 25)
        head = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<H", len(extra)) + extra
        members.append(head + body + struct.pack("<II", zlib.crc32(piece), len(piece)))
    return b"".join(members)


def windowed(log: int, data: bytes) -> bytes:
    settings = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True, write_content_size=False)
    packed = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=settings).stream_writer(packed, closefd=False) as stream:
        stream.write(data)
    return packed.getvalue()


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("size", [1 << 20, 1000, 4 << 20])
def test_one_stream(compression: str, size: int) -> None:
    assert unpacked(PACK[compression](LINES), compression, size=size) == (LINES, None)


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("padding", [0, 1, 512, 200_000])
def test_streams_with_zeros_between_and_after_them(compression: str, padding: int) -> None:
    pack = PACK[compression]
    data = pack(FIRST) + bytes(padding) + pack(b"") + pack(SECOND) + bytes(padding)
    if compression == "gzip":
        assert gzip.decompress(data) == LINES
    assert unpacked(data, compression) == (LINES, None)


def test_bgzip() -> None:
    data = bgzip(LINES)
    assert gzip.decompress(data) == LINES
    assert unpacked(data, "gzip") == (LINES, None)


def test_gzip_with_name_comment_and_checksum_of_its_header() -> None:
    plain = gzip.compress(LINES)
    head = b"\x1f\x8b\x08\x1f" + plain[4:10] + b"\x02\x00ab" + b"name\0" + b"comment\0"
    data = head.replace(b"\x1f\x8b\x08\x1f", b"\x1f\x8b\x08\x1e")
    data += struct.pack("<H", zlib.crc32(data) & 0xFFFF) + plain[10:]
    assert gzip.decompress(data) == LINES
    assert unpacked(data, "gzip") == (LINES, None)


@pytest.mark.parametrize(
    "data",
    [
        SKIPPABLE + zstandard.compress(LINES),
        zstandard.compress(FIRST) + SKIPPABLE + SKIPPABLE + zstandard.compress(SECOND),
        zstandard.compress(LINES) + SKIPPABLE,
        zstandard.ZstdCompressor(write_checksum=True).compress(LINES),
        zstandard.ZstdCompressor(write_checksum=True).compress(b"") + zstandard.ZstdCompressor().compress(LINES),
        zstandard.ZstdCompressor(level=19, threads=2).compress(LINES),
        windowed(10, LINES),
        zstandard.compress(FIRST, 1) + windowed(24, SECOND),
    ],
    ids=["skippable-first", "between", "last", "checksum", "empty", "threads", "small-window", "mixed"],
)
def test_zstd_frames(data: bytes) -> None:
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    assert reader.read() == LINES
    assert unpacked(data, "zstd") == (LINES, None)


def test_a_long_window_is_read_or_refused_with_the_cure() -> None:
    data = windowed(28, LINES)
    assert unpacked(data, "zstd") == (LINES, None)
    found, reason = unpacked(data, "zstd", memory=64 << 20)
    assert found == b""
    assert reason is not None
    assert "decode_bytes" in reason
    assert "zstd -d --long=28" in reason
    assert "268435456" in reason
    found, reason = unpacked(windowed(31, b"x"), "zstd")
    assert reason is not None
    assert "--long=31" in reason
    assert unpacked(windowed(31, LINES), "zstd", memory=1 << 31) == (LINES, None)


def test_a_large_dictionary_is_refused_with_the_cure() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 << 20}]
    data = lzma.compress(LINES, filters=filters)
    assert unpacked(data, "xz") == (LINES, None)
    found, reason = unpacked(data, "xz", memory=64 << 20)
    assert found == b""
    assert reason is not None
    assert "decode_bytes" in reason


@pytest.mark.parametrize("compression", PACK)
def test_what_is_cut_off_gives_all_that_was_written_before(compression: str) -> None:
    whole = PACK[compression](LINES)
    for length in (1, 3, 9, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        found, reason = unpacked(whole[:length], compression)
        assert LINES.startswith(found)
        assert reason is not None
        assert "cut off" in reason
    assert len(found) > (0 if compression == "bzip2" else len(LINES) // 2)
    first = PACK[compression](FIRST)
    found, reason = unpacked(first + whole[: len(whole) // 2], compression)
    assert found.startswith(FIRST)
    assert reason is not None
    assert "cut off" in reason


def test_gzip_that_is_cut_off_loses_nothing_that_python_can_read() -> None:
    whole = gzip.compress(LINES)
    for length in (100, len(whole) // 2, len(whole) - 5):
        inflate = zlib.decompressobj(31)
        assert unpacked(whole[:length], "gzip")[0] == inflate.decompress(whole[:length])


@pytest.mark.parametrize("compression", ["gzip", "xz"])
def test_all_before_a_damage_is_kept(compression: str) -> None:
    first = PACK[compression](FIRST)
    damaged = bytearray(PACK[compression](SECOND))
    if compression == "gzip":  # a block of a type that does not exist
        squeeze = zlib.compressobj(wbits=31)
        damaged = bytearray(squeeze.compress(SECOND) + squeeze.flush(zlib.Z_FULL_FLUSH) + b"\x07" * 10)
        found, reason = unpacked(first + bytes(damaged), compression)
        assert found == LINES
    else:
        damaged[len(damaged) // 2] ^= 255
        found, reason = unpacked(first + bytes(damaged), compression)
        assert found.startswith(FIRST)
    assert reason == f"its {compression} data are damaged"


def told_by_python(data: bytes, compression: str) -> bytes:
    """What Python's own decompressor makes of a damaged stream, byte by byte."""
    decompressor: Any = zlib.decompressobj(wbits=31) if compression == "gzip" else lzma.LZMADecompressor()
    found = []
    with contextlib.suppress(zlib.error, lzma.LZMAError):
        for at in range(len(data)):
            found.append(decompressor.decompress(data[at : at + 1]))
    return b"".join(found)


@pytest.mark.parametrize("compression", PACK)
def test_what_packs_well_is_given_once_before_a_damage(compression: str) -> None:
    """One piece of such a file unpacks to far more than is taken from a decompressor at once."""
    chance = random.Random(7)
    filler = b"the same long sentence again and again " * 30
    lines = [b'{"id": "%016x", "text": "%s"}\n' % (chance.getrandbits(64), filler) for _ in range(2_500)]
    plain = b"".join(lines)
    packed = PACK[compression](plain)
    if compression == "zstd":
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    assert 20 * len(packed) < len(plain)
    for part in (0.45, 0.75, 0.9):
        at = int(part * len(packed))
        damaged = packed[:at] + chance.randbytes(40) + packed[at + 40 :]
        found, reason = unpacked(damaged, compression)
        assert reason == f"its {compression} data are damaged"
        sound = next((n for n, (one, other) in enumerate(zip(found, plain, strict=False)) if one != other), len(found))
        assert sound > (part - 0.3) * len(plain)
        if compression in ("gzip", "xz"):  # which go on for a while with what the damaged bytes happen to mean
            assert found == told_by_python(damaged, compression)
        else:
            assert not set(lines[: sound // len(lines[0])]).intersection(found[sound:].splitlines(keepends=True)[1:])


@pytest.mark.parametrize("compression", PACK)
def test_what_is_something_else_is_told(compression: str) -> None:
    found, reason = unpacked(b"plain text, no archive of any kind\n", compression)
    assert found == b""
    assert reason == f"it is no {compression} file, or damaged"
    found, reason = unpacked(PACK[compression](LINES) + b"something else altogether", compression)
    assert found == LINES
    assert reason is not None
    assert reason.startswith(f"after the end of its {compression} data")


@pytest.mark.parametrize("compression", PACK)
def test_bombs_are_told_and_never_held(compression: str) -> None:
    zeros = bytes(1 << 20)
    squeeze = {
        "gzip": lambda: zlib.compressobj(wbits=31),
        "bzip2": bz2.BZ2Compressor,
        "xz": lambda: lzma.LZMACompressor(preset=0),
        "zstd": lambda: zstandard.ZstdCompressor(write_content_size=False).compressobj(),
    }[compression]()
    bomb = b"".join(squeeze.compress(zeros) for _ in range(100)) + squeeze.flush()
    stream = Unpacked(io.BytesIO(bomb), compression, MEMORY)
    tracemalloc.start()
    with pytest.raises(Unreadable, match="as a bomb does"):
        all(iter(lambda: stream.read(1 << 20), b""))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("compression", PACK)
def test_names(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.jsonl{NAMES[compression]}"
    path.write_bytes(PACK[compression](LINES))
    assert detect(str(path)) == ("jsonl", compression)
    assert detect(str(path), "csv") == ("csv", compression)
    with open_stream(str(path), compression, MEMORY) as stream:
        assert stream.read(1 << 30) == LINES
    path.write_bytes(b"")
    with pytest.raises(InputError, match="it is empty"), reading(str(path)):
        open_stream(str(path), compression, MEMORY)
