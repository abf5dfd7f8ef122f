"""The output folder, seen by other libraries, and a whole pipeline around the writer."""

import hashlib
import json
import uuid
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import TimestampedValue

from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.encoder import Encoder
from distilbeam.transforms.errors import (
    DistilbeamError,
    OutputError,
    OutputExistsError,
    RejectLimitError,
    SettingsError,
)
from distilbeam.transforms.features import SplitWriter, WriteFeatures, _Begin, _Commit, _WriteSplits
from distilbeam.transforms.featurization import FeatureSpec
from distilbeam.transforms.inference import Embed, Tokenize
from distilbeam.transforms.output.history import Base
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.output.shards import ShardSettings
from distilbeam.transforms.output.vectors import stored_schema
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.rejects import RejectLimit
from tests.plans import Plan, s3_bucket


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan()


def run_beam(output: Any, batches: list[list[pa.RecordBatch]], **settings: Any) -> dict[str, Any]:
    """Runs a pipeline that writes; gives what it sums up, and its counters."""
    pipeline = beam.Pipeline(runner=FnApiRunner())
    summary = pipeline | beam.Create(batches) | beam.FlatMap(list) | WriteFeatures(output, **settings)
    _ = summary | beam.Map(json.dumps) | beam.io.WriteToText(f"{output}.summary", shard_name_template="")
    result = pipeline.run()
    result.wait_until_finish()
    (found,) = map(json.loads, Path(f"{output}.summary").read_text().splitlines())
    counters = {counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]}
    return {**found, "counters": counters}


def run(output: Any, batches: list[list[pa.RecordBatch]], **settings: Any) -> dict[str, Any]:
    """The same without a runner, one bundle for each split."""
    transform = WriteFeatures(output, **{"max_rejects": None, **settings})
    (base,) = _Begin(transform._output, transform.if_exists, uuid.uuid4().hex).process(None)
    writing = _WriteSplits(transform._output, transform._shards, RejectLimit())
    writing.setup()
    records = []
    for bundle in batches:
        writing.start_bundle()
        records += [record for batch in bundle for record in writing.process(batch, base)]
        records += [each.value for each in writing.finish_bundle()]
    (summary,) = _Commit(transform._output, transform.if_exists, transform._limit).process(records, base)
    return dict(summary)


