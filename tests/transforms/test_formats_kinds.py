"""Files are told by name or by what they begin with, and what is not read is named with the cure."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import pickle
import random
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import zstandard

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.formats.kinds import COMPRESSIONS, EXTENSIONS, FORMATS, detect

TABLE = pa.table({"text": ["one", "two"]})
LINES = b'{"text": "one"}\n{"text": "two"}\n'
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


def arrow(make: Any) -> bytes:
    sink = io.BytesIO()
    with make(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


def avro() -> bytes:
    import fastavro

    sink = io.BytesIO()
    schema = {"type": "record", "name": "R", "fields": [{"name": "text", "type": "string"}]}
    fastavro.writer(sink, schema, TABLE.to_pylist())
    return sink.getvalue()


CONTENTS = {
    "parquet": parquet,
    "arrow": lambda: arrow(pa.ipc.new_file),
    "arrow-stream": lambda: arrow(pa.ipc.new_stream),
    "avro": avro,
    "jsonl": lambda: LINES,
    "jsonl-mark": lambda: b"\xef\xbb\xbf" + LINES,
    "jsonl-blank": lambda: b"\n\n  " + LINES,
    **{f"jsonl-{name}": lambda pack=pack: pack(LINES) for name, pack in PACK.items()},  # type: ignore[misc]
}


def zipped(name: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, "text\na\n")
    return sink.getvalue()


def tarred() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
    return sink.getvalue()


def orc() -> bytes:
    sink = io.BytesIO()
    pyarrow.orc.write_table(TABLE, sink)
    return sink.getvalue()


def numpy() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.zeros(3))
    return sink.getvalue()


OTHERS = {
    "an ORC file": (orc, "a.orc"),
    "a zip archive": (lambda: zipped("a.csv"), "a.csv.zip"),
    "a tar archive": (tarred, "a.tar"),
    "packed with lz4": (lambda: pa.compress(LINES, "lz4", asbytes=True), "a.jsonl.lz4"),
    "a Python pickle": (lambda: pickle.dumps([1]), "a.pkl"),
    "a NumPy file": (numpy, "a.npy"),
    "a JSON array": (lambda: b'[{"text": "a"}]', None),
    "text in UTF-16": (lambda: "text\na\n".encode("utf-16"), None),
    "a Feather file of version 1": (lambda: b"FEA1" + bytes(50), None),
}


@pytest.mark.parametrize("name", ["part-00000", "000000_0", "bq000000000000", "part-r-00000.snappy-like", "data.v2"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_what_has_no_telling_name_is_read_by_its_content(tmp_path: Path, read: Any, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENTS[kind]())
    assert read(tmp_path / name).texts == ["one", "two"]
    if name == "part-00000":
        (tmp_path / "part-00001").write_bytes(CONTENTS[kind]())
        assert read(tmp_path).texts == ["one", "two"] * 2


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_read_is_named(tmp_path: Path, read: Any, kind: str) -> None:
    make, name = OTHERS[kind]
    data = make()
    (tmp_path / "part-00000").write_bytes(data)
    for settings in ({}, {"format": "jsonl"}):
        with pytest.raises(InputError, match=rf"part-00000'(: it)? is {kind}, .*; \w+"):
            read(tmp_path / "part-00000", **settings)
    if name is not None:
        (tmp_path / name).write_bytes(data)
        for settings in ({}, {"format": "csv"}):
            with pytest.raises(InputError, match=rf"{name}' is {kind}, which is not read"):
                read(tmp_path / name, **settings)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("part-0", "ORCA whales are large"),
        ("part-1", "A LIVE: DUCK"),
        ("part-2", "<?xml one doc per line"),
        ("part-3", "BZh is a name"),
        ("part-4", "BZh9 too"),
        ("part-5", "%PDF is how they begin"),
        ("part-6", "x*M and no more"),
        ("part-7", "PAR1 is a mark"),
        ("part-8", "[in brackets]"),
        ("europarl.br", "Demat d'an holl"),
        ("notes.z", "hello"),
        ("x.xml", "<a>hi</a>"),
        ("a.tar.gz", "no tar"),
    ],
)
def test_text_is_text_where_the_format_says_so(tmp_path: Path, read: Any, name: str, text: str) -> None:
    data = f"{text}\nsecond\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path / name, format="text").texts == [text, "second"]


def test_a_row_that_begins_as_something_else_does_not_hide_its_format(tmp_path: Path, read: Any) -> None:
    (tmp_path / "part-0").write_bytes(b'{"text":"DUCK"}\n{"t": 1, "text": "b"}\n')
    (tmp_path / "part-1").write_bytes(b'{"te": "DUCK", "text": "c"}\n')
    assert read(tmp_path).texts == ["DUCK", "b", "c"]


@pytest.mark.parametrize("name", ["data.zst", "data"])
def test_a_first_block_that_is_large_is_looked_into(tmp_path: Path, read: Any, name: str) -> None:
    noise = random.Random(1).randbytes(200_000)
    data = zstandard.compress(b'{"text": "%s"}\n' % base64.b64encode(noise) + LINES)
    assert len(data) > 200_000
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name).texts == [base64.b64encode(noise).decode(), "one", "two"]


def test_every_file_without_a_telling_name_is_looked_at(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a").write_bytes(b"plain\n")
    (tmp_path / "b").write_bytes(gzip.compress(b"packed\n"))
    assert read(tmp_path, format="text").texts == ["plain", "packed"]


def test_databases_are_named(tmp_path: Path, read: Any) -> None:
    sqlite3.connect(tmp_path / "a").execute("CREATE TABLE t (text)").connection.close()
    duckdb.connect(str(tmp_path / "b")).close()
    for name, kind in (("a", "an SQLite database"), ("b", "a DuckDB database")):
        with pytest.raises(InputError, match=f"{name}' is {kind}"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (gzip.compress(b""), "it holds nothing, or nothing that can be unpacked"),
        (b"\x28\xb5\x2f\xfd damaged", "it holds nothing, or nothing that can be unpacked"),
        (b"ORCA whales", "it holds text"),
        (b"text,n\na,1\n", "text, perhaps CSV"),
        (bytes(range(1, 200)), "bytes of no known"),
        (b"", "it is empty"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path: Path, read: Any, data: bytes, looks: str) -> None:
    (tmp_path / "part-00000").write_bytes(data)
    with pytest.raises(InputError, match=rf"cannot tell the format of '.*part-00000'.*{looks}.*`format`"):
        read(tmp_path / "part-00000")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.jsonl", "a", "part.0001"])
def test_a_given_format_respects_the_compression(tmp_path: Path, read: Any, compression: str, name: str) -> None:
    data = PACK[COMPRESSIONS[compression]](LINES)
    (tmp_path / f"{name}{compression}").write_bytes(data)
    assert read(tmp_path / f"{name}{compression}", format="jsonl").texts == ["one", "two"]
    (tmp_path / "bare").write_bytes(data)
    assert read(tmp_path / "bare", format="jsonl").texts == ["one", "two"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_names(extension: str, compression: str) -> None:
    assert detect(f"s3://b/A{extension.upper()}") == (EXTENSIONS[extension], None)
    assert EXTENSIONS[extension] in FORMATS
    if EXTENSIONS[extension] in ("parquet", "arrow", "avro"):
        with pytest.raises(InputError, match="compresses inside"):
            detect(f"a{extension}{compression}")
    else:
        assert detect(f"a.b{extension}{compression}") == (EXTENSIONS[extension], COMPRESSIONS[compression])
