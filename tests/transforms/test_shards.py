"""Shard files: sizes, rows and types against what Arrow reads back."""

import datetime
import decimal
import gzip
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import OutputError, SettingsError
from distilbeam.transforms.output.shards import ShardSettings, ShardWriter, _pieces, model_metadata


def vectors(rows: int, dimensions: int = 64, seed: int = 0) -> pa.RecordBatch:
    flat = np.random.default_rng(seed).standard_normal(rows * dimensions).astype(np.float32)
    return pa.record_batch(
        {
            "id": pa.array(range(seed * 1000, seed * 1000 + rows), pa.int64()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), dimensions),
        }
    )


def write(folder: Path, batches: list[pa.RecordBatch], **settings: Any) -> list[Path]:
    writer = ShardWriter(str(folder), "a", batches[0].schema, ShardSettings(**settings))
    for batch in batches:
        writer.write(batch)
    records = writer.close()
    paths = [folder / record.path for record in records]
    for record, path in zip(records, paths, strict=True):
        data = path.read_bytes()
        assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sorted(paths) == sorted(folder.iterdir())
    assert sum(record.rows for record in records) == sum(batch.num_rows for batch in batches)
    return paths


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("sizes", [[1], [3000], [10] * 200, [1, 2000, 1], [0, 5, 0]])
def test_shards_are_bounded_and_in_order(tmp_path: Path, format: str, sizes: list[int]) -> None:
    limit = 100_000
    batches = [vectors(rows, seed=seed) for seed, rows in enumerate(sizes)]
    paths = write(tmp_path, batches, format=format, max_bytes=limit)
    assert all(path.stat().st_size <= limit for path in paths)
    total = sum(path.stat().st_size for path in paths)
    assert len(paths) <= math.ceil(total / limit * 2.5)  # not too many, either
    if format == "parquet":
        ids = [key for path in paths for key in pq.read_table(path)["id"].to_pylist()]
        assert all(pq.read_metadata(path).num_rows for path in paths)
    else:
        ids = [json.loads(line)["id"] for path in paths for line in path.read_bytes().splitlines()]
    assert ids == [key for batch in batches for key in batch["id"].to_pylist()]


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilbeam.transforms.output.shards._BUFFER_BYTES", {"parquet": 50_000, "jsonl": 50_000})
    (path,) = write(tmp_path, [vectors(500, seed=seed) for seed in range(4)])
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    assert len(groups) > 8
    assert max(groups) < 60_000
    ids = [key for batch in (vectors(500, seed=seed) for seed in range(4)) for key in batch["id"].to_pylist()]
    assert pq.read_table(path)["id"].to_pylist() == ids


def test_one_row_may_be_larger_than_a_shard(tmp_path: Path) -> None:
    batch = pa.record_batch({"text": ["a" * 5, "b" * 100_000, "c"]})
    paths = write(tmp_path, [batch], format="jsonl", max_bytes=1000)
    assert [len(path.read_bytes().splitlines()) for path in paths] == [1, 1, 1]


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    assert write(tmp_path, [vectors(0)]) == []


def test_vectors_have_no_dictionary_and_other_columns_have(tmp_path: Path) -> None:
    batch = vectors(100).append_column("kind", pa.array(["x"] * 100))
    batch = batch.append_column("deep", pa.array([{"a.b": [1]}] * 100))
    (path,) = write(tmp_path, [batch])
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    assert not columns["embedding.list.element"].has_dictionary_page
    assert not columns["embedding.list.element"].is_stats_set
    for name in ("id", "kind", "deep.a.b.list.element"):
        assert columns[name].has_dictionary_page
    assert {column.compression for column in columns.values()} == {"ZSTD"}


