"""25,000 rows of which 250 are bad in every way: 24,750 features, 250 rejects, each named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq

ROWS = 25_000
BAD: list[Callable[[str], bytes]] = [
    lambda key: b'{"id": "%s", "text": "cut off' % key.encode(),
    lambda key: b'{"id": "%s", "text": null}' % key.encode(),
    lambda key: b'{"id": "%s"}' % key.encode(),
    lambda key: b'{"id": "%s", "text": 5}' % key.encode(),
    lambda key: b'{"id": "%s", "text": ["a", "b"]}' % key.encode(),
    lambda key: b'{"id": "%s", "text": "lone \\ud800 surrogate"}' % key.encode(),
    lambda key: b'{"id": "%s", "text": "invalid \xff\xfe bytes"}' % key.encode(),
    lambda key: b'{"id": "%s", "text": "a"} {"id": "x", "text": "b"}' % key.encode(),
    lambda key: b'{"id": "%s", "text": "twice", "text": "named"}' % key.encode(),
    lambda key: b'{"id": "%s", "text": "tab\tand nul \x00 unescaped"}' % key.encode(),
    lambda key: b"not json at all",
    lambda key: b"[1, 2, 3]",
]


def test_each_bad_row_is_set_aside_alone(tmp_path: Path, tiny: str, distilbeam: Callable[..., Any]) -> None:
    chance = random.Random(0)
    bad = sorted(chance.sample(range(ROWS), 250))
    kinds = {row: BAD[position % len(BAD)] for position, row in enumerate(bad)}
    source = tmp_path / "rows.jsonl"
    with source.open("wb") as file:
        for row in range(ROWS):
            key = f"k{row}"
            line = json.dumps({"id": key, "text": f"row {row} reads well"}).encode()
            file.write((kinds[row](key) if row in kinds else line) + b"\n")
    output = tmp_path / "out"
    distilbeam(
        *("classify", "--model", tiny, "--input", source, "--id", "id", "--output", output),
        *("--max-rejects", "250", "--split-bytes", "200000"),
    )

    found = ds.dataset(str(output)).to_table()
    assert found.column("id").to_pylist() == [f"k{row}" for row in range(ROWS) if row not in kinds]
    assert found.column("label").null_count == 0
    rejects = ds.dataset([str(path) for path in sorted((output / "_rejects").glob("*.parquet"))]).to_table()
    assert rejects.column("line").to_pylist() == [row + 1 for row in bad]
    assert set(rejects.column("source").to_pylist()) == {str(source)}
    assert rejects.column("text").null_count == 250
    assert len(list((output / "_rejects").glob("*.parquet"))) > 1, "the file was to be read in several splits"


def test_too_many_bad_rows_fail_the_job_and_show_nothing(
    tmp_path: Path, tiny: str, distilbeam: Callable[..., Any]
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b'{"text": "good"}\n' * 97 + b"bad canary\n" * 3)
    output = tmp_path / "out"
    done = distilbeam("embed", "--model", tiny, "--input", source, "--output", output, "--max-rejects", "2%", code=1)
    assert "3" in done.stderr
    assert "Most frequent: " in done.stderr
    assert "more than the 2% that --max-rejects" in done.stderr
    assert "canary" not in done.stderr
    assert not list(output.glob("features/*.parquet"))
    distilbeam("embed", "--model", tiny, "--input", source, "--output", output, "--max-rejects", "3%")
    assert sum(pq.read_metadata(path).num_rows for path in output.glob("features/*.parquet")) == 97
