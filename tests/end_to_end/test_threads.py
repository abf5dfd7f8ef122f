"""A job in several threads of one process, around one model: what reads and writes overlaps with what computes."""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from distilbeam.pipelines import embed
from distilbeam.transforms import workers

EXAMPLES = Path(__file__).parents[2] / "examples"
THREADS = ("--direct_running_mode=multi_threading", "--direct_num_workers=3")


def run(folder: Path, name: str, *options: str) -> dict[str, bytes]:
    """The files of features and rejects by name."""
    output = folder / name
    summary = embed(
        str(EXAMPLES / "distilbert-tiny-sst2"),
        input=str(folder / "in.jsonl"),
        output=str(output),
        split_bytes=4096,
        beam_options=options,
    )
    assert summary is not None
    assert (summary.rows, summary.rejects) == (300, 2)
    return {path.name: path.read_bytes() for path in [*output.glob("features/*.parquet"), *output.glob("_rejects/*")]}


def test_threads_write_what_one_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (EXAMPLES / "reviews.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "in.jsonl").write_bytes(b"".join([*lines[:150], b"{broken\n", *lines[150:], b'{"text": 3}\n']))
    expected = run(tmp_path, "one")
    assert len(expected) > 6
    featurize, calls, both = workers.featurize_with_failures, itertools.count(), threading.Barrier(2)

    def together(*arguments: Any) -> Any:
        if next(calls) < 2:
            both.wait(60)  # fails unless another thread comes here meanwhile
        return featurize(*arguments)

    monkeypatch.setattr(workers, "featurize_with_failures", together)
    assert run(tmp_path, "three", *THREADS) == expected