@pytest.mark.parametrize("ordered", [False, True])
def test_a_slice_takes_no_dictionary_that_it_does_not_use(tmp_path: Path, ordered: bool) -> None:
    """Pandas categories: each slice of a column has the values of all rows."""
    words = [f"{number:05} " * 100 for number in range(4000)]
    chance = np.random.default_rng(0).permutation(4000)
    indices = pa.array(chance, pa.int16(), mask=chance % 9 == 0)
    kind = pa.DictionaryArray.from_arrays(indices, words, ordered=ordered)
    batch = pa.record_batch({"id": range(4000), "kind": kind})
    limit = 200_000
    pieces = list(_pieces(batch, limit))
    assert max(piece.nbytes for piece in pieces) <= limit
    assert len(pieces) <= 2 * math.ceil(batch.nbytes / limit)
    assert [row for piece in pieces for row in piece.to_pylist()] == batch.to_pylist()
    assert {piece.schema for piece in pieces} == {batch.schema}
    for name, settings in (("whole", {}), ("bounded", {"max_bytes": limit})):
        (tmp_path / name).mkdir()
        paths = write(tmp_path / name, [batch.slice(at, 500) for at in range(0, 4000, 500)], **settings)
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        assert rows == batch.to_pylist()
        assert pq.read_table(paths[0]).schema.field("kind").type == pa.dictionary(pa.int32(), pa.string(), ordered)
    assert all(path.stat().st_size <= limit for path in paths)


def test_a_dictionary_inside_a_list_makes_no_tiny_pieces() -> None:
    words = pa.array([f"{number:05} " * 100 for number in range(4000)]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array(range(4001), pa.int32()), words)
    batch = pa.record_batch({"id": range(4000), "kinds": lists})
    pieces = list(_pieces(batch, 20_000))
    assert len(pieces) <= 8
    assert sum(piece.num_rows for piece in pieces) == 4000


