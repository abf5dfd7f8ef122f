"""The transforms in pipelines: record batches and rows, one model per process, errors where the pipeline is built."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from distilbeam.transforms import Classify, Embed, Encoder, Featurize, Tokenize
from distilbeam.transforms.distilbert import engine
from distilbeam.transforms.errors import CheckpointError, SettingsError
from distilbeam.transforms.featurization import FEATURES, FeatureSpec, featurize
from distilbeam.transforms.provenance import ROW, Provenance
from tests.checkpoints import DIM, Checkpoints

CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
TEXTS = ["the cat sat", "", "good film!", "the " * 100, "naïve café 中国", "bad"]


class Review(NamedTuple):
    id: int
    review: str


@dataclass
class Post:
    id: int
    review: str | None


beam.coders.registry.register_coder(Review, beam.coders.RowCoder)
beam.coders.registry.register_coder(Post, beam.coders.RowCoder)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "_shared", {})


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints whose weights were loaded."""
    names: list[str] = []

    class Counting(engine.Engine):
        def __init__(self, checkpoint: Any, *arguments: Any) -> None:
            names.append(checkpoint.name)
            super().__init__(checkpoint, *arguments)

    monkeypatch.setattr(engine, "Engine", Counting)
    return names


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner=FnApiRunner())


