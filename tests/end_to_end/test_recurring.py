"""A scheduled command over a folder that changes from day to day, with the model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.pipelines.inspection import inspect
from distilbeam.pipelines.job import run
from distilbeam.transforms import Embed
from distilbeam.transforms.distilbert.engine import Engine
from distilbeam.transforms.encoder import Encoder
from tests.plans import s3_bucket

Rows = dict[str, list[Any]]


class Days:
    """A folder of five days, with the text of every id that must be in the output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, str]] = {}
        self._clock = 1_700_000_000

    def put(self, name: str, **texts: str) -> None:
        self.files[name] = texts
        path = self.folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
        self._clock += 1
        os.utime(path, (self._clock, self._clock))

    def remove(self, name: str) -> None:
        del self.files[name]
        (self.folder / f"{name}.jsonl").unlink()

    @property
    def texts(self) -> dict[str, str]:
        return {key: text for texts in self.files.values() for key, text in texts.items()}

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Each day's rows that a model must see, and what the command line says of the files."""
        self.put("monday/a", a1="the first", a2="a second one")
        self.put("monday/b", b1="another file", b2="with rows of its own", b3="three of them")
        yield 5, "files: 0 unchanged, 2 added, 0 replaced, 0 removed"
        self.put("tuesday/c", c1="new on tuesday", c2="and so is this")
        yield 2, "files: 2 unchanged, 1 added, 0 replaced, 0 removed"
        self.put("monday/a", a1="the first, changed", a3="and one that is new")  # changed
        self.put("tuesday/c", **self.files["tuesday/c"])  # touched, but equal
        yield 4, "files: 1 unchanged, 0 added, 2 replaced, 0 removed"
        yield 0, "files: 3 unchanged, 0 added, 0 replaced, 0 removed"
        self.remove("monday/b")
        self.put("friday/d", d1="a last file")
        yield 1, "files: 2 unchanged, 1 added, 0 replaced, 1 removed"


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the model in this process."""
    rows: list[int] = []
    original = Engine.run

    def count(self: Engine, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        if len(tokens):
            rows.append(len(tokens))
        return original(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Engine, "run", count)
    return rows


def vectors(output: Path) -> dict[str, Any]:
    """Vectors by id, each id once."""
    tables = [pq.read_table(path) for path in sorted(output.glob("features/*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: np.array(row["embedding"]) for row in rows}


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        np.allclose(found[key], expected[key], atol=1e-5) for key in expected
    )


def test_five_days_in_one_output(tmp_path: Path, tiny: str, distilbeam: Callable[..., Any], passed: list[int]) -> None:
    days = Days(tmp_path / "in")
    out = tmp_path / "out"
    arguments = ["embed", "--model", tiny, "--dtype", "float32", "--input", days.folder, "--output"]
    for day, (rows, told) in enumerate(days):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        passed.clear()
        done = distilbeam(*arguments, out, "--incremental")
        assert sum(passed) == rows
        assert told in done.stdout + done.stderr
        if not rows:
            assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        found = vectors(out)
        distilbeam(*arguments, tmp_path / f"fresh-{day}")
        assert same(found, vectors(tmp_path / f"fresh-{day}"))
        assert found.keys() == days.texts.keys()
    assert inspect(str(out)).rows == len(days.texts)
    history = sorted((out / "_distilbeam" / "history").glob("*.json"))
    assert len(history) == 4, "a day with nothing new is no commit"
    last = json.loads(history[-1].read_text())
    assert len(last["added"]) == 1
    assert len(last["removed"]) == 1


def test_five_days_with_a_folder_each(
    tmp_path: Path, tiny: str, distilbeam: Callable[..., Any], passed: list[int]
) -> None:
    days = Days(tmp_path / "in")
    arguments = ["embed", "--model", tiny, "--dtype", "float32", "--input", days.folder, "--output"]
    union: dict[str, Any] = {}
    for day, (rows, told) in enumerate(days):
        since = ["--since", tmp_path / f"day-{day - 1}"] if day else []
        passed.clear()
        done = distilbeam(*arguments, tmp_path / f"day-{day}", *since)
        assert sum(passed) == rows
        assert not day or told in done.stdout + done.stderr
        found = vectors(tmp_path / f"day-{day}")
        assert len(found) == rows
        union |= found
        if day > 1:  # yesterday's folder is enough
            (tmp_path / f"day-{day - 2}").rename(tmp_path / f"away-{day - 2}")
        looked = inspect(str(tmp_path / f"day-{day}"))
        assert (looked.rows, looked.files) == (rows, len(days.files))
        assert looked.covered == int(re.findall(r"files: (\d) unchanged", told)[0])
    distilbeam(*arguments, tmp_path / "fresh")
    fresh = vectors(tmp_path / "fresh")
    # Rows that have gone from the input are still in the folders of days before.
    assert union.keys() - fresh.keys() == {"a2", "b1", "b2", "b3"}
    assert same({key: union[key] for key in fresh}, fresh)
    assert (
        "which holds no finished output"
        in distilbeam(*arguments, tmp_path / "x", "--since", tmp_path / "nowhere", code=2).stderr
    )


@pytest.mark.slow
def test_a_day_that_is_killed_goes_on_the_next(tmp_path: Path, tiny: str, distilbeam: Callable[..., Any]) -> None:
    days = Days(tmp_path / "in")
    for name in "ab":
        days.put(name, **{f"{name}{row}": f"row {row} of {name}" for row in range(5)})
    out = tmp_path / "out"
    arguments = ["embed", "--model", tiny, "--dtype", "float32", "--input", str(days.folder), "--output"]
    distilbeam(*arguments, out, "--incremental")
    kept = {path.name: path.read_bytes() for path in out.glob("features/*.parquet")}
    for number in range(12):
        name = f"new-{number:02}"
        days.put(name, **{f"{name}-{row}": f"row {row} " + "word " * 40 for row in range(300)})
    days.remove("a")
    staging = out / "_distilbeam" / "staging"
    command = [sys.executable, "-m", "distilbeam", *map(str, arguments), str(out), "--incremental", "--quiet"]
    job = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 120
        while len(list(staging.glob("*.json"))) < 3:
            assert job.poll() is None, "the job was over before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGKILL)
    finally:
        job.wait()
    staged = {path.name.split("-")[0] for path in staging.glob("*.json")}
    assert len(staged) >= 3
    assert {path.name: path.read_bytes() for path in out.glob("features/*.parquet")} == kept
    days.put("new-99", z="came after the kill")
    done = distilbeam(*arguments, out, "--incremental")
    assert "files: 1 unchanged, 13 added, 0 replaced, 1 removed" in done.stdout + done.stderr
    manifest = json.loads((out / "_distilbeam" / "manifest.json").read_text())
    assert staged <= {split["split"] for split in manifest["splits"]}
    assert not staging.exists()
    found = vectors(out)
    assert found.keys() == days.texts.keys()
    distilbeam(*arguments, tmp_path / "fresh")
    assert same(found, vectors(tmp_path / "fresh"))


@pytest.mark.slow
def test_changed_settings(tmp_path: Path, tiny: str, distilbeam: Callable[..., Any], passed: list[int]) -> None:
    days = Days(tmp_path / "in")
    days.put("a", a1="one", a2="two and some more")
    out = tmp_path / "out"
    arguments = ["embed", "--model", tiny, "--dtype", "float32", "--input", days.folder, "--output", out]
    distilbeam(*arguments, "--incremental")
    passed.clear()
    refused = distilbeam(*arguments, "--incremental", "--max-length", "3", code=2)
    assert "made with other settings" in refused.stderr
    assert not passed
    distilbeam(*arguments, "--incremental", "--max-length", "3", "--if-changed", "overwrite")
    assert passed == [2]
    tokens = inspect(str(out)).tokens
    assert tokens is not None
    assert tokens.truncated == 1
    refused = distilbeam(*arguments, "--if-changed", "overwrite", code=2)
    assert "--if-changed is 'overwrite', but the job goes on from nothing" in refused.stderr


@pytest.mark.slow
def test_other_weights_under_the_same_name(
    tmp_path: Path, tiny: str, distilbeam: Callable[..., Any], passed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose weights are replaced between two days is refused before a row is computed, or starts anew."""
    model = tmp_path / "model"
    model.mkdir()
    for path in Path(tiny).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    days = Days(tmp_path / "in")
    days.put("a", a1="one", a2="two")
    out = tmp_path / "out"
    arguments = ["embed", "--model", model, "--input", days.folder, "--output", out, "--incremental"]

    def day(*more: str, code: int = 0) -> Any:
        monkeypatch.setattr(Encoder, "_shared", {})  # as in a process of its own
        passed.clear()
        return distilbeam(*arguments, *more, code=code)

    day()
    assert passed == [2]
    before = {path.name: path.read_bytes() for path in out.glob("features/*.parquet")}
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-4] ^= 1  # of the mantissa of the last number
    (model / "model.safetensors").write_bytes(bytes(data))
    days.put("b", b1="three")
    assert "another model: its weights or tokenizer differ" in day(code=2).stderr
    assert not passed
    assert {path.name: path.read_bytes() for path in out.glob("features/*.parquet")} == before
    day("--if-changed", "overwrite")
    assert sum(passed) == 3
    assert vectors(out).keys() == {"a1", "a2", "b1"}
    monkeypatch.setattr(Engine, "__init__", lambda *_: pytest.fail("the model was loaded, with nothing to compute"))
    done = day("--if-changed", "overwrite")
    assert "files: 2 unchanged, 0 added, 0 replaced, 0 removed" in done.stdout
    assert "splits: 2 kept, 0 added, 0 removed" in done.stdout