def test_null_vectors_from_the_middle_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow cannot read null fixed-size lists from Parquet; what we write it must read."""
    monkeypatch.setattr("distilbeam.transforms.output.shards._BUFFER_BYTES", {"parquet": 5_000, "jsonl": 5_000})
    kind = vectors(1)["embedding"].type
    some = [None, vectors(1)["embedding"][0].as_py(), None]
    batches = [vectors(3), pa.record_batch({"id": [1, 2, 3], "embedding": pa.array(some, kind)}), vectors(40, seed=1)]
    paths = write(tmp_path, batches)
    read = [value for path in paths for value in pq.read_table(path)["embedding"].to_pylist()]
    assert read == [value for batch in batches for value in batch["embedding"].to_pylist()]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, *({"format": "jsonl", "compression": kind} for kind in ("none", "gzip", "zstd"))]
    for number, settings in enumerate(kinds):
        files = []
        for name in ("one", "two"):
            folder = tmp_path / f"{name}-{number}"
            folder.mkdir()
            files.append([path.read_bytes() for path in write(folder, [vectors(50)], **settings)])
        assert files[0] == files[1]


def test_given_up_files_disappear(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path), "a", vectors(1).schema, ShardSettings(max_bytes=10_000))
    for seed in range(5):
        writer.write(vectors(50, seed=seed))
    assert list(tmp_path.iterdir())
    writer.abort()
    assert not list(tmp_path.iterdir())


def test_errors_do_not_quote_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(str(tmp_path), "a", vectors(1).schema, ShardSettings())
    writer.write(vectors(5))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise pa.ArrowInvalid("cannot convert 'canary'")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", refuse)
    with pytest.raises(OutputError) as caught:
        writer.close()
    writer.abort()
    assert not list(tmp_path.iterdir())
    assert "canary" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full")
    writer = ShardWriter("/dev", "full", vectors(1).schema, ShardSettings())
    writer.write(vectors(5))
    writer._flush()
    assert writer._file is not None
    writer._file._sink.stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        writer.close()
    writer.abort()


_EVERYTHING: list[tuple[pa.Array, list[Any]]] = [
    (pa.array([1, None, -(2**63)]), [1, None, -(2**63)]),
    (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
    (pa.array([True, None, False]), [True, None, False]),
    (pa.array([0.1, 1e300, math.nan, -math.inf, None]), [0.1, 1e300, None, None, None]),
    (pa.array([np.float16(0.1), None], pa.float16()), [0.099975586, None]),
    (pa.array(['a"\n\u2028é\x00', None, ""]), ['a"\n\u2028é\x00', None, ""]),
    (pa.array(["x", None], pa.large_string()), ["x", None]),
    (pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", None, "a"]),
    (pa.array([b"\xff\x00", None]), ["/wA=", None]),
    (pa.array([datetime.date(2024, 2, 29), None]), ["2024-02-29", None]),
    (pa.array([1, None], pa.timestamp("ns")), ["1970-01-01T00:00:00.000000001", None]),
    (pa.array([0, None], pa.timestamp("s", "Europe/Berlin")), ["1970-01-01T00:00:00Z", None]),
    (pa.array([datetime.time(1, 2, 3, 4)]), ["01:02:03.000004"]),
    (pa.array([5, None], pa.duration("ms")), [5, None]),
    (pa.array([decimal.Decimal("1.50"), None]), ["1.50", None]),
    (pa.array([[1], None, [], [None, 2]]), [[1], None, [], [None, 2]]),
    (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)), [[1, 2], None, [3, 4]]),
    (
        pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
        [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}],
    ),
    (
        pa.array([[("a", 1)], None, [], [("b", None), ("c", 2)]], pa.map_(pa.string(), pa.int8())),
        [{"a": 1}, None, {}, {"b": None, "c": 2}],
    ),
    (pa.array([[(1, "x")]], pa.map_(pa.int8(), pa.string())), [{"1": "x"}]),
    (pa.nulls(2), [None, None]),
    (pa.array([{}, None], pa.struct([])), [{}, None]),
]


@pytest.mark.parametrize(("array", "expected"), _EVERYTHING, ids=[str(array.type) for array, _ in _EVERYTHING])
def test_json_of_every_type(tmp_path: Path, array: pa.Array, expected: list[Any]) -> None:
    for start in range(len(array)):
        folder = tmp_path / str(start)
        folder.mkdir()
        batch = pa.record_batch({'a "%s" column': array}).slice(start)
        (path,) = write(folder, [batch], format="jsonl")
        values = [json.loads(line)['a "%s" column'] for line in path.read_text().split("\n")[:-1]]
        assert values == expected[start:]


def test_json_floats_round_trip(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    floats = bits.view(np.float32)
    floats = floats[np.isfinite(floats)]
    (path,) = write(tmp_path, [pa.record_batch({"x": pa.array(floats)})], format="jsonl", compression="gzip")
    read = [json.loads(line)["x"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert np.array_equal(np.array(read, np.float32).view(np.uint32), floats.view(np.uint32))


def test_metadata_of_the_user_and_the_model() -> None:
    pandas = {
        "index_columns": [{"kind": "range", "start": 0, "stop": 9, "step": 1}, "id"],
        "columns": [{"name": "id", "field_name": "id"}, {"name": "gone", "field_name": "gone"}],
    }
    metadata = {"mine": "1", "pandas": json.dumps(pandas), "distilbeam": "{}", "distilbeam.model": "an earlier run"}
    schema = pa.schema([("id", pa.int64())], metadata=metadata)
    models = [{"id": "m", "settings": {"b": 1, "a": 2}, "revision": None}, {"id": "n"}]
    found = model_metadata(models, schema).metadata
    assert json.loads(found[b"distilbeam"]) == models
    assert found[b"mine"] == b"1"
    assert json.loads(found[b"pandas"]) == {"index_columns": ["id"], "columns": pandas["columns"][:1]}
    assert found[b"distilbeam.model"] == b"m"
    assert found[b"distilbeam.settings"] == b'{"a": 2, "b": 1}'
    assert b"distilbeam.revision" not in found
    assert set(model_metadata([], schema).metadata) == {b"mine", b"pandas"}
    assert not model_metadata([], pa.schema([("id", pa.int64())])).metadata


def test_settings() -> None:
    assert ShardSettings().compression == "zstd"
    assert ShardSettings("jsonl").compression == "none"
    assert ShardSettings("parquet") == ShardSettings("parquet", "zstd")
    with pytest.raises(SettingsError, match="'csv'; it must be one of parquet, jsonl"):
        ShardSettings("csv")
    with pytest.raises(SettingsError, match="`max_shard_bytes` is True"):
        ShardSettings(max_bytes=True)


def test_documents_have_neither_dictionary_nor_statistics(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict({"text": ["one", "two", "one"], "label": ["a", "a", "b"]})
    writer = ShardWriter(str(tmp_path), "a", batch.schema, ShardSettings(), texts=("text",))
    writer.write(batch)
    (file,) = writer.close()
    group = pq.ParquetFile(tmp_path / file.path).metadata.row_group(0)
    found = {group.column(index).path_in_schema: group.column(index) for index in range(2)}
    assert [found[name].has_dictionary_page for name in ("text", "label")] == [False, True]
    assert [found[name].is_stats_set for name in ("text", "label")] == [False, True]
    assert pq.read_table(tmp_path / file.path).to_batches()[0].equals(batch)
