"""Arrow IPC and Avro hold what pyarrow and fastavro find in them, whatever the ranges, and damage is told by name."""

from __future__ import annotations

import datetime
import decimal
import io
import random
import struct
import uuid
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
import zstandard

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.avro import AvroFile
from distilbeam.transforms.input.containers import buffered
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings

UTC = datetime.timezone.utc
TABLE = pa.table(
    {
        "text": [f"text {n} " + "x" * (n % 7) for n in range(50)],
        "n": pa.array(range(50), pa.int16()),
        "kind": pa.array(["a", "b"] * 25).dictionary_encode(),
        "view": pa.array([f"a view of something long {n}" for n in range(50)], pa.string_view()),
        "tags": [["x"] * (n % 3) for n in range(50)],
        "place": [{"city": "C", "at": float(n)} for n in range(50)],
        "when": pa.array(range(50), pa.timestamp("us", "Europe/Berlin")),
    }
)
PLAIN = TABLE.set_column(3, "view", TABLE["view"].cast(pa.string()))
PLAIN = PLAIN.set_column(2, "kind", PLAIN["kind"].cast(pa.string()))


def rows(found: Any) -> list[dict[str, Any]]:
    return found.rows


def ipc(stream: bool, rows_in_batch: int = 7, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, TABLE.schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=rows_in_batch)
    return sink.getvalue()


SCHEMA = {
    "type": "record",
    "name": "Row",
    "namespace": "x.y",
    "fields": [
        {"name": "text", "type": ["null", "string"]},
        {"name": "n", "type": ["int", "null"]},
        {"name": "big", "type": "long"},
        {"name": "f", "type": "float"},
        {"name": "flag", "type": {"type": "boolean"}},
        {"name": "raw", "type": "bytes"},
        {"name": "fix", "type": {"type": "fixed", "name": "F", "size": 3}},
        {"name": "suit", "type": {"type": "enum", "name": "Suit", "symbols": ["S", "H"]}},
        {"name": "other", "type": ["null", "Suit"]},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "map", "type": {"type": "map", "values": ["null", "long"]}},
        {
            "name": "inner",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Inner",
                    "fields": [
                        {"name": "a", "type": "int"},
                        {"name": "d", "type": {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 1}},
                    ],
                },
            ],
        },
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "ms", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "us", "type": {"type": "long", "logicalType": "time-micros"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "exact", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 10}},
        {"name": "fixed", "type": {"type": "fixed", "name": "D", "size": 9, "logicalType": "decimal", "precision": 20}},
        {"name": "uuid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "odd", "type": {"type": "string", "logicalType": "nobody-knows"}},
    ],
}


def record(n: int) -> dict[str, Any]:
    return {
        "text": f"text {n}" if n % 5 else None,
        "n": n if n % 3 else None,
        "big": n - (1 << 62),
        "f": n / 2,
        "flag": n % 2 == 0,
        "raw": bytes([n]),
        "fix": b"abc",
        "suit": "SH"[n % 2],
        "other": "S" if n % 2 else None,
        "tags": ["x"] * (n % 3),
        "map": {"a": n, "b": None},
        "inner": {"a": n, "d": decimal.Decimal("-1.5")} if n % 2 else None,
        "day": datetime.date(1, 1, 1) + datetime.timedelta(n),
        "ms": datetime.time(1, 2, 3, n * 1000),
        "us": datetime.time(23, 59, 59, n),
        "at": datetime.datetime(2024, 2, 29, 1, 2, 3, n * 1000, tzinfo=UTC),
        "exact": datetime.datetime(1850, 1, 1, microsecond=n, tzinfo=UTC),
        "local": datetime.datetime(9999, 12, 31, microsecond=n),
        "price": decimal.Decimal("-1234567890123456789012345678.0000000001") + n,
        "fixed": decimal.Decimal(n) - 10**19,
        "uuid": uuid.UUID(int=n),
        "odd": "o",
    }


def avro(codec: str = "null", count: int = 40) -> bytes:
    sink = io.BytesIO()
    plain = "null" if codec == "zstandard" else codec  # fastavro may lack what writes it
    fastavro.writer(sink, SCHEMA, map(record, range(count)), codec=plain, sync_interval=500)
    return sink.getvalue() if codec == plain else with_zstandard(sink.getvalue())


