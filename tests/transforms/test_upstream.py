"""Steps of the user's own between reading and writing, and a job that is resumed without being told how."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from distilbeam.transforms import Encoder, Featurize, ReadDocuments, Tokenize, WriteFeatures, featurization, workers
from distilbeam.transforms.errors import OutputError, SettingsError
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.upstream import look_upstream
from tests.checkpoints import Checkpoints


class Document(NamedTuple):
    id: int
    text: str


STARS = [stars % 5 for stars in range(40)]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "_shared", {})


@pytest.fixture
def documents(tmp_path: Path) -> str:
    """Four files of ten good lines and one bad one, of several splits each."""
    folder = tmp_path / "in"
    folder.mkdir()
    for file in range(4):
        lines = [
            json.dumps({"id": i, "stars": STARS[i], "text": f"text {i}"}) for i in range(10 * file, 10 * file + 10)
        ]
        (folder / f"{file}.jsonl").write_text("\n".join([*lines[:5], "{broken", *lines[5:]]) + "\n")
    return str(folder)


def read(documents: str) -> ReadDocuments:
    return ReadDocuments(documents, batch_rows=3, split_bytes=200)


def filtered(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.filter(pc.field("stars") > 2)


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pa.array([row for row in range(batch.num_rows) for _ in range(2)], pa.int64()))


def reversed_(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pa.array(range(batch.num_rows - 1, -1, -1), pa.int64()))


def long(batch: pa.RecordBatch) -> pa.RecordBatch:
    """By a column of the model's."""
    return batch.filter(pc.field("token_count") > 4)


def run(
    documents: str, output: Path, model: Any, *, before: Any = None, after: Any = None, **settings: Any
) -> tuple[list[int], dict[str, Any], dict[str, int]]:
    """Ids of the rows written, what the manifest says, and the counters."""
    pipeline = beam.Pipeline(runner=FnApiRunner())
    found = pipeline | read(documents)
    found = found if before is None else found | "before" >> beam.Map(before)
    found = found | model
    found = found if after is None else found | "after" >> beam.Map(after)
    _ = found | WriteFeatures(output, max_rejects=None, **settings)
    result = pipeline.run()
    result.wait_until_finish()
    counters = {counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]}
    ids = ds.dataset([str(output / shard.path) for shard in load_manifest(str(output)).shards]).to_table()["id"]
    return sorted(ids.to_pylist()), load_manifest(str(output)).summary(""), counters


@pytest.mark.parametrize(
    ("before", "after", "expected", "dropped", "added"),
    [
        (filtered, None, "SELECT id FROM t WHERE stars > 2", 24, 0),
        (None, filtered, "SELECT id FROM t WHERE stars > 2", 24, 0),
        (filtered, filtered, "SELECT id FROM t WHERE stars > 2", 24, 0),
        (None, doubled, "SELECT id FROM t UNION ALL SELECT id FROM t", 0, 40),
        (doubled, filtered, "SELECT id FROM t WHERE stars > 2 UNION ALL SELECT id FROM t WHERE stars > 2", 48, 40),
        (reversed_, reversed_, "SELECT id FROM t", 0, 0),
        (None, lambda batch: batch.slice(0, 0), "SELECT id FROM t WHERE false", 40, 0),
    ],
    ids=["before", "after", "both", "added", "added and dropped", "reordered", "all"],
)
def test_rows_may_be_dropped_added_and_moved(
    checkpoints: Checkpoints,
    documents: str,
    tmp_path: Path,
    before: Any,
    after: Any,
    expected: str,
    dropped: int,
    added: int,
) -> None:
    model = Tokenize(checkpoints.bare)
    ids, summary, _ = run(documents, tmp_path / "out", model, before=before, after=after)
    t = pa.table({"id": range(40), "stars": STARS})  # noqa: F841 - DuckDB reads it
    assert ids == sorted(row[0] for row in duckdb.sql(expected).fetchall())
    assert (summary["rejects"], summary["dropped"], summary["added"]) == (4, dropped, added)
    assert summary["rows"] == 40 - dropped + added

    model = Tokenize(checkpoints.bare)
    again, same, counters = run(documents, tmp_path / "out", model, before=before, after=after, if_exists="resume")
    assert (again, same) == (ids, summary)
    assert not counters.get("documents")


