"""A dry run, against what the job then does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.pipelines.cli import main
from distilbeam.pipelines.job import Preview, embed, tokenize
from distilbeam.transforms.errors import InputError, OutputExistsError, SettingsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b c", "stars": 4.5}\n')
    (folder / "b.jsonl").write_text('{"id": 3, "text": "d"}\n')
    (folder / "README.md").write_text("# About\n")
    return folder


def _files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_tells_what_the_job_then_does_and_writes_nothing(folder: Path, model: str) -> None:
    job = {"input": str(folder), "output": str(folder.parent / "out"), "keep": ["id", "stars"], "prefix": "x_"}
    before = _files(folder.parent)
    found = embed(model, **job, dry_run=True)
    assert isinstance(found, Preview)
    assert _files(folder.parent) == before
    done = embed(model, **job)
    assert done is not None
    schema = pq.ParquetDataset(folder.parent / "out" / "features").schema
    told = [*found.columns, *found.features]
    assert [name for name, _ in told] == schema.names
    for name, kind in told:
        assert (
            kind.replace("item", "element") == str(schema.field(name).type).replace("item", "element")
            or "embed" in name
        )
    assert dict(told)["x_embedding"].endswith(f"[{schema.field('x_embedding').type.list_size}]")
    assert [(Path(url).name, size) for url, size in found.files] == [
        (path.name, path.stat().st_size) for path in sorted(folder.glob("*.jsonl"))
    ]
    assert found.bytes == sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    assert [Path(url).name for url in found.passed_over] == ["README.md"]
    assert (found.splits, found.formats, found.transient) == (done.splits, {"jsonl": 2}, ("text",))


def test_a_dry_run_tells_how_much_of_a_recurring_job_is_done(folder: Path, model: str) -> None:
    job = {"input": str(folder), "output": str(folder.parent / "out"), "incremental": True}
    first = tokenize(model, **job, dry_run=True)
    done = tokenize(model, **job)
    assert isinstance(first, Preview)
    assert done is not None
    assert (first.splits, done.splits) == (2, 2)  # each file has splits of its own
    (folder / "c.jsonl").write_text('{"id": 4, "text": "e"}\n')
    found = tokenize(model, **job, dry_run=True)
    assert isinstance(found, Preview)
    assert (len(found.files), found.known, found.splits) == (3, 2, 3)
    with pytest.raises(OutputExistsError):
        tokenize(model, input=str(folder), output=str(folder.parent / "out"), dry_run=True)


def test_what_ends_the_job_ends_the_dry_run(folder: Path, model: str) -> None:
    with pytest.raises(InputError, match="no column 'body'"):
        tokenize(model, input=str(folder), output=str(folder.parent / "out"), text="body", dry_run=True)
    with pytest.raises(SettingsError, match="`limit`"):
        tokenize(model, input=str(folder), output="out", limit=2, incremental=True, dry_run=True)


def test_the_command_prints_the_plan(folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "out"
    command = ["tokenize", "--model", model, "--input", str(folder), "--output", str(out), "--progress", "none"]
    assert main([*command, "--dry-run", "--limit", "2"]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "a.jsonl",
        "passed over",
        "README.md",
        "the first 2 rows",
        "stars: double",
        "input_ids",
        "1 file ",
    ):
        assert expected in printed
    assert "b.jsonl" not in printed  # the first two rows are in the first file
    assert not out.exists()
    assert main([*command, "--limit", "2", "--keep", "id"]) == 0
    assert "2 rows" in capsys.readouterr().out
    assert pq.read_table(out / "features")["id"].to_pylist() == [1, 2]
    assert main([*command, "--incremental"]) == 2


def _refusals(model: str, job: dict[str, Any]) -> list[tuple[type[Exception], str]]:
    """What a dry run and then the job itself say."""
    told = []
    for dry_run in (True, False):
        with pytest.raises((SettingsError, InputError, OutputExistsError)) as caught:
            tokenize(model, **job, dry_run=dry_run)
        told.append((caught.type, str(caught.value)))
    return told


def test_a_column_of_the_name_of_a_feature_ends_the_dry_run(folder: Path, model: str) -> None:
    (folder / "a.jsonl").write_text('{"text": "a", "truncated": 1}\n')
    job = {"input": str(folder), "output": str(folder.parent / "out")}
    dry, real = _refusals(model, job)
    assert dry == real
    assert "the input has a column 'truncated' already" in dry[1]
    assert isinstance(tokenize(model, **job, prefix="x_", dry_run=True), Preview)


def test_what_cannot_be_gone_on_from_ends_the_dry_run_and_nothing_changes(folder: Path, model: str) -> None:
    out, later = folder.parent / "out", folder.parent / "later"
    job = {"input": str(folder), "output": str(out)}
    tokenize(model, **job)
    before = _files(folder.parent)
    (folder.parent / "elsewhere.jsonl").write_text('{"id": 9, "text": "z"}\n')
    for change in (
        {"if_exists": "resume", "max_length": 8},
        {"if_exists": "resume", "keep": ["id"]},
        {"incremental": True, "max_length": 8},
        {"incremental": True, "input": str(folder.parent / "elsewhere.jsonl")},
        {"since": str(out), "output": str(later), "nulls": "keep"},
        {"since": str(folder), "output": str(later)},
    ):
        dry, real = _refusals(model, {**job, **change})
        assert dry == real, change
    found = tokenize(model, **job, incremental=True, max_length=8, if_changed="overwrite", dry_run=True)
    assert isinstance(found, Preview)
    assert isinstance(tokenize(model, **{**job, "output": str(later)}, since=str(out), dry_run=True), Preview)
    assert {path: time for path, time in _files(folder.parent).items() if path in before} == before
    assert not later.exists()


def test_a_field_of_a_struct_is_not_kept_beside_it(folder: Path, model: str) -> None:
    path = folder.parent / "a.parquet"
    pq.write_table(pa.table({"id": [1], "review": [{"body": "a b", "stars": 3}]}), path)
    for more in ({}, {"keep": ["id", "review.stars"]}):
        out = folder.parent / f"out{len(more)}"
        job = {"input": str(path), "output": str(out), "text": "review.body", **more}
        found = tokenize(model, **job, dry_run=True)
        assert isinstance(found, Preview)
        tokenize(model, **job)
        written = pq.ParquetDataset(out / "features").schema.names
        assert [name for name, _ in (*found.columns, *found.features)] == written
        assert found.transient == ("review.body",)
