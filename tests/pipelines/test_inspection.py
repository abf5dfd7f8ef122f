"""Looking into an output, held against a recount by pandas."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from rich.console import Console

from distilbeam.pipelines.cli import main
from distilbeam.pipelines.display import show_inspection, size
from distilbeam.pipelines.inspection import Inspection, inspect
from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.errors import InputError, OutputError, SettingsError
from distilbeam.transforms.features import WriteFeatures
from distilbeam.transforms.inference import Embed, Featurize, Tokenize

FEATURES = ("embedding", "label", "score", "scores")


def write(model: str, corpus: str, output: Path, prefix: str = "", url: str = "", **settings: str) -> Path:
    """An output of many small shards."""
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        documents = pipeline | ReadDocuments(corpus, "review", id="id", split_bytes=4000)
        features = documents | Featurize(model, FEATURES, prefix=prefix, embedding_dtype="float16")
        _ = features | WriteFeatures(url or str(output), **settings)
    return output


@pytest.fixture(scope="module")
def output(model: str, corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(model, corpus, tmp_path_factory.mktemp("inspected") / "out", prefix="x_")


def shown(found: Inspection, width: int = 100) -> str:
    stream = io.StringIO()
    show_inspection(found, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def test_numbers_are_those_of_a_recount(output: Path, model: str) -> None:
    table = pd.read_parquet(output)
    shards = sorted(output.glob("features/*.parquet"))
    found = inspect(str(output), rows=3)
    assert len(shards) > 3
    assert (found.rows, found.shards) == (len(table), len(shards))
    assert found.bytes == sum(path.stat().st_size for path in shards)
    assert list(found.columns) == list(table.columns)
    assert found.columns["x_embedding"] == "fixed_size_list<float16>[16]"
    assert found.columns["x_scores"] == "struct<NO: float32, YES: float32>"
    assert found.labels == dict(table.x_label.value_counts())
    counts = table.x_token_count
    assert found.tokens is not None
    assert (found.tokens.total, found.tokens.minimum, found.tokens.maximum) == (
        counts.sum(),
        counts.min(),
        counts.max(),
    )
    assert found.tokens.median == np.quantile(counts, 0.5, method="inverted_cdf")
    assert found.tokens.p95 == np.quantile(counts, 0.95, method="inverted_cdf")
    assert found.tokens.truncated == table.x_truncated.sum() > 0
    norms = np.linalg.norm(np.stack(table.x_embedding).astype(np.float64), axis=1)
    vectors = found.vectors
    assert vectors is not None
    assert (vectors.count, vectors.dimensions, vectors.dtype, vectors.non_finite) == (300, 16, "float16", 0)
    assert np.allclose(
        (vectors.mean_norm, vectors.minimum_norm, vectors.maximum_norm), (norms.mean(), norms.min(), norms.max())
    )
    assert [row["id"] for row in found.sample] == list(table.id[:3])
    assert [made["id"] for made in found.models] == [model]


def test_rejects_are_counted_and_named(output: Path) -> None:
    rejects = pd.read_parquet(output / "_rejects")
    found = inspect(str(output)).rejects
    assert found.total == len(rejects) == 2
    kinds = rejects.groupby(["stage", "error"]).size()
    assert {(kind["stage"], kind["error"]): kind["rows"] for kind in found.kinds} == kinds.to_dict()
    assert sorted(reject["line"] for reject in found.examples) == [41, 201]
    told = shown(inspect(str(output)))
    assert re.search(r"reviews\.jsonl line 41\b", told)
    assert "PRIVATE" not in told


def test_what_is_shown_fits_and_is_plain_when_piped(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(output)]) == 0
    told, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in told
    assert not [line for line in told.splitlines() if line != line.rstrip()]
    assert "300 rows" in told
    narrow = shown(inspect(str(output)), width=40)
    rows = narrow[narrow.index("\nrow 0") :]
    assert max(map(len, rows.splitlines())) <= 40


def test_json_says_the_same(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(output), "--json", "--rows", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(inspect(str(output), rows=2).to_dict()))


def test_json_lines_give_the_same_numbers(model: str, corpus: str, output: Path, tmp_path: Path) -> None:
    columnar = inspect(str(output), rows=1)
    lines = inspect(str(write(model, corpus, tmp_path / "out", prefix="x_", format="jsonl")), rows=1)
    assert (lines.rows, lines.labels, lines.tokens) == (columnar.rows, columnar.labels, columnar.tokens)
    assert lines.vectors is not None
    assert columnar.vectors is not None
    assert np.isclose(lines.vectors.mean_norm, columnar.vectors.mean_norm)
    assert lines.vectors.dtype == "float16"
    assert lines.sample[0]["review"] == columnar.sample[0]["review"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_packed_json_lines_give_the_same_numbers(
    compression: str, model: str, corpus: str, output: Path, tmp_path: Path
) -> None:
    columnar = inspect(str(output))
    packed = inspect(str(write(model, corpus, tmp_path / "out", prefix="x_", format="jsonl", compression=compression)))
    assert (packed.rows, packed.labels, packed.tokens) == (columnar.rows, columnar.labels, columnar.tokens)
    assert [row["review"] for row in packed.sample] == [row["review"] for row in columnar.sample]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_columns_of_the_user_are_not_taken_for_features(kind: str, model: str, tmp_path: Path) -> None:
    own = {"label": 3, "embedding": "mine", "score": "high"}
    rows = [{"review": text, **own, "label": number} for number, text in enumerate(["a b", "c", "d e f"])]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        documents = pipeline | ReadDocuments(str(tmp_path / "in.jsonl"), "review")
        _ = documents | Tokenize(model) | WriteFeatures(str(tmp_path / "out"), format=kind)
    found = inspect(str(tmp_path / "out"))
    assert (found.labels, found.vectors) == (None, None)
    assert found.tokens is not None
    assert found.tokens.total == 3 * 2 + 6
    assert [row["label"] for row in found.sample] == [0, 1, 2]


def test_every_model_and_every_precision_is_shown(model: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"review": "a b"}\n')
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        documents = pipeline | ReadDocuments(str(tmp_path / "in.jsonl"), "review")
        embedded = documents | Embed(model, prefix="a_", device="cpu", dtype="float32")
        _ = embedded | Tokenize(model, prefix="b_") | WriteFeatures(str(tmp_path / "out"))
    found = inspect(str(tmp_path / "out"))
    assert [made["settings"]["prefix"] for made in found.models] == ["a_", "b_"]
    assert found.vectors is not None
    (compute,) = found.computes
    told = shown(replace(found, computes=[compute, {**compute, "dtype": "bfloat16", "splits": 4}]), width=1000)
    assert re.search(r"settings .*prefix a_.*\ncompute .*float32.*\(1 split\)\ncompute .*bfloat16.*\(4 splits\)", told)
    assert re.search(r"settings .*prefix b_", told)


def test_no_rows_and_less() -> None:
    with pytest.raises(SettingsError, match="`rows` is -1"):
        inspect("nowhere", rows=-1)


def test_an_output_on_another_store_gives_the_same(model: str, corpus: str, output: Path) -> None:
    write(model, corpus, Path("unused"), prefix="x_", url="memory://inspected/out")
    here, there = inspect(str(output)).to_dict(), inspect("memory://inspected/out").to_dict()
    assert there.pop("output") == "memory://inspected/out"
    assert here.pop("output") == str(output)
    assert there.pop("features") == "memory://inspected/out/features"
    assert here.pop("features") == f"{output}/features"
    assert "memory://inspected/out/features" in there.pop("opening")["Polars"]
    assert here.pop("opening")["pandas"] == f"pandas.read_parquet('{output}/features')"
    for found in (here, there):
        (commit,) = found["history"]
        assert commit.pop("time") > "2026"
    assert here == there


def test_texts_cannot_command_the_terminal(model: str, tmp_path: Path) -> None:
    nasty = "\x1b[2J\x1b]0;owned\x07 \u202etxet [red]not markup[/red] \r\n" + "x" * 500
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "\x1b[31m", "review": nasty}) + "\n")
    told = shown(inspect(str(write(model, str(tmp_path / "in.jsonl"), tmp_path / "out"))))
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(told)
    assert "[red]not markup[/red]" in told


def test_an_empty_output_and_one_without_vectors(model: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "review": null}\n')
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        documents = pipeline | ReadDocuments(str(tmp_path / "in.jsonl"), "review", types={"review": "string"})
        _ = documents | Featurize(model, ["label"]) | WriteFeatures(str(tmp_path / "out"), max_rejects=None)
    found = inspect(str(tmp_path / "out"))
    assert (found.rows, found.shards, found.rejects.total) == (0, 1, 1)
    assert (found.labels, found.tokens, found.vectors, found.sample) == ({}, None, None, [])
    assert "0 rows" in shown(found)


def test_rows_that_steps_of_ones_own_drop_and_add_are_told(corpus: str, tmp_path: Path) -> None:
    for name, step in (("halved", lambda batch: batch.slice(batch.num_rows // 2)), ("doubled", doubled)):
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            documents = pipeline | ReadDocuments(corpus, "review", id="id") | beam.Map(step)
            _ = documents | WriteFeatures(str(tmp_path / name))
    halved, twice = (inspect(str(tmp_path / name)) for name in ("halved", "doubled"))
    table = pd.read_parquet(tmp_path / "halved")
    assert (halved.dropped, halved.added) == (300 - len(table), 0)
    assert (twice.dropped, twice.added) == (0, 300)
    assert halved.to_dict()["dropped"] == 300 - len(table) > 0
    assert re.search(rf"^dropped +{300 - len(table)} rows, by steps between", shown(halved), re.MULTILINE)
    assert re.search(r"^added +300 rows, by steps between", shown(twice), re.MULTILINE)
    assert not re.search("^added", shown(halved), re.MULTILINE)


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pa.array([row for row in range(batch.num_rows) for _ in range(2)], pa.int64()))


def test_vectors_that_are_not_finite_are_told(output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    path = sorted(copy.glob("features/*.parquet"))[1]
    table = pq.read_table(path)
    field = table.schema.field("x_embedding")
    vectors = np.stack(table["x_embedding"].to_pandas()).astype(np.float16)
    vectors[0, 3], vectors[1, 0] = np.inf, np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 16).cast(field.type)
    pq.write_table(table.set_column(table.schema.names.index("x_embedding"), field, column), path)
    found = inspect(str(copy)).vectors
    assert found is not None
    assert (found.count, found.non_finite) == (300, 2)
    assert found.maximum_norm is not None
    assert np.isfinite(found.maximum_norm)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_without_text_have_no_vector_and_no_length(kind: str, model: str, tmp_path: Path) -> None:
    texts = [None, "a b", None, "c"]
    lines = (json.dumps({"id": str(number), "review": text}) for number, text in enumerate(texts))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        documents = pipeline | ReadDocuments(str(tmp_path / "in.jsonl"), "review", nulls="keep")
        features = documents | Featurize(model, ["embedding", "label"])
        _ = features | WriteFeatures(str(tmp_path / "out"), format=kind)
    found = inspect(str(tmp_path / "out"))
    assert found.rows == 4
    assert found.vectors is not None
    assert (found.vectors.count, found.vectors.dimensions, found.vectors.non_finite) == (2, 16, 0)
    assert found.tokens is not None
    assert (found.tokens.total, found.tokens.minimum, found.tokens.maximum) == (7, 3, 4)
    assert sum((found.labels or {}).values()) == 2
    assert [row["embedding"] is None for row in found.sample] == [text is None for text in texts]


def test_what_is_no_output_is_said_in_a_sentence(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no output of distilbeam"):
        inspect(str(tmp_path / "nowhere"))
    assert main(["inspect", str(tmp_path)]) == 2
    assert re.fullmatch(r"distilbeam: error: [^\n]+\n", capsys.readouterr().err)
    lost, wrong = tmp_path / "lost", tmp_path / "wrong"
    shutil.copytree(output, lost)
    sorted(lost.glob("features/*.parquet"))[0].unlink()
    with pytest.raises(OutputError, match="cannot be read"):
        inspect(str(lost))
    shutil.copytree(output, wrong)
    first, second = sorted(wrong.glob("features/*.parquet"))[:2]
    shutil.copy(first, second)
    pq.write_table(pq.read_table(first).slice(1), second)
    with pytest.raises(OutputError, match="names 300 rows"):
        inspect(str(wrong))


def test_the_history_is_shown(model: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    for times in range(7):
        (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{n}", "review": "a"}}\n' for n in range(times + 1)))
        write(model, str(tmp_path / "in.jsonl"), output, if_exists="overwrite")
    found = inspect(str(output))
    assert found.commit == 7
    assert found.unfinished == []
    assert [(commit.commit, commit.rows, commit.rejects) for commit in found.history] == [
        (number, number, 0) for number in range(7, 2, -1)
    ]
    assert all((commit.added, commit.removed) == (1, 1) for commit in found.history)
    told = shown(found)
    assert re.search(r"^commit +7, 2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC$", told, re.MULTILINE)
    assert re.search(r"^ +3 +2\d{3}-\S+ \S+ UTC +3 +0 +1 +1$", told, re.MULTILINE)
    assert main(["inspect", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["commit"], document["unfinished"], document["history"][4]["commit"]) == (7, [], 3)


def test_an_unfinished_commit_is_told(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, corpus: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    history = copy / "_distilbeam" / "history"
    entry = json.loads((history / "000001.json").read_text())
    (history / "000002.json").write_text(json.dumps({**entry, "commit": 2, "base": 1, "removed": []}))
    found = inspect(str(copy))
    assert [commit.commit for commit in found.unfinished] == [2]
    assert "commit 2, begun" in shown(found, 1000)
    assert "`if_exists='resume'` to finish it" in shown(found, 1000)
    assert main(["inspect", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unfinished"][0]["commit"] == 2
    next(copy.glob("features/*.parquet")).unlink()
    with pytest.raises(OutputError, match=r"not whole: commit 2, begun .* `if_exists='resume'`"):
        inspect(str(copy))
    (copy / "_distilbeam" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no finished output: commit 2, begun .* `if_exists='resume'`"):
        inspect(str(copy))
    (history / "000002.json").write_text("{")
    with pytest.raises(InputError, match=r"000002\.json.*damaged"):
        inspect(str(copy))


def test_sizes() -> None:
    assert [size(count) for count in (0, 999, 1000, 123_456, 9_999_999, 5_000_000_000, 10**15)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "123 kB",
        "10.0 MB",
        "5.0 GB",
        "1,000.0 TB",
    ]