def test_a_job_resumes_by_itself(
    checkpoints: Checkpoints, documents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """After it was cut off at the commit, and with a step that looks at columns of the model."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("distilbeam.transforms.features.commit", _cut_off)
        with pytest.raises(Exception, match="cut off"):
            run(documents, out, Tokenize(checkpoints.bare), after=long)
    staged = sorted((out / "_distilbeam" / "staging").glob("*.json"))
    lost = json.loads(staged[0].read_text())
    staged[0].unlink()
    with caplog.at_level(logging.WARNING, "distilbeam.transforms.documents"):
        run(documents, tmp_path / "first", Tokenize(checkpoints.bare), after=long, if_exists="resume")
        assert "kept as the steps" not in caplog.text  # there was nothing to keep
        ids, summary, counters = run(documents, out, Tokenize(checkpoints.bare), after=long, if_exists="resume")
    assert "kept as the steps 'after' have left them" in caplog.text
    rejects = lost["rejects_file"]["rows"] if lost["rejects_file"] else 0
    assert counters["documents_read"] == sum(part["seen"] for part in lost["parts"]) - rejects
    clean, expected, _ = run(documents, tmp_path / "clean", Tokenize(checkpoints.bare), after=long)
    assert (ids, len(staged)) == (clean, summary["splits"])
    assert {**summary, "manifest": ""} == {**expected, "manifest": ""}

    with pytest.raises(Exception, match="with other settings"):
        run(documents, out, Tokenize(checkpoints.bare, max_length=9), after=long, if_exists="resume")


def _cut_off(*args: Any, **kwargs: Any) -> None:
    raise OutputError("cut off")


def test_what_cannot_be_resumed_is_refused(tmp_path: Path, documents: str, checkpoints: Checkpoints) -> None:
    writing = WriteFeatures(tmp_path / "out", if_exists="resume")
    pipeline = beam.Pipeline(runner=FnApiRunner())
    start = pipeline | read(documents)
    other = start | "to others" >> beam.Reshuffle()
    with pytest.raises(SettingsError, match="no ReadDocuments is found before WriteFeatures"):
        (start, other) | beam.Flatten() | "flattened" >> writing
    _ = start | "one" >> WriteFeatures(tmp_path / "one")
    _ = start | "two" >> WriteFeatures(tmp_path / "two")
    with pytest.raises(SettingsError, match=r"one ReadDocuments gives documents to .*one.* and .*out"):
        start | "out" >> writing


def test_the_graph_is_followed_through_composites(documents: str, checkpoints: Checkpoints) -> None:
    class Mine(beam.PTransform):
        def expand(self, begin: Any) -> Any:
            return begin | read(documents) | "inner" >> beam.Map(filtered) | Tokenize(checkpoints.bare, prefix="a_")

    pipeline = beam.Pipeline()
    last = Featurize(checkpoints.bare, "embedding")
    good, _ = pipeline | Mine() | "outer" >> beam.Map(long) | last.with_exception_handling()
    found = look_upstream(good)
    assert isinstance(found.reading.transform, ReadDocuments)
    assert [stage.settings["prefix"] for stage in found.stages] == ["a_", ""]
    assert found.stages[1].settings == last.settings
    assert found.steps == ("Mine/inner", "outer")
    assert not found.is_ours
    assert look_upstream(pipeline | "again" >> read(documents)).is_ours
    assert look_upstream(pipeline | beam.Create([1])).reading is None


def test_a_step_of_the_users_is_no_model_whatever_its_attributes(documents: str, tmp_path: Path) -> None:
    class Mine(beam.PTransform):
        settings = "threshold 3"
        identity = "mine"

        def expand(self, batches: Any) -> Any:
            return batches | "inner" >> beam.Map(filtered)

    found = look_upstream(beam.Pipeline() | read(documents) | Mine())
    assert (found.stages, found.steps, found.is_ours) == ((), ("Mine/inner",), False)
    _ = beam.Pipeline() | read(documents) | Mine() | WriteFeatures(tmp_path / "out")


def test_steps_that_drop_batches_are_refused(documents: str, tmp_path: Path) -> None:
    start = beam.Pipeline(runner=FnApiRunner()) | read(documents)
    with pytest.raises(SettingsError, match=r"'mine' drops batches .* beam\.Map\(lambda batch: batch\.filter"):
        start | "mine" >> beam.Filter(lambda batch: batch.num_rows) | WriteFeatures(tmp_path / "out")


@pytest.mark.parametrize("model", [False, True])
def test_several_readers_are_refused(checkpoints: Checkpoints, documents: str, tmp_path: Path, model: bool) -> None:
    """Where their batches come to one writer, whether a model lies before or after they are joined."""
    p = beam.Pipeline(runner=FnApiRunner())
    one, two = p | "one" >> read(documents), p | "two" >> read(documents)
    if model:
        two |= Tokenize(checkpoints.bare)
    both = (one, two | beam.Filter(lambda batch: True)) | beam.Flatten() | "model" >> Tokenize(checkpoints.bare)
    with pytest.raises(SettingsError, match=r"several ReadDocuments \('one', 'two'\) .* one ReadDocuments with a list"):
        both | WriteFeatures(tmp_path / "out")


def test_several_readers_that_nobody_could_tell(documents: str, tmp_path: Path) -> None:
    """Behind steps of unknown kind they are met at the commit."""
    other = tmp_path / "other"
    shutil.copytree(documents, other)
    p = beam.Pipeline(runner=FnApiRunner())
    both = [
        p | name >> read(path) | f"step {name}" >> beam.Map(long_or_all)
        for name, path in (("one", documents), ("two", str(other)))
    ]
    _ = both | beam.Flatten() | WriteFeatures(tmp_path / "out", max_rejects=None)
    with pytest.raises(OutputError, match=r"several plans .* mixed; nothing was committed. .* a list of paths"):
        p.run().wait_until_finish()


def long_or_all(batch: Any) -> Any:
    return batch


def as_dicts(batch: pa.RecordBatch) -> list[Any]:
    return [{"id": row["id"], "text": row["text"]} for row in batch.to_pylist()]


def as_rows(batch: pa.RecordBatch) -> Iterator[Document]:
    for row in as_dicts(batch):
        yield Document(**row)


@pytest.mark.parametrize("step", [as_dicts, as_rows])
@pytest.mark.parametrize("model_first", [False, True])
def test_rows_may_be_made_of_batches(
    checkpoints: Checkpoints, documents: str, tmp_path: Path, step: Any, model_first: bool, caplog: Any
) -> None:
    """Of several readers too. They are written as rows from anywhere, which is said."""
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())]) if step is as_dicts else None
    p = beam.Pipeline(runner=FnApiRunner())
    found = p | read(documents)
    found = found | "first" >> Tokenize(checkpoints.bare, prefix="a_") if model_first else found
    found = found | "mine" >> beam.FlatMap(step) | beam.Filter(lambda row: True) | Tokenize(checkpoints.bare)
    with pytest.raises(SettingsError, match=r"is given rows that the steps 'mine', .* make of the batches"):
        found | "resume" >> WriteFeatures(tmp_path / "out", schema=schema, if_exists="resume")
    with caplog.at_level(logging.WARNING):
        _ = found | WriteFeatures(tmp_path / "out", schema=schema)
        p.run().wait_until_finish()
    assert "make rows of the batches of ReadDocuments: they are written as rows from anywhere" in caplog.text
    # Beam says so where a step gives what it does not take, such as None for a list.
    assert not [record for record in caplog.records if record.name.startswith("apache_beam")]
    table = ds.dataset(str(tmp_path / "out" / "features")).to_table()
    assert sorted(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)) == [
        (number, f"text {number}") for number in range(40)
    ]
    assert table["input_ids"].null_count == 0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda batch: [batch] if batch["stars"][0].as_py() else [], "every batch must arrive, also one without rows"),
        (lambda batch: [batch, batch], "must arrive in order"),
        (lambda batch: [batch.replace_schema_metadata(None)], "has lost the schema metadata of its batches"),
    ],
    ids=["dropped", "doubled", "metadata"],
)
def test_steps_must_keep_batches(documents: str, tmp_path: Path, step: Callable[..., Any], message: str) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | read(documents) | beam.FlatMap(step) | WriteFeatures(tmp_path / "out", max_rejects=None)
    with pytest.raises(OutputError, match=message):
        pipeline.run().wait_until_finish()


@pytest.mark.parametrize("after", [None, filtered])
def test_a_row_that_we_lose_is_never_the_users(
    checkpoints: Checkpoints, documents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Any
) -> None:
    def losing(batch: pa.RecordBatch, *args: Any) -> Any:
        return featurization.featurize_with_failures(batch, *args)[0].slice(1), {}

    monkeypatch.setattr(workers, "featurize_with_failures", losing)
    if after is None:
        with pytest.raises(OutputError, match="has lost 1 rows and got 0 on its way"):
            run(documents, tmp_path / "out", Tokenize(checkpoints.bare))
        return
    _, summary, _ = run(documents, tmp_path / "out", Tokenize(checkpoints.bare), after=after)
    assert summary["dropped"] == 40 - summary["rows"]  # no one can tell them apart, but they are counted


def test_documents_are_read_from_files_alone(documents: str) -> None:
    with pytest.raises(SettingsError, match=r"takes no PCollection; .*pipeline \| ReadDocuments"):
        beam.Pipeline() | beam.Create([documents]) | read(documents)
