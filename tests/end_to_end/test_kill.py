"""A job killed half-way and resumed ends as one that was never disturbed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.faults.jobs import Runner

ROWS = 2_000
_DIE = """
import os, signal
from distilbeam.transforms.output import split_writer
stage = split_writer.stage_record

def stage_and_die(*arguments):
    global COUNT
    staged = stage(*arguments)
    COUNT -= 1
    if not COUNT:
        os.kill(os.getpid(), signal.SIGKILL)
    return staged

split_writer.stage_record = stage_and_die
"""


@pytest.mark.parametrize("finished", [1, 3])
def test_killed_and_resumed_equals_undisturbed(finished: int, tmp_path: Path, tiny: str, runner: Runner) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(
        "".join(json.dumps({"id": row, "text": f"row {row} " + "word " * 40}) + "\n" for row in range(ROWS))
    )
    size = str(source.stat().st_size // 6)

    def command(output: Path, *more: str) -> list[str]:
        base = ("embed", "--model", tiny, "--input", str(source), "--output", str(output), "--dtype", "float32")
        return [*base, "--split-bytes", size, *more]

    clean = tmp_path / "clean"
    assert not runner(command(clean)).code

    output = tmp_path / "out"
    staging = output / "_distilbeam" / "staging"
    killed = runner(command(output, "--progress", "none"), code=f"COUNT = {finished}\n{_DIE}")
    assert killed.code == -signal.SIGKILL, killed.said
    records = list(staging.rglob("*.json"))
    assert not list(output.glob("features/*")), "something became visible before the commit"
    kept = {path.name: path.stat().st_mtime_ns for path in staging.rglob("*.parquet")}
    assert len(records) >= finished
    assert kept

    said = runner(command(output, "--if-exists", "resume")).said
    assert "resumed" in said or "kept" in said
    shards = {path.name: path.read_bytes() for path in (clean / "features").iterdir()}
    assert {path.name: path.read_bytes() for path in (output / "features").iterdir()} == shards
    assert ds.dataset(str(output)).to_table().column("id").to_pylist() == list(range(ROWS))
    assert not staging.exists() or not list(staging.rglob("*"))
