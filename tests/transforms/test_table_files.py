"""Files of a table's metadata, against fastavro and Python's gzip, and those that stand for far more than they are."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input import table_files
from distilbeam.transforms.input.table_files import path_of, plain_avro, read_bounded

_SCHEMA = {"type": "record", "name": "R", "fields": [{"name": "x", "type": "string"}, {"name": "n", "type": "long"}]}
_ROWS = [{"x": "ab" * (n % 50), "n": -n} for n in range(3000)]


def _avro(rows: list[dict[str, Any]], codec: str) -> bytes:
    stream = io.BytesIO()
    if codec in ("null", "deflate", "bzip2"):
        fastavro.writer(stream, _SCHEMA, rows, codec=codec, sync_interval=4000)
        return stream.getvalue()
    # Packed here, since fastavro wants packages for these that are not needed.
    fastavro.writer(stream, _SCHEMA, rows, sync_interval=4000)
    source = table_files._Source(stream.getvalue())
    source.take(4)
    entries, sync = dict(source.entries()), source.take(16)
    entries[b"avro.codec"] = codec.encode()
    long = table_files._long
    data = b"Obj\1" + long(len(entries))
    data += b"".join(long(len(part)) + part for entry in entries.items() for part in entry) + long(0) + sync
    while not source.ended:
        count, block = source.long(), source.sized()
        source.take(16)
        name = "zstd" if codec == "zstandard" else codec
        packed = pa.compress(block, name, asbytes=True) + (b"crc." if codec == "snappy" else b"")
        data += long(count) + long(len(packed)) + packed + sync
    return data


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "zstandard", "snappy"])
def test_an_unpacked_file_has_the_same_records(codec: str) -> None:
    data = _avro(_ROWS, codec)
    plain = plain_avro(data, "m.avro")
    reader = fastavro.reader(io.BytesIO(plain))
    assert reader.codec == "null"
    assert list(reader) == _ROWS


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "zstandard", "snappy"])
def test_blocks_that_hold_too_much_are_refused(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _avro(_ROWS, codec)
    whole = len(plain_avro(data, "m.avro"))
    monkeypatch.setattr(table_files, "MAX_FILE_BYTES", whole)
    assert len(plain_avro(data, "m.avro")) == whole
    monkeypatch.setattr(table_files, "MAX_FILE_BYTES", whole - 100)
    with pytest.raises(InputError, match=r"'m.avro' holds more than"):
        plain_avro(data, "m.avro")


@pytest.mark.parametrize("end", [3, 60, -1])
def test_a_damaged_file_is_told(end: int) -> None:
    with pytest.raises((ValueError, EOFError)):
        plain_avro(_avro(_ROWS, "deflate")[:end], "m.avro")


def test_a_codec_that_is_not_known_is_told() -> None:
    data = _avro([], "deflate").replace(b"deflate", b"defaced")
    with pytest.raises(InputError, match="packed in a way that is not read"):
        plain_avro(data, "m.avro")


def test_no_more_of_a_file_is_read_than_it_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "v1.metadata.json"
    for content in (b"x" * (1 << 20), gzip.compress(b"x" * (1 << 20))):
        path.write_bytes(content)
        assert read_bounded(str(path)) == b"x" * (1 << 20)
    for content in (b"x" * (1 << 20) + b"x", gzip.compress(b"x" * (1 << 30), 1)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="holds more than 1 MiB"):
            read_bounded(str(path))
    path.write_bytes(gzip.compress(b"x" * 5000)[:-9])
    with pytest.raises(InputError, match="cut off"):
        read_bounded(str(path))


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("/a/b", "/a/b"),
        ("s3://a/file:/b", "s3://a/file:/b"),
        ("file://host/a", "//host/a"),
    ],
)
def test_local_paths_have_one_spelling(location: str, path: str) -> None:
    assert path_of(location) == path