@pytest.mark.slow
def test_days_on_s3(tiny: str, passed: list[int]) -> None:
    import fsspec

    with s3_bucket() as bucket:
        files = fsspec.filesystem("s3")

        def put(name: str, **texts: str) -> None:
            lines = "".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items())
            files.pipe_file(f"{bucket}/in/{name}.jsonl", lines.encode())

        put("a", a1="one", a2="two")
        run(Embed(tiny), input=f"{bucket}/in", output=f"{bucket}/day-1")
        put("a", a1="one", a2="two")  # equal bytes are an equal object
        put("b", b1="three")
        passed.clear()
        done = run(Embed(tiny), input=f"{bucket}/in", output=f"{bucket}/day-2", since=f"{bucket}/day-1")
        assert done is not None
        assert done.changes is not None
        assert (done.rows, done.splits, done.changes.files_kept, done.changes.files_added) == (1, 1, 1, 1)
        assert passed == [1]
        table = pa.concat_tables(
            [
                pq.read_table(pa.BufferReader(files.cat_file(path)))
                for path in files.glob(f"{bucket}/day-2/features/*.parquet")
            ]
        )
        assert table["id"].to_pylist() == ["b1"]
        passed.clear()
        done = run(Embed(tiny), input=f"{bucket}/in", output=f"{bucket}/day-3", since=f"{bucket}/day-2")
        assert done is not None
        assert (done.rows, passed) == (0, [])