def fails(error: type[DistilbeamError], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        run(*args, **kwargs)
    return str(caught.value)


def visible(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("*")) if output.exists() else []


def hashes(output: Path) -> dict[str, str]:
    """Of all files save for the history, which holds the time."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.parent.name != "history"
    }


def sorted_rows(table: pa.Table) -> list[dict[str, Any]]:
    return table.sort_by("id").to_pylist()


def test_other_libraries_read_the_same(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    summary = run_beam(output, plan.batches, max_rejects=None)
    expected = plan.table.sort_by("id")

    read = ds.dataset(output).to_table().sort_by("id").replace_schema_metadata(None)
    assert read.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 4)
    assert read.to_pylist() == expected.to_pylist()
    assert read.schema.names == expected.schema.names
    for name in ("id", "when", "price", "tags", "kind", "score", "token_count", "truncated"):
        assert read.schema.field(name).type.equals(expected.schema.field(name).type) or name == "tags"

    frame = pd.read_parquet(output).sort_values("id", ignore_index=True)
    assert frame["text"].tolist() == expected["text"].to_pylist()
    assert np.array_equal(np.stack(frame["embedding"]), np.array(expected["embedding"].to_pylist(), np.float32))

    query = f"""SELECT id, embedding, price, "when", place.height FROM read_parquet('{output}/features') ORDER BY id"""
    rows = duckdb.sql(query).fetchall()
    assert [row[0] for row in rows] == expected["id"].to_pylist()
    assert np.array_equal(np.array([row[1] for row in rows], np.float32), np.array(expected["embedding"].to_pylist()))
    assert [row[2] for row in rows] == expected["price"].to_pylist()
    assert [row[4] for row in rows] == [place["height"] for place in expected["place"].to_pylist()]

    assert summary["rows"] == len(expected) == summary["counters"]["rows_written"]
    assert summary["rejects"] == len(plan.rejects) == summary["counters"]["rows_rejected"]
    assert summary["shards"] == summary["counters"]["shards_written"] == len(list(output.glob("features/*.parquet")))
    assert summary["tokens"] == sum(expected["token_count"].to_pylist())
    assert summary["truncated"] == sum(expected["truncated"].to_pylist())
    counts = {count["values"]: count["counts"] for count in expected["label"].value_counts().to_pylist()}
    assert summary["labels"] == counts


def test_rejects_are_named_by_the_lines_of_their_files(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    run(output, plan.batches)
    table = ds.dataset(output / "_rejects").to_table()
    found = sorted(zip(table["source"].to_pylist(), table["line"].to_pylist(), strict=True))
    assert found == sorted(plan.rejects)
    assert table["length"].to_pylist() == table["line"].to_pylist()
    assert table["row"].null_count == table["text"].null_count == len(table)
    assert set(table.schema.names) == {"source", "row", "line", "id", "stage", "error", "reason", "length", "text"}


def test_layout_and_metadata(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    run(output, plan.batches)
    assert all(name in ("_distilbeam", "_rejects", "features") for name in visible(output))
    inside = sorted(str(path.relative_to(output)) for path in (output / "_distilbeam").rglob("*"))
    assert inside == ["_distilbeam/history", "_distilbeam/history/000001.json", "_distilbeam/manifest.json"]
    metadata = pq.read_schema(next(output.glob("features/*.parquet"))).metadata
    assert json.loads(metadata[b"distilbeam"]) == [plan.model]
    assert metadata[b"distilbeam.model"] == b"tiny"
    assert metadata[b"distilbeam.weights_sha256"] == b"abc"
    assert json.loads(metadata[b"distilbeam.settings"]) == plan.settings
    assert metadata[b"owner"] == b"us"
    manifest = load_manifest(str(output))
    for shard in manifest.shards:
        data = (output / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        assert pq.read_metadata(output / shard.path).num_rows == shard.rows
    assert manifest.files == {name for name in hashes(output) if "manifest" not in name}


def test_equal_input_gives_equal_bytes(tmp_path: Path, plan: Plan) -> None:
    run_beam(tmp_path / "one", plan.batches, max_rejects="25%")
    run(tmp_path / "two", list(reversed(plan.batches)))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_float16_vectors(tmp_path: Path) -> None:
    plan = Plan(dtype="float16")
    output = tmp_path / "out"
    run(output, plan.batches)
    table = ds.dataset(output).to_table().sort_by("id")
    assert table.schema.field("embedding").type.value_type == pa.float16()
    expected = np.array(plan.table.sort_by("id")["embedding"].to_pylist(), np.float16)
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float16), expected)
    rows = duckdb.sql(f"SELECT embedding FROM read_parquet('{output}/features') ORDER BY id").fetchall()
    assert np.array_equal(np.array([row[0] for row in rows], np.float16), expected)
    frame = pd.read_parquet(output).sort_values("id")
    assert np.array_equal(np.stack(frame["embedding"]), expected)


def test_null_features_can_be_read(tmp_path: Path) -> None:
    """A split with null vectors beside splits without: all shards have the same types."""
    plan = Plan(nulls=True)
    output = tmp_path / "out"
    run(output, plan.batches)
    table = ds.dataset(output).to_table().sort_by("id")
    expected = [row["embedding"] for row in plan.rows]
    lost = expected.count(None)
    assert table["embedding"].null_count == lost > 0
    assert table["embedding"].to_pylist() == expected
    assert [None if v is None else list(v) for v in pd.read_parquet(output).sort_values("id")["embedding"]] == expected
    counted = duckdb.sql(f"SELECT count(embedding) FROM read_parquet('{output}/features')").fetchall()
    assert counted == [(len(expected) - lost,)]
    assert pl.read_parquet(output / "features").sort("id")["embedding"].to_list() == expected
    kinds = {pq.read_schema(path).field("embedding").type for path in output.glob("features/*")}
    assert kinds == {pa.list_(pa.field("element", pa.float32(), nullable=False))}


def test_a_null_where_none_can_be_is_set_aside(tmp_path: Path, plan: Plan) -> None:
    """A step of the user's own may break what the schema says."""
    batch = plan.batches[1][0]
    index = batch.schema.get_field_index("embedding")
    column = pa.array([None, *batch["embedding"].to_pylist()[1:]], batch["embedding"].type)
    broken = batch.set_column(index, batch.schema.field(index), column)
    output = tmp_path / "out"
    summary = run(output, [[broken if each is batch else each for each in split] for split in plan.batches])
    assert summary["rejects"] == len(plan.rejects) + 1
    lost = batch["id"][0].as_py()
    assert sorted_rows(ds.dataset(output).to_table()) == [row for row in plan.rows if row["id"] != lost]
    rejects = ds.dataset(output / "_rejects").to_table().to_pylist()
    (reject,) = (row for row in rejects if row["stage"] == "write")
    assert (reject["id"], "'embedding'" in reject["reason"]) == (str(lost), True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_as_lists(tmp_path: Path, dtype: str) -> None:
    plan = Plan(dtype=dtype)
    run(tmp_path / "fixed", plan.batches)
    run(tmp_path / "list", plan.batches, vector_type="list")
    element = pa.field("element", pa.float32() if dtype == "float32" else pa.float16(), nullable=False)
    for name, kind in (("fixed", pa.list_(element, 4)), ("list", pa.list_(element))):
        kinds = {pq.read_schema(path).field("embedding").type for path in (tmp_path / name).glob("features/*")}
        assert kinds == {kind}
        assert sorted_rows(ds.dataset(tmp_path / name).to_table()) == plan.rows
        assert dict(load_manifest(str(tmp_path / name)).schema)["embedding"] == str(kind)
    with pytest.raises(OutputExistsError, match="`vector_type` was 'fixed', is 'list'"):
        WriteFeatures(tmp_path / "fixed", if_exists="resume", vector_type="list").ledger(plan.settings).finished(
            plan.splits
        )


def test_lists_of_fixed_size_in_the_input_are_lists_too_where_that_is_asked() -> None:
    fixed = pa.list_(pa.float32(), 2)
    schema = pa.schema([("a", fixed), ("b", pa.struct([("c", pa.list_(fixed))])), ("d", pa.int8())], {b"k": b"v"})
    table = pa.Table.from_pylist([{"a": [1, 2], "b": {"c": [[3, 4], None]}, "d": 1}, {"a": None}], schema)
    assert stored_schema(schema, ["x"], "fixed") == schema
    stored = stored_schema(schema, ["x"], "list")
    assert "fixed_size" not in str(stored)
    assert stored.metadata == schema.metadata
    assert table.cast(stored).to_pylist() == table.to_pylist()


@pytest.mark.parametrize("outer", [lambda kind: pa.map_(pa.string(), kind), lambda kind: pa.map_(kind, kind)])
def test_lists_of_fixed_size_inside_of_maps_are_lists_too_where_that_is_asked(outer: Any) -> None:
    fixed, plain = pa.list_(pa.float32(), 2), pa.list_(pa.float32())
    for wrapped in (outer, lambda kind: pa.struct({"m": outer(pa.list_(kind))})):
        stored = stored_schema(pa.schema([("a", wrapped(fixed))]), [], "list")
        assert stored.field("a").type == wrapped(plain)
    kind = pa.dictionary(pa.int32(), fixed)
    assert stored_schema(pa.schema([("a", kind)]), [], "list").field("a").type.value_type == plain


@pytest.mark.parametrize("compression", ["none", "zstd", "gzip"])
def test_json_lines(tmp_path: Path, plan: Plan, compression: str) -> None:
    output = tmp_path / "out"
    summary = run(output, plan.batches, format="jsonl", compression=compression)
    suffix = {"none": ".jsonl", "zstd": ".jsonl.zst", "gzip": ".jsonl.gz"}[compression]
    files = sorted(output.glob("features/part-*"))
    assert files
    assert all("".join(file.suffixes) == suffix for file in files)
    frame = duckdb.sql(f"SELECT * FROM read_json('{output}/features/part-*{suffix}') ORDER BY id").to_arrow_table()
    expected = plan.table.sort_by("id")
    assert frame["id"].to_pylist() == expected["id"].to_pylist()
    assert frame["when"].cast(pa.timestamp("us", "UTC")).to_pylist() == expected["when"].to_pylist()
    assert frame["place"].to_pylist() == expected["place"].to_pylist()
    assert np.array_equal(
        np.array(frame["embedding"].to_pylist(), np.float32), np.array(expected["embedding"].to_pylist())
    )
    assert summary["rows"] == len(expected)


@pytest.mark.parametrize("store", ["memory", "s3"])
def test_on_object_stores(tmp_path: Path, plan: Plan, store: str) -> None:
    with s3_bucket() if store == "s3" else nullcontext("memory://bucket") as bucket:
        _check_on_store(f"{bucket}/out", tmp_path, plan)


def _check_on_store(url: str, tmp_path: Path, plan: Plan) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(plan.batches) | beam.FlatMap(list) | WriteFeatures(url, max_rejects=None)
    run(tmp_path / "local", plan.batches)
    manifest = load_manifest(url)
    assert manifest == load_manifest(str(tmp_path / "local"))
    filesystem = fsspec.filesystem(url.partition(":")[0])
    names = {name.partition(url.rpartition("/")[2] + "/")[2] for name in filesystem.find(url)}
    assert names == {*hashes(tmp_path / "local"), "_distilbeam/history/000001.json"}
    files = [filesystem.cat_file(f"{url}/{shard.path}") for shard in manifest.shards]
    tables = [pq.read_table(pa.BufferReader(file)) for file in files]
    assert sorted_rows(pa.concat_tables(tables)) == plan.rows

    before = filesystem.find(url, detail=True)
    finished = WriteFeatures(url, if_exists="resume").ledger(plan.settings).finished(plan.splits)
    assert len(finished) == len(plan.splits)
    run(url, [[plan.finished(split.ordinal)] for split in plan.splits], if_exists="resume")
    filesystem.invalidate_cache()
    assert filesystem.find(url, detail=True) == before
    run(url, Plan(lines=9).batches, if_exists="overwrite")
    filesystem.invalidate_cache()
    assert len(filesystem.find(url)) == len(load_manifest(url).files) + 1 + 2


def test_interrupted_and_failed_bundles_leave_nothing(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSettings(max_bytes=300)
    base = Base(0, 0, "job")
    writing = _WriteSplits(str(tmp_path), shards, RejectLimit())
    writing.setup()
    for batch in plan.batches[0][:-1]:
        assert not list(writing.process(batch, base))
    assert list(tmp_path.rglob("*.parquet"))
    writing.start_bundle()  # the bundle before has failed in another step
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    for batch in plan.batches[0][:-1]:
        assert not list(writing.process(batch, base))

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distilbeam.transforms.output.split_writer.stage_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(writing.process(plan.batches[0][-1], base))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert len([record for batch in plan.batches[0] for record in writing.process(batch, base)]) == 1


def test_regrouped_batches_are_refused(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    pipeline = beam.Pipeline(runner=FnApiRunner())
    rows = pipeline | beam.Create(plan.batches) | beam.FlatMap(list)
    rows = (
        rows
        | beam.GroupBy(lambda batch: Provenance.of(batch).sequence % 2)
        | beam.FlatMapTuple(lambda key, group: group)
    )
    _ = rows | WriteFeatures(output)
    with pytest.raises(OutputError, match="Reshuffle, GroupByKey"):
        pipeline.run().wait_until_finish()
    assert visible(output) in ([], ["_distilbeam"])
    assert not list(output.rglob("*.parquet"))


def test_a_bundle_that_ends_early_is_refused(tmp_path: Path, plan: Plan) -> None:
    batches = [*plan.batches[:-1], plan.batches[-1][:-1]]
    message = fails(OutputError, tmp_path / "out", batches)
    assert "in the middle of 1 splits" in message
    assert not list(tmp_path.rglob("*.tmp"))
    assert visible(tmp_path / "out") in ([], ["_distilbeam"])


@pytest.mark.parametrize("change", ["drop", "double"])
def test_missing_and_doubled_splits_are_refused(tmp_path: Path, plan: Plan, change: str) -> None:
    batches = plan.batches[:2] + plan.batches[3:] if change == "drop" else [*plan.batches, plan.batches[2]]
    message = fails(OutputError, tmp_path / "out", batches)
    assert ": 2;" in message
    assert visible(tmp_path / "out") == ["_distilbeam"]


def test_lost_rows_are_refused(tmp_path: Path, plan: Plan) -> None:
    batches = [list(split) for split in plan.batches]
    full = max(range(len(batches[1])), key=lambda at: batches[1][at].num_rows)
    batches[1][full] = batches[1][full].slice(1)
    assert "split 1 read" in fails(OutputError, tmp_path / "out", batches)
    assert visible(tmp_path / "out") == ["_distilbeam"]


def test_no_batches_at_all(tmp_path: Path) -> None:
    assert "no batch reached" in fails(OutputError, tmp_path / "out", [[]])


def test_batches_with_and_without_provenance_do_not_mix(tmp_path: Path, plan: Plan) -> None:
    bare = plan.batches[0][0].replace_schema_metadata(None)
    ours = plan.batches[0][0].replace_schema_metadata({"distilbeam": json.dumps([plan.model])})
    message = fails(OutputError, tmp_path / "out", [*plan.batches, [bare, ours]])
    assert "batches of ReadDocuments and others came to one WriteFeatures" in message
    assert run(tmp_path / "bare", [[bare, ours], [bare]])["rows"] == 3 * bare.num_rows


def test_a_batch_of_an_output_is_a_batch_like_any_other(tmp_path: Path, plan: Plan, checkpoints: Any) -> None:
    """What its files say of their model is not taken for what travels with the batches of a job."""
    run(tmp_path / "out", plan.batches)
    shard = next((tmp_path / "out").glob("features/*.parquet"))
    (batch,) = pq.read_table(shard).combine_chunks().to_batches()
    assert b"distilbeam" in batch.schema.metadata
    assert Provenance.of(batch) is None
    encoder = Encoder.load(checkpoints.bare, device="cpu")
    more = encoder.featurize(batch, FeatureSpec(("input_ids",), prefix="new_"))
    assert more.schema.names == [*batch.schema.names, "new_input_ids", "new_token_count", "new_truncated"]
    assert more["new_token_count"].null_count == 0


def test_two_models_in_one_pipeline(tmp_path: Path, checkpoints: Any) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in ("the cat", "a film")))

    def job(pooling: str) -> list[Any]:
        first = Embed(checkpoints.three_classes, prefix="a_", pooling=pooling, device="cpu")
        second = Tokenize(checkpoints.bare, prefix="b_")
        writing = WriteFeatures(tmp_path / "out", if_exists="resume")
        ledger = writing.ledger(first.settings, second.settings)
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            documents = pipeline | ReadDocuments(str(tmp_path / "in.jsonl"), ledger=ledger)
            _ = documents | first | second | writing
        return [first.settings, second.settings]

    settings = job("mean")
    manifest = load_manifest(str(tmp_path / "out"))
    assert [model["settings"] for model in manifest.models] == json.loads(json.dumps(settings))
    shard = next((tmp_path / "out").glob("features/*.parquet"))
    metadata = pq.read_schema(shard).metadata
    assert json.loads(metadata[b"distilbeam"]) == list(manifest.models)
    assert metadata[b"distilbeam.model"].decode() == manifest.models[0]["id"]
    assert manifest.statistics.tokens == sum(pq.read_table(shard)["a_token_count"].to_pylist())
    before = hashes(tmp_path / "out")
    job("mean")
    assert hashes(tmp_path / "out") == before
    with pytest.raises(OutputExistsError, match="`pooling` was 'mean', is 'cls'"):
        job("cls")
    assert hashes(tmp_path / "out") == before


def test_columns_must_stay_the_same(tmp_path: Path, plan: Plan) -> None:
    batches = [list(split) for split in plan.batches]
    batch = batches[0][1]
    batches[0][1] = Provenance.of(batch).attach(batch.drop_columns(["label"]))
    message = fails(OutputError, tmp_path / "out", batches)
    assert "label" in message
    assert "batch 1" in message
    assert not list(tmp_path.rglob("*.parquet"))


def test_splits_must_have_the_same_columns(tmp_path: Path, plan: Plan) -> None:
    batches = [list(split) for split in plan.batches]
    batches[1] = [Provenance.of(batch).attach(batch.drop_columns(["label"])) for batch in batches[1]]
    assert "different columns: label" in fails(OutputError, tmp_path / "out", batches)


def test_one_model_only(tmp_path: Path, plan: Plan) -> None:
    other = Plan(weights="other")
    message = fails(OutputError, tmp_path / "out", [*plan.batches[:-1], other.batches[-1]])
    assert "different models" in message
    writer = SplitWriter(str(tmp_path / "out"), plan.splits[0].id, ShardSettings())
    writer.write(plan.batches[0][0], Provenance.of(plan.batches[0][0]))
    with pytest.raises(OutputError, match="another model"):
        writer.write(other.batches[0][1], Provenance.of(other.batches[0][1]))


def test_reject_limit(tmp_path: Path, plan: Plan) -> None:
    allowed = len(plan.rejects)
    message = fails(RejectLimitError, tmp_path / "out", plan.batches, max_rejects=allowed - 1)
    assert f"{allowed} of {allowed + len(plan.table)} rows" in message
    assert visible(tmp_path / "out") == ["_distilbeam"]
    staged = list(tmp_path.glob("out/_distilbeam/staging/*-rejects.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in staged) == allowed
    assert run(tmp_path / "out", plan.batches, max_rejects=allowed)["rejects"] == allowed


def test_a_split_of_rejects_only_has_no_shard(tmp_path: Path) -> None:
    plan = Plan(files=1, lines=7, lines_per_part=6, parts_per_split=1)
    assert run(tmp_path / "out", plan.batches)["shards"] == 1
    assert len(plan.splits) == 2
    assert [len(record.shards) for record in load_manifest(str(tmp_path / "out")).records] == [1, 0]
    assert len(list((tmp_path / "out" / "_rejects").iterdir())) == 1


@pytest.mark.parametrize("vector_type", ["fixed", "list"])
def test_an_output_without_rows_has_one_shard_that_tells_its_columns(tmp_path: Path, vector_type: str) -> None:
    plan = Plan(files=7, lines=6, lines_per_part=6, parts_per_split=1)
    for split in plan.batches:
        for number, batch in enumerate(split):
            split[number] = Provenance.of(batch).attach(batch.slice(0, 0))
    plan.batches = [
        [replace(note, seen=len(note.rejects), last=True).attach(batch)]
        for split in plan.batches
        for batch in split[-1:]
        for note in [replace(Provenance.of(batch), sequence=0)]
    ]
    output = tmp_path / "out"
    assert run(output, plan.batches, vector_type=vector_type)["shards"] == 1
    (path,) = (output / "features").iterdir()
    empty = pq.read_table(path)
    run(tmp_path / "full", Plan().batches, vector_type=vector_type)
    assert empty.num_rows == 0
    assert empty.schema == pq.read_schema(next((tmp_path / "full").glob("features/*")))
    assert pl.read_parquet(output / "features").shape == pd.read_parquet(output).shape == empty.shape
    assert duckdb.sql(f"SELECT count(embedding) FROM read_parquet('{output}/features')").fetchall() == [(0,)]


def test_existing_output(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    run(output, plan.batches)
    with pytest.raises(OutputExistsError, match=r"overwrite.*resume"):
        beam.Pipeline(runner=FnApiRunner()) | beam.Create([]) | WriteFeatures(output)
    other = Plan(settings={"model": "tiny", "dimensions": 2}, lines=20)
    with pytest.raises(OutputExistsError, match="`dimensions` was None, is 2"):
        WriteFeatures(output, if_exists="resume").ledger(other.settings).finished(other.splits)
    assert run(output, other.batches, if_exists="overwrite")["commit"] == 2
    run(tmp_path / "clean", other.batches)
    found, clean = hashes(output), hashes(tmp_path / "clean")
    assert {**found, "_distilbeam/manifest.json": ""} == {**clean, "_distilbeam/manifest.json": ""}
    manifest = load_manifest(str(output))
    assert replace(manifest, commit=1) == load_manifest(str(tmp_path / "clean"))


class _Model(beam.DoFn):
    """Stands where a model would, and notes that it was loaded."""

    def __init__(self, loaded: Path) -> None:
        self._loaded = loaded

    def setup(self) -> None:
        self._loaded.touch()

    def process(self, batch: pa.RecordBatch) -> Any:
        yield batch


@pytest.mark.parametrize("exists", [True, False])
def test_an_output_that_must_stay_is_noticed_before_the_model_is_loaded(
    tmp_path: Path, plan: Plan, exists: bool
) -> None:
    """Even where the folder was out of reach, or empty, when the pipeline was built."""
    output, loaded = tmp_path / "out", tmp_path / "loaded"
    pipeline = beam.Pipeline(runner=FnApiRunner())
    batches = pipeline | beam.Create(plan.batches) | beam.FlatMap(list) | beam.ParDo(_Model(loaded))
    _ = batches | WriteFeatures(output, max_rejects=None)
    if exists:
        run(output, plan.batches)
    before = hashes(output)
    if not exists:
        pipeline.run().wait_until_finish()
        assert loaded.exists()
        return
    with pytest.raises(OutputExistsError, match=r"overwrite.*resume"):
        pipeline.run().wait_until_finish()
    assert not loaded.exists()
    assert hashes(output) == before


def test_windows(tmp_path: Path, plan: Plan) -> None:
    """One commit for all windows."""
    timed = [TimestampedValue(split, 10 * number) for number, split in enumerate(plan.batches)]
    with beam.Pipeline(FnApiRunner()) as pipeline:
        splits = pipeline | beam.Create(timed) | beam.Map(lambda value: value)
        windows = splits | beam.WindowInto(beam.window.FixedWindows(10))
        _ = windows | beam.FlatMap(list) | WriteFeatures(tmp_path / "out", max_rejects=None)
    assert sorted_rows(ds.dataset(tmp_path / "out").to_table()) == plan.rows
    assert load_manifest(str(tmp_path / "out")).commit == 1


def test_files_of_others_are_never_touched(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    output.mkdir()
    pq.write_table(pa.table({"a": [1]}), output / "mine.parquet")
    for if_exists in ("error", "overwrite", "resume"):
        with pytest.raises(OutputExistsError, match=r"mine|1 files"):
            beam.Pipeline(runner=FnApiRunner()) | beam.Create([]) | WriteFeatures(output, if_exists=if_exists)
    assert visible(output) == ["mine.parquet"]


def test_finished_splits_are_not_written_again(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    done = [0, 2]
    for ordinal in done:
        plan.write(str(output), ordinal)
    staged = {path.name: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    finished = WriteFeatures(output, if_exists="resume").ledger(plan.settings).finished(plan.splits)
    assert finished == {plan.splits[ordinal].id for ordinal in done}

    written: list[str] = []
    original = SplitWriter.finish

    def finish(self: SplitWriter, provenance: Provenance) -> Any:
        written.append(provenance.split)
        return original(self, provenance)

    monkeypatch.setattr(SplitWriter, "finish", finish)
    batches = [[plan.finished(ordinal)] if ordinal in done else split for ordinal, split in enumerate(plan.batches)]
    summary = run(output, batches, if_exists="resume")
    assert sorted(written) == sorted(split.id for split in plan.splits if split.ordinal not in done)
    assert summary["rows"] == len(plan.table)
    kept = {path.stat().st_mtime_ns for path in output.glob("features/*.parquet")}
    assert kept.issuperset(time for name, time in staged.items() if "rejects" not in name)

    monkeypatch.undo()
    run(tmp_path / "clean", plan.batches)
    assert hashes(output) == hashes(tmp_path / "clean")


def test_a_complete_output_is_left_alone(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    run(output, plan.batches)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    finished = WriteFeatures(output, if_exists="resume").ledger(plan.settings).finished(plan.splits)
    assert len(finished) == len(plan.splits)
    run(output, [[plan.finished(split.ordinal)] for split in plan.splits], if_exists="resume")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "csv"},
        {"if_exists": "append"},
        {"max_rejects": "one"},
        {"max_rejects": "101%"},
        {"max_shard_bytes": 0},
        {"compression": "lzma"},
        {"format": "jsonl", "compression": "snappy"},
        {"path": "s3://key:secret@bucket/out"},
        {"path": "simplecache::memory://out"},
        {"path": "http://169.254.169.254/out"},
    ],
)
def test_settings_are_checked_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        WriteFeatures(**{"path": tmp_path, **settings})
    assert "secret" not in str(caught.value)


def test_the_output_is_not_read_as_input(tmp_path: Path, plan: Plan) -> None:
    batch = plan.batches[0][0]
    note = Provenance.of(batch)
    for output, inside in [("/in", True), ("/in/", True), ("/i", False), ("memory://in", False), ("/in/0", False)]:
        writer = SplitWriter(output, note.split, ShardSettings())
        if inside:
            with pytest.raises(OutputError, match="lies in the output folder"):
                writer.write(batch, note)
        else:
            writer.write(batch, note)


def test_order_inside_a_split(tmp_path: Path, plan: Plan) -> None:
    writer = SplitWriter(str(tmp_path), plan.splits[0].id, ShardSettings())
    first, second, third = (Provenance.of(batch) for batch in plan.batches[0][:3])
    writer.write(plan.batches[0][0], first)
    with pytest.raises(OutputError, match="batch 2 of split 0 came where batch 1"):
        writer.write(plan.batches[0][2], third)
    with pytest.raises(OutputError, match="part 5"):
        writer.write(plan.batches[0][1], replace(second, part=5))