def with_zstandard(plain: bytes) -> bytes:
    """The same file with its blocks packed."""
    reader = fastavro.block_reader(io.BytesIO(plain))
    blocks = [(block.num_records, block.bytes_.getvalue()) for block in reader]
    sync = plain[-16:]
    head = plain[: plain.index(sync) + 16].replace(b"\x08null", b"\x12zstandard")

    def long(value: int) -> bytes:
        value <<= 1
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    packed = [(count, zstandard.compress(data)) for count, data in blocks]
    return head + b"".join(long(count) + long(len(data)) + data + sync for count, data in packed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("split_bytes", [100, 1 << 20])
def test_arrow(tmp_path: Path, read: Any, stream: bool, compression: str | None, split_bytes: int) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(ipc(stream, compression=compression))
    found = read(path, split_bytes=split_bytes, batch_rows=5)
    assert rows(found) == PLAIN.to_pylist()
    assert all(batch.num_rows <= 5 for batch in found.batches)
    assert [position for _, position in found.positions] == list(range(50))
    assert len(plan_splits(ReadSettings(path=str(path), split_bytes=split_bytes))) > (
        8 if split_bytes == 100 and not stream else 0
    )
    assert rows(read(path, keep=["n"], split_bytes=split_bytes)) == PLAIN.select(["n", "text"]).to_pylist()


def test_feather_of_pandas_and_a_batch_larger_than_a_split(tmp_path: Path, read: Any) -> None:
    pa.feather.write_feather(TABLE.select(["text", "n"]), tmp_path / "a.feather")
    assert len(plan_splits(ReadSettings(path=str(tmp_path), split_bytes=100))) > 4
    assert rows(read(tmp_path, split_bytes=100)) == PLAIN.select(["text", "n"]).to_pylist()


def test_arrow_without_rows_or_batches(tmp_path: Path, read: Any) -> None:
    for name, make in (("a.arrow", pa.ipc.new_file), ("b.arrows", pa.ipc.new_stream)):
        with make(tmp_path / name, TABLE.schema) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist([], TABLE.schema))
        assert rows(read(tmp_path / name)) == []


def test_old_feather_is_named(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(InputError, match=r"a.feather.*Feather file of version 1.*version 2"):
        read(tmp_path)


def test_texts_that_are_not_utf8_are_rejects(tmp_path: Path, read: Any) -> None:
    text = pa.array([b"good", b"\xff", b"fine"]).view(pa.string())
    table = pa.table({"text": text})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    found = read(tmp_path)
    assert found.texts == ["good", "fine"]
    assert found.bad == [(1, "UnicodeDecodeError")]


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz", "zstandard"])
def test_avro(tmp_path: Path, read: Any, codec: str) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(avro(codec))
    truth = [record(n) for n in range(40)]
    for row in truth:
        row["uuid"] = str(row["uuid"])
        row["map"] = list(row["map"].items())
    found = read(path, nulls="keep", batch_rows=16)
    assert rows(found) == truth
    schema = found.batches[0].schema
    assert schema.field("price").type == pa.decimal128(38, 10)
    assert schema.field("at").type == pa.timestamp("ms", "UTC")
    assert schema.field("local").type == pa.timestamp("us")
    assert schema.field("us").type == pa.time64("us")
    assert rows(read(path, keep=["n"], nulls="keep")) == [{"n": row["n"], "text": row["text"]} for row in truth]


def test_avro_times_beyond_those_of_python(tmp_path: Path, read: Any) -> None:
    schema = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "text", "type": "string"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "ns", "type": {"type": "long", "logicalType": "timestamp-nanos"}},
        ],
    }
    times = [(1 << 62, -(1 << 62)), (-(1 << 60), 1)]
    with open(tmp_path / "a.avro", "wb") as sink:
        fastavro.writer(sink, schema, [{"text": "t", "at": at, "ns": ns} for at, ns in times])
    (batch,) = [batch for batch in read(tmp_path).batches if batch.num_rows]
    found = [batch[name].cast(pa.int64()).to_pylist() for name in ("at", "ns")]
    assert list(zip(*found, strict=True)) == times
    assert batch.schema.field("ns").type == pa.timestamp("ns", "UTC")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (["string", "int"], "may be of several types"),
        (["null", "string", {"type": "array", "items": "int"}], "may be of several types"),
        ({"type": "array", "items": ["int", "string"]}, "may be of several types"),
        (
            {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]},
            "has a type that refers to itself",
        ),
    ],
)
def test_avro_types_that_no_column_holds(tmp_path: Path, read: Any, kind: Any, message: str) -> None:
    fields = [{"name": "text", "type": "string"}, {"name": "odd", "type": kind}]
    value: Any = [1] if isinstance(kind, dict) and kind["type"] == "array" else {"next": None}
    with open(tmp_path / "a.avro", "wb") as sink:
        row = {"text": "a", "odd": "s" if isinstance(kind, list) else value}
        fastavro.writer(sink, {"type": "record", "name": "R", "fields": fields}, [row])
    with pytest.raises(InputError, match=rf"a.avro.*column 'odd' {message}.*list the columns to keep"):
        read(tmp_path)
    assert rows(read(tmp_path, keep=[])) == [{"text": "a"}]