def equals(expected: list[Any], key: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    def check(actual: list[Any]) -> None:
        assert sorted(actual, key=key) == sorted(expected, key=key)

    return check


def batches(count: int = 3) -> list[pa.RecordBatch]:
    """Batches of the texts, each in another order, with provenance."""
    found = []
    for number in range(count):
        texts = TEXTS[number:] + TEXTS[:number]
        batch = pa.record_batch({"text": texts, ROW: pa.array(range(len(texts)), pa.int64())})
        found.append(Provenance("memory://in", "split", sequence=number, text=("text",)).attach(batch))
    return found


def by_sequence(batch: pa.RecordBatch) -> int:
    provenance = Provenance.of(batch)
    assert provenance is not None
    return provenance.sequence


def test_record_batches(checkpoints: Checkpoints) -> None:
    encoder = Encoder.load(checkpoints.three_classes, **CPU)
    expected = [featurize(batch, FeatureSpec(FEATURES), encoder) for batch in batches()]
    with pipeline() as p:
        found = p | beam.Create(batches()) | Featurize(checkpoints.three_classes, FEATURES, **CPU)
        assert found.element_type is pa.RecordBatch
        assert_that(found | beam.Reshuffle(), equals(expected, by_sequence))


def test_beam_rows(checkpoints: Checkpoints) -> None:
    vectors = Encoder.load(checkpoints.sentence, **CPU).embed(TEXTS)

    def check(rows: list[Any]) -> None:
        assert len(rows) == len(TEXTS)
        for row in rows:
            assert row.review == TEXTS[row.id]
            np.testing.assert_allclose(row.embedding, vectors[row.id], atol=1e-6)
            assert row.truncated == (row.id == 3)

    with pipeline() as p:
        rows = p | beam.Create([beam.Row(id=row, review=text) for row, text in enumerate(TEXTS)])
        assert_that(rows | Embed(checkpoints.sentence, text="review", **CPU) | beam.Reshuffle(), check)


@pytest.mark.parametrize("kind", [Review, Post])
def test_rows_of_a_class(checkpoints: Checkpoints, kind: Any) -> None:
    expected = Encoder.load(checkpoints.classifier, **CPU).classify(TEXTS)

    def check(rows: list[Any]) -> None:
        assert sorted(row.id for row in rows) == list(range(len(TEXTS)))
        for row in rows:
            assert row.m_label == expected[row.id].label
            assert row.m_score == pytest.approx(expected[row.id].score)
            assert row.m_scores[row.m_label] == row.m_score
            assert set(row.m_scores) == {"NEGATIVE", "POSITIVE"}

    with pipeline() as p:
        rows = p | beam.Create([kind(row, text) for row, text in enumerate(TEXTS)]).with_output_types(kind)
        classify = Classify(checkpoints.classifier, scores=True, text="review", prefix="m_", **CPU)
        assert_that(rows | classify | beam.Reshuffle(), check)


def test_several_text_fields_and_stages(checkpoints: Checkpoints, loads: list[str]) -> None:
    encoder = Encoder.load(checkpoints.classifier, **CPU)
    label = encoder.classify(["good. film"])[0].label
    loads.clear()

    def check(rows: list[Any]) -> None:
        (row,) = rows
        assert (row.title, row.body, row.label, row.t_token_count) == ("good", "film", label, 5)
        assert len(row.e_embedding) == DIM

    with pipeline() as p:
        rows = p | beam.Create([beam.Row(title="good", body="film")])
        settings: Any = {"text": ["title", "body"], "separator": ". "}
        rows = rows | Classify(checkpoints.classifier, **settings, **CPU)
        rows = rows | Embed(checkpoints.classifier, prefix="e_", **settings, **CPU)
        rows = rows | Tokenize(checkpoints.classifier, prefix="t_", **settings)
        assert_that(rows, check)
    assert loads == [checkpoints.classifier]


def test_rows_without_text_and_rows_that_break_the_model(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.Engine._run_batch

    def breaking(self: Any, tokens: Any, batch: Any, result: Any) -> None:
        if any(tokens.lengths[row] == 3 for row in batch):
            raise RuntimeError("private")
        run(self, tokens, batch, result)

    monkeypatch.setattr(engine.Engine, "_run_batch", breaking)

    def check(rows: list[Any]) -> None:
        found = {row.id: (row.label is None, row.score is None, row.token_count) for row in rows}
        assert found == {0: (True, True, None), 1: (False, False, 4), 2: (True, True, None)}

    with pipeline() as p:
        rows = p | beam.Create([Post(0, None), Post(1, "the cat"), Post(2, "bad")]).with_output_types(Post)
        assert_that(rows | Classify(checkpoints.classifier, text="review", **CPU) | beam.Reshuffle(), check)


def test_all_stages_of_a_process_share_one_model(checkpoints: Checkpoints, loads: list[str]) -> None:
    with pipeline() as p:
        found = p | beam.Create(batches(), reshuffle=True)
        for number in range(3):
            found = found | f"embed {number}" >> Embed(checkpoints.bare, prefix=f"e{number}_", **CPU)
        other = found | "again" >> Embed(checkpoints.bare, prefix="again_", **CPU)
        names = other | beam.Map(lambda batch: tuple(batch.schema.names)) | beam.Distinct()
        _ = names | beam.Map(lambda names: len(names)) | beam.combiners.Count.Globally()
    assert loads == [checkpoints.bare]


def test_what_was_done_is_counted(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine.Engine._run_batch

    def breaking(self: Any, tokens: Any, batch: Any, result: Any) -> None:
        if any(tokens.lengths[row] == 3 for row in batch):
            raise RuntimeError("private")
        run(self, tokens, batch, result)

    monkeypatch.setattr(engine.Engine, "_run_batch", breaking)
    lengths = Encoder.load(checkpoints.bare, **CPU).tokenize(TEXTS).lengths
    p = pipeline()
    _ = p | beam.Create(batches(2)) | Embed(checkpoints.bare, **CPU)
    result = p.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace("distilbeam"))["counters"]
    counts = {counter.key.metric.name: counter.committed for counter in counters}
    assert counts == {
        "documents": 2 * 5,
        "tokens": 2 * int(lengths.sum() - 3),
        "truncated": 2,
        "rejected_by_model": 2,
    }


def test_building_a_pipeline_loads_nothing_and_sends_no_model(checkpoints: Checkpoints, loads: list[str]) -> None:
    p = pipeline()
    rows = p | beam.Create([beam.Row(text="a")]) | "rows" >> Embed(checkpoints.bare)
    found = p | "batches" >> beam.Create(batches()) | Embed(checkpoints.bare)
    assert (Encoder._shared, loads) == ({}, [])
    assert rows is not found
    assert len(p.to_runner_api().SerializeToString()) < 100_000


def test_a_finished_split_needs_no_model() -> None:
    provenance = Provenance("memory://in", "split", finished=True, last=True, text=("text",))
    batch = provenance.attach(pa.record_batch({"text": pa.array([], pa.string())}))
    with pipeline() as p:
        found = p | beam.Create([batch]) | Embed("memory://nothing-here")
        # The columns are there for steps that look for them.
        kept = found | beam.Map(lambda batch: batch.filter(pa.compute.field("token_count") > 3).select(["text"]))
        assert_that(kept, equals([batch], by_sequence))


@pytest.mark.parametrize("element", ["a text", 3, b"bytes", ("key", "a text"), ["a text"], pa.table({"text": ["a"]})])
def test_other_elements_are_refused_where_the_pipeline_is_built(checkpoints: Checkpoints, element: Any) -> None:
    with pytest.raises(SettingsError, match=rf"an element is a {type(element).__name__}; .*\(beam\.Row, NamedTuple"):
        pipeline() | beam.Create([element]) | Embed(checkpoints.bare)


@pytest.mark.parametrize("element", ["private text", ("private", "text"), 3])
def test_other_elements_of_unknown_type_are_refused(checkpoints: Checkpoints, element: Any) -> None:
    p = pipeline()
    _ = p | beam.Create([element]).with_output_types(Any) | Embed(checkpoints.bare)
    with pytest.raises(Exception, match=f"an element is a {type(element).__name__}; ") as caught:
        p.run().wait_until_finish()
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Embed("model", pooling="mena"), "`pooling` is 'mena'"),
        (lambda: Embed("model", dimensions=0), "`dimensions` must be a whole number .*, not 0"),
        (lambda: Embed("model", device="gpu"), "`device` is 'gpu'"),
        (lambda: Embed("model", dtype="int4"), "`dtype` is 'int4'"),
        (lambda: Embed("model", threads=0), "`threads` must be a whole number .*, not 0"),
        (lambda: Embed("model", token_budget=0), "`token_budget` must be a whole number .*, not 0"),
        (lambda: Embed("model", max_length=1), "`max_length` must be a whole number .*, not 1"),
        (lambda: Embed("model", text=[]), "`text` names no column"),
        (lambda: Featurize("model", ["vectors"]), "`features` is 'vectors'"),
        (lambda: Featurize("model", []), "name at least one"),
    ],
)
def test_settings_are_checked_where_they_are_given(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


def test_a_folder_is_checked_where_the_pipeline_is_built(checkpoints: Checkpoints, tmp_path: Path) -> None:
    start = pipeline() | beam.Create(batches())
    with pytest.raises(SettingsError, match="has no classification head"):
        start | "no head" >> Classify(checkpoints.bare)
    with pytest.raises(SettingsError, match="reads at most 64 tokens"):
        start | "too long" >> Embed(checkpoints.bare, max_length=512)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        start | "empty" >> Embed(tmp_path)


def test_fields_are_checked_where_the_pipeline_is_built(checkpoints: Checkpoints) -> None:
    rows = pipeline() | beam.Create([beam.Row(id=1, review="a", label="mine")])
    with pytest.raises(SettingsError, match="no text field 'text'; their fields are id, review, label"):
        rows | "no text" >> Classify(checkpoints.classifier)
    with pytest.raises(SettingsError, match="have a field 'label' already; set `prefix`"):
        rows | "taken" >> Classify(checkpoints.classifier, text="review")


@pytest.mark.parametrize(
    ("transform", "features"),
    [
        (Embed("m"), ("embedding",)),
        (Classify("m"), ("label", "score")),
        (Classify("m", scores=True), ("label", "score", "scores")),
        (Tokenize("m"), ("input_ids",)),
        (Featurize("m", "embedding"), ("embedding",)),
        (Featurize("m", ["label", "embedding"]), ("label", "embedding")),
    ],
)
def test_what_a_transform_asks_for(transform: Featurize, features: tuple[str, ...]) -> None:
    assert transform.spec.features == features
    assert transform.settings["features"] == list(features)
    assert transform.settings["model"] == "m"
    assert pickle.loads(pickle.dumps(transform)).spec == transform.spec


def test_the_order_of_batches_does_not_matter(checkpoints: Checkpoints) -> None:
    found: dict[bool, Any] = {}
    for forward in (True, False):

        def check(actual: list[pa.RecordBatch], forward: bool = forward) -> None:
            found[forward] = sorted(actual, key=by_sequence)

        with pipeline() as p:
            start = p | beam.Create(batches() if forward else batches()[::-1])
            assert_that(start | Embed(checkpoints.bare, **CPU), check)
        Encoder._shared.clear()
    for provenance_of, other in zip(*found.values(), strict=True):
        assert provenance_of.equals(other, check_metadata=True)


@pytest.mark.slow
def test_a_pipeline_is_built_without_torch(checkpoints: Checkpoints) -> None:
    code = (
        "import sys\n"
        "import apache_beam as beam\n"
        "from distilbeam.transforms import Classify, Embed, Tokenize\n"
        "start = beam.Pipeline() | beam.Create([beam.Row(text='a')])\n"
        "start | Embed(sys.argv[1]) | Classify(sys.argv[1], prefix='c_') | Tokenize(sys.argv[1], prefix='t_')\n"
        "print({'torch', 'transformers'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, checkpoints.classifier]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
