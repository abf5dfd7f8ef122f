"""Rows, dicts and batches that come from anywhere, written to a committed output."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from distilbeam.transforms import Encoder, Featurize, Tokenize, WriteFeatures
from distilbeam.transforms.errors import DistilbeamError, OutputExistsError, SettingsError
from distilbeam.transforms.featurization import FEATURES
from distilbeam.transforms.output.manifest import load_manifest
from tests.checkpoints import Checkpoints

CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
TEXTS = ["the cat sat", "good film!", None, "naïve café", "", "the " * 100]


class Review(NamedTuple):
    id: int
    text: str | None
    tags: list[str]
    when: Timestamp


ROWS = [Review(number, TEXTS[number % len(TEXTS)], ["a"] * (number % 3), Timestamp(number)) for number in range(100)]
COLUMNS = pa.schema([("id", pa.int64()), ("text", pa.string()), ("tags", pa.list_(pa.string()))])


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "_shared", {})


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner=FnApiRunner())


def start(p: beam.Pipeline, kind: str, **settings: Any) -> Any:
    """The rows in several bundles."""
    rows = p | beam.Create(ROWS[::-1]) | beam.Map(lambda row: row).with_output_types(Review) | beam.Reshuffle()
    if kind == "rows":
        return rows
    return rows | "dicts" >> beam.Map(lambda row: {"id": row.id, "text": row.text, "tags": row.tags})


def written(output: Path) -> pd.DataFrame:
    manifest = load_manifest(str(output))
    table = ds.dataset([str(output / shard.path) for shard in manifest.shards]).to_table()
    return table.sort_by("id").to_pandas()


@pytest.mark.parametrize("kind", ["rows", "dicts"])
def test_rows_are_written(checkpoints: Checkpoints, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    embed = Featurize(checkpoints.classifier, FEATURES, **CPU)
    with pipeline() as p:
        _ = start(p, kind) | embed | WriteFeatures(out, schema=COLUMNS if kind == "dicts" else None)
    frame = written(out)
    assert frame["id"].tolist() == [row.id for row in ROWS]
    assert [None if pd.isna(text) else text for text in frame["text"]] == [row.text for row in ROWS]
    assert [list(tags) for tags in frame["tags"]] == [row.tags for row in ROWS]
    if kind == "rows":
        assert (frame["when"].astype("int64").to_numpy() == np.arange(100) * 1_000_000).all()
    encoder = Encoder.load(checkpoints.classifier, **CPU)
    present = [row for row in ROWS if row.text is not None]
    vectors = encoder.embed([row.text for row in present])
    np.testing.assert_allclose(np.stack(frame["embedding"].dropna()), vectors, atol=1e-6)
    assert frame["embedding"].isna().tolist() == [row.text is None for row in ROWS]
    predicted = {row.id: found for row, found in zip(present, encoder.classify([r.text for r in present]), strict=True)}
    for row in frame.dropna(subset=["label"]).to_dict("records"):
        assert (row["label"], row["score"]) == (predicted[row["id"]].label, pytest.approx(predicted[row["id"]].score))
        assert dict(row["scores"])[row["label"]] == row["score"]
    summary = load_manifest(str(out)).summary("")
    assert (summary["rows"], summary["rejects"], summary["dropped"]) == (100, 0, 0)
    assert summary["tokens"] == frame["token_count"].sum()
    assert summary["labels"] == frame["label"].value_counts().to_dict()
    assert [model["settings"] for model in summary["models"]] == [embed.settings]
    assert not list((out / "_distilbeam").glob("staging/*"))


def test_the_same_rows_give_the_same_files(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with pipeline() as p:
            _ = p | beam.Create(ROWS, reshuffle=False) | Tokenize(checkpoints.bare) | WriteFeatures(tmp_path / name)
    one, two = (load_manifest(str(tmp_path / name)) for name in ("one", "two"))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in two.shards]
    assert one.digest == two.digest


def test_what_is_there_is_kept_or_replaced(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for count, if_exists in ((100, "error"), (7, "overwrite")):
        with pipeline() as p:
            rows = p | beam.Create(ROWS[:count])
            _ = rows | Tokenize(checkpoints.bare) | WriteFeatures(out, if_exists=if_exists)
        assert len(written(out)) == count
    rows = pipeline() | beam.Create(ROWS)
    with pytest.raises(OutputExistsError):
        rows | "again" >> WriteFeatures(out)
    with pytest.raises(SettingsError, match="no ReadDocuments is found before WriteFeatures"):
        rows | "resume" >> WriteFeatures(out, if_exists="resume")


def test_batches_without_provenance(checkpoints: Checkpoints, tmp_path: Path) -> None:
    batches = [pa.record_batch({"id": [n, n + 1], "text": ["a", None]}) for n in range(0, 20, 2)]
    with pipeline() as p:
        _ = p | beam.Create(batches) | Tokenize(checkpoints.bare) | WriteFeatures(tmp_path / "out")
    frame = written(tmp_path / "out")
    assert frame["id"].tolist() == list(range(20))
    assert frame["token_count"].notna().tolist() == [True, False] * 10


def test_windows_are_written_as_one(tmp_path: Path) -> None:
    with pipeline() as p:
        rows = p | beam.Create([TimestampedValue(row, 10 * row.id) for row in ROWS])
        rows = rows | beam.Map(lambda row: row).with_output_types(Review) | beam.WindowInto(FixedWindows(60))
        _ = rows | WriteFeatures(tmp_path / "out", format="jsonl")
    lines = [json.loads(line) for file in (tmp_path / "out").rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == list(range(100))


def test_no_rows(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """An output that tells its columns, as that of a job whose rows were all dropped does."""
    with pipeline() as p:
        rows = p | beam.Create(ROWS) | beam.Filter(lambda row: False).with_output_types(Review)
        _ = rows | Tokenize(checkpoints.bare) | WriteFeatures(tmp_path / "out")
    frame = written(tmp_path / "out")
    assert list(frame.columns) == ["id", "text", "tags", "when", "input_ids", "token_count", "truncated"]
    assert len(frame) == 0


class Odd(NamedTuple):
    id: int
    other: complex


@pytest.mark.parametrize(
    ("elements", "kind", "message"),
    [
        ([{"id": 1}], None, r"dicts do not tell the types of their columns; give WriteFeatures\(schema="),
        (["text"], None, "an element is a str; WriteFeatures takes"),
        ([Odd(1, 1j)], Odd, "the type of the field 'other' is not known to Arrow"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, elements: Any, kind: Any, message: str) -> None:
    found = pipeline() | beam.Create(elements)
    found = found if kind is None else found | beam.Map(lambda row: row).with_output_types(kind)
    with pytest.raises(SettingsError, match=message):
        found | WriteFeatures(tmp_path / "out")


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ({"id": 1, "secret": "private"}, "a row has a field 'secret' that `schema` lacks"),
        ({"id": "private"}, r"1 of 1 rows were set aside, more .* ArrowInvalid in stage write \(1\)"),
        ("private", "an element is a str; WriteFeatures takes"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, element: Any, message: str) -> None:
    p = pipeline()
    found = p | beam.Create([element]) | beam.Map(lambda row: row).with_output_types(Any)
    _ = found | WriteFeatures(tmp_path / "out", schema=pa.schema([("id", pa.int64())]))
    with pytest.raises(DistilbeamError, match=message) as caught:
        p.run().wait_until_finish()
    assert "private" not in str(caught.value)


WORDS = pa.dictionary(pa.int8(), pa.string())


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_rows_that_do_not_fit_are_set_aside(
    checkpoints: Checkpoints, tmp_path: Path, format: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One by one, whatever of them does not fit; and a bundle of such rows alone."""
    bad = [
        {"id": 3, "text": 7},
        {"id": "private"},
        {"id": 1 << 70, "text": 8},
        {"id": 5, "when": Timestamp(10**12), "text": "private"},
        {"id": 7, "tags": ["private", 3], "text": "private"},
    ]
    good = [{"id": number, "text": TEXTS[number % len(TEXTS)], "tags": ["a"]} for number in range(100, 200)]
    schema = COLUMNS.append(pa.field("when", pa.timestamp("us")))
    with caplog.at_level(logging.WARNING), pipeline() as p:
        mixed = p | beam.Create([*bad[:3], *good, *bad[3:]], reshuffle=False)
        alone = p | "alone" >> beam.Create(bad[:2], reshuffle=False)
        same = p | "same" >> beam.Create(bad[:2], reshuffle=False)
        rows = (mixed, alone, same) | beam.Flatten() | Tokenize(checkpoints.bare)
        _ = rows | WriteFeatures(tmp_path / "out", schema=schema, format=format, max_rejects=None)
    summary = load_manifest(str(tmp_path / "out")).summary("")
    assert (summary["rows"], summary["rejects"]) == (100, 9)
    if format == "parquet":
        assert written(tmp_path / "out")["id"].tolist() == [row["id"] for row in good]
    rejects = ds.dataset([str(path) for path in (tmp_path / "out" / "_rejects").glob("*.parquet")]).to_table()
    assert set(rejects["stage"].to_pylist()) == {"write"}
    reasons = [reason.split(";")[0] for reason in rejects["reason"].to_pylist()]
    fields = [("text", "int", "string"), ("id", "str", "int64")]
    others = [
        ("id", "int", "int64"),
        ("when", "Timestamp", "timestamp[us]"),
        ("tags", "list", "list<item: string>"),
    ]
    expected = [
        f"the field {name!r} holds a value of type {held} that is no {kind}"
        for name, held, kind in (*fields * 3, *others)
    ]
    assert sorted(reasons) == sorted(expected)
    assert "private" not in str(rejects.to_pylist()) + caplog.text


