"""The first rows of an input, against Python's own slices of what is in the files."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import OutputExistsError, SettingsError
from distilbeam.transforms.input import planning
from distilbeam.transforms.input.limits import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.provenance import ROW, Provenance
from tests.recurring import Folder, forget, ids, run

_FILES, _ROWS = 5, 40


def _write(folder: Path, format: str) -> list[str]:
    """Files of the same number of rows; gives their texts, None for a bad row."""
    texts = []
    for file in range(_FILES):
        rows = [f"{file} {row}" for row in range(_ROWS)]
        path = folder / f"{file}.{format}"
        if format == "parquet":
            pq.write_table(pa.table({"text": rows}), path, row_group_size=7)
        elif format.startswith("jsonl"):
            rows = [text if number % 6 else None for number, text in enumerate(rows)]
            lines = [json.dumps({"text": text}) if text else "{" for text in rows]
            data = "\n\n".join(lines).encode()  # a blank line is no row
            path.write_bytes(gzip.compress(data) if format.endswith("gz") else data)
        elif format == "csv":
            path.write_text("text,n\n" + "".join(f'"{text}",1\n' for text in rows))
        elif format == "tsv":
            path.write_text("text\tn\n" + "".join(f"{text}\t1\n" for text in rows))
        else:
            path.write_text("".join(f"{text}\n" for text in rows))
        texts += rows
    return texts


def _read(folder: Path, **settings: Any) -> tuple[list[str], int]:
    reading = ReadSettings(folder, **settings)
    batches = [batch for split in plan_splits(reading) for batch in read_split(split, reading)]
    notes = [note for batch in batches if (note := Provenance.of(batch)) is not None]
    table = pa.Table.from_batches([batch.replace_schema_metadata() for batch in batches]).drop([ROW])
    return table["text"].to_pylist(), sum(len(note.rejects) for note in notes)


@pytest.mark.parametrize("format", ["parquet", "jsonl", "jsonl.gz", "csv", "tsv", "txt"])
@pytest.mark.parametrize("split_bytes", [64, 1 << 20])
def test_the_first_rows_are_read_good_and_bad(format: str, split_bytes: int, tmp_path: Path) -> None:
    texts = _write(tmp_path, format)
    for limit in (1, 6, 7, 39, 40, 41, 100, len(texts) - 1, len(texts), len(texts) + 1):
        expected = [text for text in texts[:limit] if text is not None]
        found, bad = _read(tmp_path, limit=limit, split_bytes=split_bytes, batch_rows=11)
        assert found == expected
        assert bad == texts[:limit].count(None)


def test_no_more_files_are_looked_into_than_the_rows_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "jsonl")
    for number in range(10, 400):
        (tmp_path / f"x{number}.jsonl").write_text('{"text": "t"}\n')
    looked: set[str] = set()
    inspect = planning._inspect

    def note(settings: Any, file: Any) -> Any:
        looked.add(file.info.url)
        return inspect(settings, file)

    monkeypatch.setattr(planning, "_inspect", note)
    assert sum(map(len, [_read(tmp_path, limit=_ROWS)[0]])) < _ROWS
    assert len(looked) == 1


@pytest.mark.parametrize(("format", "kept"), [("parquet", 0.0), ("jsonl.gz", 0.0), ("jsonl.gz", 0.6), ("arrow", 0.6)])
def test_rows_that_a_damaged_file_lacks_come_from_the_next(format: str, kept: float, tmp_path: Path) -> None:
    for number in range(3):
        rows = [{"text": f"{number} {row:05} {random.Random(row).random()}"} for row in range(2000)]
        path = tmp_path / f"{number}.{format}"
        if format == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif format == "jsonl.gz":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        else:
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=200)
    first = tmp_path / f"0.{format}"
    first.write_bytes(first.read_bytes()[: int(first.stat().st_size * kept)] or b"x")
    everything, lost = _read(tmp_path, bad_files="reject", batch_rows=300)
    assert lost == 1
    good = len(everything) - 4000  # rows of the damaged file before its damage
    assert (good > 0) == (kept > 0 and format != "parquet")
    for limit in (good or 1, 2500 + good):
        found, bad = _read(tmp_path, bad_files="reject", batch_rows=300, limit=limit)
        assert (len(found), bad) == ((limit, 0) if limit <= good else (limit - 1, 1))
        assert found == everything[: len(found)]


def test_a_limited_output_is_not_taken_for_a_complete_one() -> None:
    folder, out = Folder("memory://limits/in"), "memory://limits/out"
    try:
        folder.put("a", ["a1", "a2"])
        folder.put("b", ["b1", "b2"])
        run(folder.url, out, incremental=False, limit=3)
        assert ids(out) == ["a1", "a2", "b1"]
        for settings in ({"incremental": True}, {"incremental": False}, {"incremental": False, "limit": 2}):
            with pytest.raises(OutputExistsError, match="other settings of the input"):
                run(folder.url, out, **settings)
        with pytest.raises(OutputExistsError, match="other settings"):
            run(folder.url, "memory://limits/next", since=out)
        with pytest.raises(SettingsError, match="`limit`"):
            run(folder.url, out, limit=3)
        assert run(folder.url, out, incremental=False, limit=3).plan[1] == 1  # the same again is
        run(folder.url, out, if_exists="overwrite")
        assert ids(out) == folder.rows
    finally:
        forget("memory://limits")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_is_a_number_of_rows(limit: Any) -> None:
    with pytest.raises(SettingsError, match="limit"):
        ReadSettings("in", limit=limit)


def test_a_dash_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="standard input"):
        ReadSettings("-")
    assert ReadSettings("./-").path == ("./-",)