@pytest.mark.parametrize("name", ["a.arrow", "a.arrows", "a.avro"])
def test_damage_is_told_by_name_and_never_ends_the_process(tmp_path: Path, read: Any, name: str) -> None:
    whole = avro("deflate") if name == "a.avro" else ipc(name == "a.arrows", compression="lz4")
    path = tmp_path / name
    chance = random.Random(5)
    for number in range(25):
        data = bytearray(whole)
        if number < 5:
            del data[len(data) * number // 5 :]
        else:
            for _ in range(3):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        told = ""
        try:
            assert len(read(path, nulls="keep").rows) <= 50
        except InputError as error:
            told = str(error)
        assert not told or (name in told and "text " not in told)


def test_what_lies_before_a_damage_is_kept(tmp_path: Path, read: Any) -> None:
    whole = avro("deflate")
    (tmp_path / "a.avro").write_bytes(whole[: len(whole) * 2 // 3])
    found = read(tmp_path, bad_files="reject", nulls="keep", batch_rows=4)
    assert 0 < len(found.rows) < 40
    assert [row["big"] for row in found.rows] == [record(n)["big"] for n in range(len(found.rows))]
    assert [error for _, error in found.bad] == ["BadFile"]


def test_offsets_that_lie_end_nothing(tmp_path: Path, read: Any) -> None:
    """An array whose offsets lead out of its buffer is refused before anything else looks at it."""
    offsets = np.array([0, 4, 1 << 30], np.int32)
    schema = pa.schema([("text", pa.string())])
    sound = pa.record_batch({"text": ["abcd", "efgh"]}, schema)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(sound)
    good = np.array([0, 4, 8], np.int32).tobytes()
    assert sink.getvalue().count(good) == 1
    (tmp_path / "a.arrow").write_bytes(sink.getvalue().replace(good, offsets.tobytes()))
    with pytest.raises(InputError, match=r"a.arrow"):
        read(tmp_path)


def test_a_footer_that_names_a_batch_many_times_is_refused(tmp_path: Path, read: Any) -> None:
    """Else a small file would be a very large one."""
    schema = pa.schema([("text", pa.string())])
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        for number in range(20):
            writer.write_batch(pa.record_batch({"text": [f"{number:04}"] * 5}, schema))
    data = sink.getvalue()
    footer = int.from_bytes(data[-10:-6], "little")
    head, tail = data[: -10 - footer], data[-10 - footer :]
    with pa.ipc.open_stream(data[8:]) as stream:  # the messages of the file, one after the other
        assert stream.read_all().num_rows == 100
    places = [at for at in range(8, len(head), 8) if tail.count(struct.pack("<q", at)) == 1]
    assert len(places) >= 20
    for at in places:
        tail = tail.replace(struct.pack("<q", at), struct.pack("<q", places[0]))
    (tmp_path / "a.arrow").write_bytes(head + tail)
    with pytest.raises(InputError, match=r"a.arrow.*several batches at one place"):
        read(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_more_rows_of_nulls_than_a_file_can_have_are_refused(tmp_path: Path, read: Any, stream: bool) -> None:
    schema = pa.schema([("text", pa.null())])
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    for rows_in_it in (1000, (1 << 31) - 1):
        with make(tmp_path / "a.arrow", schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([pa.nulls(rows_in_it)], schema=schema))
        if rows_in_it == 1000:
            assert len(read(tmp_path, nulls="keep").rows) == 1000
        else:
            with pytest.raises(InputError, match=r"a.arrow.*claims 2147483647 rows, more than a file of"):
                read(tmp_path)


def test_avro_records_without_bytes_are_bounded(tmp_path: Path, read: Any) -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "text", "type": "null"}]}
    path = tmp_path / "a.avro"
    with open(path, "wb") as sink:
        fastavro.writer(sink, schema, [{"text": None}] * 1000)
    whole = path.read_bytes()
    assert len(read(tmp_path, nulls="keep").rows) == 1000
    sync = whole[-16:]
    head = whole[: whole.index(sync) + 16]
    for count in (10**12, -1):
        block = io.BytesIO()
        fastavro.schemaless_writer(block, "long", count)
        path.write_bytes(head + block.getvalue() + b"\0" + sync)
        with pytest.raises(InputError, match=r"a.avro.*claims a number of records that cannot be"):
            read(tmp_path)


def test_avro_records_become_batches_by_their_bytes(tmp_path: Path) -> None:
    """As many long texts as a batch may have rows need no more memory than a few."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "text", "type": "string"}]}
    sink = io.BytesIO()
    texts = [f"{number:07} " * 125_000 for number in range(100)]
    fastavro.writer(sink, schema, [{"text": text} for text in texts], codec="deflate")
    data = sink.getvalue()
    file = AvroFile(buffered(lambda at, length: data[at : at + length], len(data), 1 << 16), len(data), lambda: None)
    batches = list(file.batches(0, None, ["text"], 4096))
    assert max(batch.nbytes for batch in batches) < 20 << 20
    assert [text for batch in batches for text in batch["text"].to_pylist()] == texts


def test_want_of_memory_is_no_damage_of_avro(monkeypatch: pytest.MonkeyPatch) -> None:
    data = avro()
    file = AvroFile(buffered(lambda at, length: data[at : at + length], len(data), 1 << 16), len(data), lambda: None)

    def no_memory(*_: Any) -> pa.Array:
        raise pa.lib.ArrowMemoryError("none left")

    monkeypatch.setattr(pa, "array", no_memory)
    with pytest.raises(MemoryError):
        list(file.batches(0, None, ["text"], 10))