def test_values_that_fit_alone_and_not_together(tmp_path: Path) -> None:
    """More words than a column has numbers for: no row is to blame, so none is set aside."""
    p = pipeline()
    rows = p | beam.Create([{"word": str(number)} for number in range(200)], reshuffle=False)
    _ = rows | WriteFeatures(tmp_path / "out", schema=pa.schema([("word", WORDS)]), max_rejects=None)
    with pytest.raises(DistilbeamError, match="the field 'word' holds values that together are no dictionary"):
        p.run().wait_until_finish()


def test_a_stream_is_refused(tmp_path: Path) -> None:
    found = beam.Pipeline() | PeriodicImpulse() | beam.Map(lambda time: beam.Row(id=time))
    with pytest.raises(SettingsError, match=r"WriteFeatures commits one finished output, and .* unbounded"):
        found | WriteFeatures(tmp_path / "out")


def test_a_failed_bundle_leaves_nothing(tmp_path: Path, caplog: Any) -> None:
    p = pipeline()
    _ = (
        p
        | beam.Create([pa.record_batch({"id": [1]}), pa.record_batch({"id": ["a"]})])
        | WriteFeatures(tmp_path / "out")
    )
    with caplog.at_level(logging.CRITICAL), pytest.raises(DistilbeamError, match="the columns are not those"):
        p.run().wait_until_finish()
    assert not [path for path in tmp_path.rglob("*.parquet") if path.is_file()]
