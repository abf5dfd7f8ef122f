"""What a run has done, apart from what the output holds."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distilbeam.pipelines import job
from distilbeam.pipelines.display import show_summary
from distilbeam.pipelines.job import Summary
from distilbeam.transforms.output.increments import Changes, compare
from distilbeam.transforms.output.losses import Losses
from distilbeam.transforms.output.records import SplitRecord
from tests.plans import Plan


def told(summary: Summary) -> list[str]:
    stream = io.StringIO()
    show_summary(summary, Console(file=stream, width=200, highlight=False))
    return stream.getvalue().splitlines()


FIRST = Summary("/out", 300, 2, 6000, 1, 2.0, 3000.0, None, 3, 0, 3, 1000, rows_computed=300, tokens_computed=6000)


def test_a_first_run_is_told_in_one_line() -> None:
    assert told(FIRST)[0] == "300 rows, 6,000 tokens in 2.0 s, 3,000 tokens/s"
    assert told(replace(FIRST, rows_computed=None, resumed=None))[0].startswith("300 rows, 6,000 tokens in ")


def test_a_run_that_goes_on_tells_its_own_rows_apart_from_the_output() -> None:
    changes = Changes(2, 1, 0, 0, 2, 1, 0)
    lines = told(replace(FIRST, resumed=2, rows_computed=100, tokens_computed=2000, changes=changes))
    assert lines[0] == "this run: 100 rows, 2,000 tokens in 2.0 s, 3,000 tokens/s"
    assert lines[1] == "output now: 300 rows, 6,000 tokens"
    assert "files: 2 unchanged, 1 added, 0 replaced, 0 removed" in lines
    assert "splits: 2 kept, 1 added, 0 removed" in lines
    anew = told(replace(FIRST, changes=Changes(3, 0, 0, 0, 0, 0, 0, 3)))
    assert "splits: 0 kept, 3 computed again, 0 added, 0 removed" in anew
    resumed = told(replace(FIRST, resumed=2, rows_computed=100, tokens_computed=2000))
    assert "2 of 3 splits were finished before and not redone" in resumed


def test_keys_that_were_not_read_are_counted_and_not_named() -> None:
    names = ("secret", "meta.secret", *(f"secret {n}" for n in range(1500)))
    (line,) = (line for line in told(replace(FIRST, unread=names)) if "keys" in line)
    assert "1,502" in line
    assert "/out/_distilbeam/manifest.json" in line
    assert "secret" not in line
    assert not any("keys" in line for line in told(FIRST))


@pytest.fixture
def records(tmp_path: Path) -> list[SplitRecord]:
    return Plan(lines=9).write_all(tmp_path)


def test_what_was_computed_again_is_not_kept(records: list[SplitRecord]) -> None:
    ids = [record.split for record in records]
    some = compare(records, records, finished=ids[:1])
    assert (some.splits_kept, some.splits_redone) == (1, len(ids) - 1)
    assert compare(records, records, finished=()).splits_kept == 0
    assert compare(records, records).splits_kept == len(ids), "nobody knows, and the files are the same"
    shards = tuple(replace(shard, sha256="other") for shard in records[0].shards)
    changed = compare(records, [replace(records[0], shards=shards), *records[1:]])
    assert (changed.splits_kept, changed.splits_redone) == (len(ids) - 1, 1)


def test_runs_of_a_growing_folder(tmp_path: Path, checkpoints: Any) -> None:
    source, output = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    (source / "a.jsonl").write_text('{"text": "the cat"}\n' * 3)

    def run(**said: Any) -> Summary:
        done = job.tokenize(checkpoints.bare, input=str(source), output=output, incremental=True, **said)
        assert isinstance(done, Summary)
        assert done.changes is not None
        assert told(done)
        return done

    before = dict(job.FINISHED)
    first = run()
    assert (first.rows, first.rows_computed, first.tokens_computed) == (3, 3, first.tokens)
    (source / "b.jsonl").write_text('{"text": "film"}\n')
    second = run()
    assert (second.rows, second.rows_computed, second.tokens_computed) == (4, 1, second.tokens - first.tokens)
    assert (second.changes.splits_kept, second.changes.splits_added) == (1, 1)
    anew = run(if_exists="overwrite")
    assert (anew.rows, anew.rows_computed, anew.tokens_computed) == (4, 4, second.tokens)
    assert (anew.changes.splits_kept, anew.changes.splits_redone, anew.changes.splits_added) == (0, 2, 0)
    assert before == job.FINISHED, "what it has found finished is not forgotten"


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        (Losses(30, 1), "about 30 more rows"),
        (Losses(0, 1), "an unknown number of rows"),
        (Losses(30, 1, "a.gz"), "an unknown number of rows"),
    ],
)
def test_what_nobody_knows_of_a_damaged_file_is_told_so(losses: Losses, count: str) -> None:
    line = f"lost: {count} of 1 damaged file, for which one reject stands each"
    assert line in told(replace(FIRST, losses=losses))
