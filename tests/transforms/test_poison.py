"""Poison that breaks neither tokenizer nor model: in the outputs, in rows with a schema, and in numbers."""

import math
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from distilbeam.transforms import Embed, Encoder, ReadDocuments, WriteFeatures, featurization
from distilbeam.transforms import encoder as encoder_module
from distilbeam.transforms.distilbert import tokenizer as tokenizer_module
from distilbeam.transforms.errors import RejectLimitError
from distilbeam.transforms.featurization import FeatureSpec
from distilbeam.transforms.provenance import Provenance, Reject
from distilbeam.transforms.rejects import RejectWatch, parse_max_rejects
from tests.checkpoints import UNCASED_VOCABULARY, Checkpoints

CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}


@pytest.fixture
def fresh(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setattr(Encoder, "_shared", {})
    return Encoder.load(checkpoints.classifier, **CPU)


@pytest.mark.parametrize("bad", [0, 5, 17, 31])
@pytest.mark.parametrize("part", ["embedding_column", "_class_columns"])
def test_outputs_that_cannot_become_columns_cost_their_row_alone(
    fresh: Encoder, monkeypatch: pytest.MonkeyPatch, part: str, bad: int
) -> None:
    texts = ["the cat " * (row % 7) + "film" for row in range(32)]
    spec = FeatureSpec(("embedding", "score"))
    expected = fresh.outputs(texts, spec)
    module = featurization if part == "embedding_column" else encoder_module
    original, calls = getattr(module, part), 0
    key = fresh.embed([texts[bad] + " bad"])[0] if part == "embedding_column" else None
    scores = fresh.outputs([texts[bad] + " bad"], FeatureSpec(("score",))).columns[0][0].as_py()
    texts[bad] += " bad"

    def breaking(values: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        close = np.abs(values - key).max(1) < 1e-5 if key is not None else np.abs(values.max(1) - scores) < 1e-6
        if close.any():
            raise OverflowError("private numbers")
        return original(values, *arguments, **named)

    monkeypatch.setattr(module, part, breaking)
    outputs = fresh.outputs(texts, spec)
    assert {row: failure[:2] for row, failure in outputs.failed.items()} == {bad: ("model", "OverflowError")}
    assert "private" not in str(outputs.failed)
    assert calls - 1 <= 2 * math.log2(32)
    assert outputs.rows.tolist() == [row for row in range(32) if row != bad]
    for ours, theirs in zip(outputs.columns, expected.columns, strict=True):
        kept = theirs.take(pa.array(outputs.rows))
        assert ours.type == theirs.type
        if pa.types.is_fixed_size_list(ours.type):
            np.testing.assert_allclose(ours.flatten(), kept.flatten(), atol=1e-5)


def test_a_vector_beyond_float16_is_no_feature(fresh: Encoder) -> None:
    texts = ["the cat", "a bad film", "hello"]
    bad = UNCASED_VOCABULARY.index("bad")
    original = fresh.engine._encoder

    def large(packed: Any) -> torch.Tensor:
        return original(packed) * torch.where(packed.ids == bad, 1e6, 1.0)[:, None]

    fresh.engine._encoder = large  # type: ignore[assignment]
    whole = fresh.outputs(texts, FeatureSpec(("embedding",), pooling="mean", normalize=False))
    half = fresh.outputs(texts, FeatureSpec(("embedding",), pooling="mean", normalize=False, embedding_dtype="float16"))
    assert whole.failed == {}
    assert half.failed == {1: ("model", "NonFiniteError", "the embedding is not finite as float16")}
    assert half.rows.tolist() == [0, 2]
    assert np.isfinite(half.columns[0].flatten().to_numpy().astype(np.float32)).all()


def test_a_vector_too_long_to_be_scaled_is_no_feature() -> None:
    vectors = np.array([[3e38, 3e38], [3, 4]], np.float32)
    column, finite = featurization.embedding_column(vectors, featurization.VectorSettings(None, normalize=True))
    assert finite.tolist() == [False, True]
    np.testing.assert_allclose(column[1].as_py(), [0.6, 0.8], atol=1e-6)


@pytest.mark.parametrize("count", [1, 20, 300])
def test_rows_with_a_schema_stay_when_the_last_bundle_step_hands_them_over(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Fewer than 256 rows come out of the gathering step only where its bundle is finished."""
    monkeypatch.setattr(Encoder, "_shared", {})
    encode = tokenizer_module.WordPieceTokenizer.encode

    class Panic(BaseException):
        pass

    def panicking(self: Any, texts: list[str]) -> list[list[int]]:
        if any("\x07" in text for text in texts):
            raise Panic("private words")
        return encode(self, texts)

    monkeypatch.setattr(tokenizer_module.WordPieceTokenizer, "encode", panicking)
    bad = {0: "bell \x07", count // 2: None, count - 1: "\x07"}
    rows = [beam.Row(id=row, text=bad.get(row, f"the cat {row}")) for row in range(count)]

    def check(found: list[Any]) -> None:
        assert sorted(row.id for row in found) == list(range(count))
        assert {row.id for row in found if row.embedding is None} == set(bad)

    with beam.Pipeline(runner=FnApiRunner()) as p:
        schema = beam.typehints.row_type.RowTypeConstraint.from_fields([("id", int), ("text", str | None)])
        start = p | beam.Create([0]) | beam.FlatMap(lambda _: rows).with_output_types(schema)
        assert_that(start | Embed(checkpoints.bare, **CPU), check)


def counted(rejects: int, rows: int, **fields: Any) -> tuple[Provenance, int]:
    reject = Reject("text", "NullText", "the text is null")
    return Provenance("/in", fields.pop("split", "s"), rejects=(reject,) * rejects, **fields), rows


def test_a_hopeless_job_is_ended() -> None:
    watch = RejectWatch(parse_max_rejects("1%"))
    for sequence in range(2):
        watch.add(*counted(495, 0, sequence=sequence))
    with pytest.raises(RejectLimitError, match=r"1485 of the first 1485 rows .* NullText in stage text \(1485\)"):
        watch.add(*counted(495, 0, sequence=2))


@pytest.mark.parametrize(
    ("limit", "rejects", "seen", "hopeless"),
    [
        ("1%", 1000, 1000, True),
        ("1%", 900, 900, False),
        ("1%", 1000, 1001, False),
        ("50%", 1000, 1000, False),
        ("50%", 2000, 2000, True),
        ("100%", 10**9, 10**9, False),
        ("0%", 990, 990, True),
        (3, 4, 10**9, True),
        (3, 3, 3, False),
        (None, 10**9, 10**9, False),
    ],
)
def test_when_a_job_is_hopeless(limit: Any, rejects: int, seen: int, hopeless: bool) -> None:
    assert parse_max_rejects(limit).hopeless(rejects, seen) is hopeless
    assert not (hopeless and not parse_max_rejects(limit).exceeded(rejects, seen)), (
        "what is not exceeded yet may be kept"
    )


def test_a_split_that_is_begun_anew_is_counted_anew() -> None:
    watch = RejectWatch(parse_max_rejects(10))
    for _ in range(5):
        watch.add(*counted(6, 0, split="again"))
    watch.add(*counted(4, 100, split="other"))
    with pytest.raises(RejectLimitError, match="11 of the first"):
        watch.add(*counted(1, 100, split="other", sequence=1))


def test_a_job_with_no_text_at_all_ends_before_it_has_read_all(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(20):
        nulls = pa.table({"id": list(range(10_000)), "text": pa.nulls(10_000, pa.string())})
        pq.write_table(nulls, source / f"{number:02}.parquet")
    p = beam.Pipeline(runner=FnApiRunner())
    written = p | ReadDocuments(str(source)) | Embed(checkpoints.bare, **CPU) | WriteFeatures(str(tmp_path / "out"))
    assert written is not None
    with pytest.raises(Exception, match="set aside, more than the 1% that `max_rejects` will allow") as caught:
        p.run().wait_until_finish()
    seen = int(str(caught.value).split(" of the first ")[1].split()[0])
    assert 1000 <= seen < 20_000
    assert not list((tmp_path / "out").glob("features/*.parquet"))
