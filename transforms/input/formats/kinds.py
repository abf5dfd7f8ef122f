"""Kinds of files: told by their names, else by their first bytes; those that are not read are named, with the cure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage.filesystems import open_input

__all__ = ["COMPRESSIONS", "CONTAINERS", "EXTENSIONS", "FORMATS", "detect", "detect_file", "detect_files"]

FORMATS = ("parquet", "jsonl", "csv", "tsv", "text", "arrow", "avro")
CONTAINERS = ("parquet", "arrow", "avro")
"""Formats of typed rows, which are counted from 0 and decoded in a process of its own."""

EXTENSIONS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".parq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".avro": "avro",
}
COMPRESSIONS = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".bgz": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
}

_THREADS = 16
_HEAD_BYTES = 64 << 10
_EXPORT = "export it as Parquet, JSON lines or CSV"
_OTHERS = {
    "an ORC file": "convert it to Parquet, for example with pyarrow.orc.read_table and pyarrow.parquet.write_table",
    "an Excel workbook": "save its sheets as CSV, or convert it to Parquet with pandas.read_excel",
    "a zip archive": "unpack it with unzip, or pack the files one by one with gzip or zstd",
    "a tar archive": "unpack it with tar -xf; files are read one by one",
    "a 7z archive": "unpack it with 7z x",
    "a RAR archive": "unpack it with unrar x",
    "packed with lz4": "unpack it with lz4 -d, or pack it with gzip or zstd",
    "packed with snappy": "unpack it, or pack it with gzip or zstd",
    "packed with brotli": "unpack it with brotli -d, or pack it with gzip or zstd",
    "packed with lzma": "unpack it with xz --format=lzma -d, or pack it with xz",
    "packed with LZO": "unpack it with lzop -d, or pack it with gzip or zstd",
    "packed with compress": "unpack it with gunzip, or pack it with gzip",
    "a Python pickle": "it can run any code when it is loaded, so it never is; if you trust it, convert it to Parquet",
    "an HDF5 file": _EXPORT,
    "a NumPy file": _EXPORT,
    "a SAS or Stata file": _EXPORT,
    "an SQLite database": "export its table as CSV, for example with sqlite3 -csv -header",
    "a DuckDB database": "export its table with COPY ... TO 'x.parquet'",
    "a PDF document": "extract its text",
    "an XML document": _EXPORT,
    "a YAML document": _EXPORT,
    "an R data file": _EXPORT,
    "a Hadoop sequence file": _EXPORT,
    "a TFRecord file": _EXPORT,
    "a Feather file of version 1": "write it anew as version 2, for example with pyarrow.feather.write_feather",
    "text in UTF-16": "convert it to UTF-8, for example with iconv",
    "a JSON array": "write one object on each line, for example with jq -c '.[]'",
}
_OTHER_EXTENSIONS = {
    ".orc": "an ORC file",
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "an Excel workbook"),
    ".zip": "a zip archive",
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz"), "a tar archive"),
    ".7z": "a 7z archive",
    ".rar": "a RAR archive",
    ".lz4": "packed with lz4",
    **dict.fromkeys((".snappy", ".sz"), "packed with snappy"),
    ".br": "packed with brotli",
    ".lzma": "packed with lzma",
    ".lzo": "packed with LZO",
    ".z": "packed with compress",
    **dict.fromkeys((".pkl", ".pickle"), "a Python pickle"),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), "an HDF5 file"),
    **dict.fromkeys((".npy", ".npz"), "a NumPy file"),
    **dict.fromkeys((".sas7bdat", ".dta", ".sav"), "a SAS or Stata file"),
    **dict.fromkeys((".sqlite", ".sqlite3"), "an SQLite database"),
    ".duckdb": "a DuckDB database",
    **dict.fromkeys((".rds", ".rdata"), "an R data file"),
    ".xml": "an XML document",
    ".tfrecord": "a TFRecord file",
}
_MAGIC = (
    (0, b"PAR1", "parquet"),
    (0, b"ARROW1", "arrow"),
    (0, b"\xff\xff\xff\xff", "arrow"),  # the stream format
    (0, b"Obj\x01", "avro"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"ORC", "an ORC file"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"\x04\x22\x4d\x18", "packed with lz4"),
    (0, b"\xff\x06\0\0sNaPpY", "packed with snappy"),
    (0, b"\x89LZO", "packed with LZO"),
    (0, b"\x1f\x9d", "packed with compress"),
    *((0, bytes((128, version)), "a Python pickle") for version in (2, 3, 4, 5)),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"SEQ\x06", "a Hadoop sequence file"),
    (0, b"FEA1", "a Feather file of version 1"),
    (0, b"\xff\xfe", "text in UTF-16"),
    (0, b"\xfe\xff", "text in UTF-16"),
    (0, b"<?xml", "an XML document"),
)
_PATTERNS = (
    (re.compile(rb"[\x50-\x5f]\x2a\x4d\x18"), "zstd"),  # a skippable frame
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzip2"),
    (re.compile(rb"(?s).{8}DUCK.{1,4}\0{4}"), "a DuckDB database"),
    (re.compile(rb"%PDF-\d\.\d"), "a PDF document"),
)
_TEXTUAL = ("a PDF document", "an XML document")
_UNPACK_BYTES = 512 << 20  # for the window or dictionary of what is looked at


def detect(url: str, format: str | None = None) -> tuple[str, str | None]:
    """Format and compression of a file, by its name unless the format is given.

    Raises:
        InputError: the extension is not known, is that of something else, or that format cannot be compressed so.
    """
    extension, compression = _extensions(url)
    if format is None and (other := _OTHER_EXTENSIONS.get(extension)):
        raise _other(url, other)
    found = format or EXTENSIONS.get(extension)
    if found is None:
        raise InputError(f"cannot tell the format of {url!r}; {_known()}")
    if found in CONTAINERS and compression:
        name = {"parquet": "Parquet", "arrow": "Arrow", "avro": "Avro"}[found]
        raise InputError(f"{url!r} is a compressed {name} file; unpack it, {name} compresses inside")
    return found, compression


def detect_file(url: str, format: str | None = None) -> tuple[str, str | None]:
    """Format and compression of a file, by its name, or by its first bytes where the name does not tell.

    Where the format is given it is taken for that, unless its bytes are no text and those of something else.

    Raises:
        InputError: neither tells, it is something else, or it cannot be opened.
    """
    if _is_told(url, format):
        return detect(url, format)
    _, compression = _extensions(url)
    with open_input(url) as stream:
        head = stream.read(_HEAD_BYTES)
        found = _kind(head)
        is_empty = not head
        if found in COMPRESSIONS.values():
            compression = compression or str(found)
            head = _unpacked(stream, compression)
            found = _kind(head)
        elif found == "an ORC file" and not _is_orc(stream):
            found = None
    if found in _OTHERS and (not _is_text(head) or (format is None and found in _TEXTUAL)):
        raise _other(url, str(found))
    if format is not None:
        return format, compression
    if found in CONTAINERS and not compression:
        return str(found), None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):
        return "jsonl", compression
    if start.startswith(b"["):
        raise _other(url, "a JSON array")
    if is_empty:
        looks = "is empty"
    elif not head:
        looks = "holds nothing, or nothing that can be unpacked"
    elif _is_text(head):
        looks = "holds text, perhaps CSV, TSV or a document on each line"
    else:
        looks = "holds bytes of no known format"
    raise InputError(f"cannot tell the format of {url!r}: its name does not, and it {looks}; {_known()}")


def detect_files(urls: Sequence[str], format: str | None = None) -> list[tuple[str, str | None]]:
    """Format and compression of each file, as ``detect_file`` tells them, many at once: each may need a look."""
    asked = [url for url in urls if not _is_told(url, format)]
    with ThreadPoolExecutor(_THREADS) as threads:
        looked = dict(zip(asked, threads.map(lambda url: detect_file(url, format), asked), strict=True))
    return [looked[url] if url in looked else detect(url, format) for url in urls]


def _is_told(url: str, format: str | None) -> bool:
    """Whether the name of a file tells what to do with it, or that it is something else."""
    extension, compression = _extensions(url)
    if extension in _OTHER_EXTENSIONS:
        return format is None
    return extension in EXTENSIONS or (format is not None and (compression is not None or format in CONTAINERS))


def _extensions(url: str) -> tuple[str, str | None]:
    """The extension that tells the format, and the compression that one after it tells."""
    name = url.rpartition("/")[2].lower()
    stem, dot, last = name.rpartition(".")
    compression = COMPRESSIONS.get(dot + last)
    if compression:
        _, dot, last = stem.rpartition(".")
    return dot + last if dot else "", compression


def _known() -> str:
    return (
        f"known extensions are {', '.join(EXTENSIONS)}, those of lines also with {', '.join(COMPRESSIONS)}; or set "
        f"`format` to one of {', '.join(FORMATS)}"
    )


def _other(url: str, kind: str) -> InputError:
    return InputError(f"{url!r} is {kind}, which is not read; {_OTHERS[kind]}")


def _kind(head: bytes) -> str | None:
    found = next((kind for at, magic, kind in _MAGIC if head[at : at + len(magic)] == magic), None)
    return found or next((kind for pattern, kind in _PATTERNS if pattern.match(head)), None)


def _is_orc(stream: BinaryIO) -> bool:
    """Whether a file also ends as ORC files do, with its mark and the length of what has it."""
    size = stream.seek(0, 2)
    stream.seek(max(size - 4, 0))
    return stream.read(3) == b"ORC"


def _unpacked(stream: BinaryIO, compression: str) -> bytes:
    """The first bytes of what a compressed file holds; none if it holds none, or is damaged."""
    from .compression import Unpacked

    stream.seek(0)
    try:
        return Unpacked(stream, compression, _UNPACK_BYTES).read(_HEAD_BYTES)
    except Exception:  # what is damaged is told when it is read
        return b""


def _is_text(head: bytes) -> bool:
    try:
        head[: -4 if len(head) == _HEAD_BYTES else None].decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
