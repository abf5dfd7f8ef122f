"""A job killed half-way and resumed ends as one that was never disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

ROWS = 2_000


@pytest.mark.parametrize("finished", [1, 3])
def test_killed_and_resumed_equals_undisturbed(
    finished: int, tmp_path: Path, tiny: str, distilbeam: Callable[..., Any]
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(
        "".join(json.dumps({"id": row, "text": f"row {row} " + "word " * 40}) + "\n" for row in range(ROWS))
    )
    size = str(source.stat().st_size // 6)

    def command(output: Path, *more: str) -> list[str]:
        base = ("embed", "--model", tiny, "--input", str(source), "--output", str(output), "--dtype", "float32")
        return [*base, "--split-bytes", size, *more]

    clean = tmp_path / "clean"
    distilbeam(*command(clean))

    output = tmp_path / "out"
    staging = output / "_distilbeam" / "staging"
    job = subprocess.Popen([sys.executable, "-m", "distilbeam", *command(output, "--progress", "none")])
    try:
        deadline = time.monotonic() + 120
        while len(records := list(staging.rglob("*.json"))) < finished:
            assert job.poll() is None, "the job was over before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGKILL)
    finally:
        job.wait()
    assert not list(output.glob("features/*.parquet")), "something became visible before the commit"
    kept = {path.name: path.stat().st_mtime_ns for path in staging.rglob("*.parquet")}
    assert len(records) >= finished
    assert kept

    done = distilbeam(*command(output, "--if-exists", "resume"))
    assert "resumed" in done.stdout + done.stderr or "kept" in done.stdout + done.stderr
    assert {path.name for path in output.glob("features/*.parquet")} == {
        path.name for path in clean.glob("features/*.parquet")
    }
    for path in clean.glob("features/*.parquet"):
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert ds.dataset(str(output)).to_table().column("id").to_pylist() == list(range(ROWS))
    assert not staging.exists() or not list(staging.rglob("*"))
