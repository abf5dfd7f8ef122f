"""Keys and types of JSON lines that come after the first ones, against Python's own JSON parser."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilbeam.transforms.errors import InputError, SettingsError
from distilbeam.transforms.input import keys
from distilbeam.transforms.input.formats import jsonl
from distilbeam.transforms.input.planning import plan_splits, read_schema
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.provenance import ROW, Provenance

Objects = list[dict[str, Any]]
_MANY = 6000


def _plain(number: int) -> dict[str, Any]:
    return {"id": number, "text": "x" * 250, "meta": {"a": number}, "later": None}


def _write(path: Path, objects: Objects) -> None:
    data = "".join(json.dumps(each) + "\n" for each in objects).encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def _read(path: Path, **settings: Any) -> tuple[list[dict[str, Any]], list[Provenance]]:
    reading = ReadSettings(path, **settings)
    batches = [batch for split in plan_splits(reading) for batch in read_split(split, reading)]
    rows = pa.Table.from_batches([batch.replace_schema_metadata() for batch in batches]).drop([ROW]).to_pylist()
    return rows, [note for batch in batches if (note := Provenance.of(batch)) is not None]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


LATE: list[dict[str, Any]] = [
    {"stars": 5},
    {"meta": {"a": 1, "b": ["x"]}},
    {"later": 5},
    {"later": {"deep": [1, 2]}},
    {"id": 1.5},
    {"with space": True, "": "", "dotted.key": 1},
]


@pytest.mark.parametrize("late", LATE, ids=str)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_what_comes_after_the_first_lines_is_read(late: dict[str, Any], name: str, tmp_path: Path) -> None:
    objects = [*map(_plain, range(_MANY)), {"text": "late", **late}]
    _write(tmp_path / name, objects)
    rows, notes = _read(tmp_path, split_bytes=1 << 19)
    assert list(map(_without_nulls, rows)) == list(map(_without_nulls, objects))
    assert not any(note.rejects or note.unread for note in notes)


def test_what_a_file_beyond_the_sampled_ones_has_is_read(tmp_path: Path) -> None:
    objects = [{"id": n, "text": f"text {n}"} | ({"stars": 5} if n == 41 else {}) for n in range(60)]
    for number, each in enumerate(objects):
        _write(tmp_path / f"{number:02}.jsonl", [each])
    rows, _ = _read(tmp_path)
    assert list(map(_without_nulls, rows)) == objects


def test_every_range_of_a_large_file_has_a_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_RANGE_BYTES", 1 << 18)
    objects = [_plain(n) | {f"key{n // 500}": n} for n in range(_MANY)]
    _write(tmp_path / "a.jsonl", objects)
    rows, _ = _read(tmp_path)
    assert list(map(_without_nulls, rows)) == list(map(_without_nulls, objects))
    assert list(rows[0]) == ["id", "text", "meta", "later", *(f"key{n}" for n in range(_MANY // 500))]


def test_lines_that_fit_nowhere_hide_no_keys(tmp_path: Path) -> None:
    lines = [json.dumps(_plain(n)) for n in range(_MANY)]
    lines += [
        bad for n in range(500) for bad in (json.dumps(_plain(n)), "{", '{"text": 1}', '{"text": "y", "id": "z"}')
    ]
    lines.append('{"text": "late", "stars": 5}')
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows, notes = _read(tmp_path)
    assert rows[-1] == {"id": None, "text": "late", "meta": None, "later": None, "stars": 5}
    assert sum(len(note.rejects) for note in notes) == 1500


def test_types_that_are_given_need_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a.jsonl", [*map(_plain, range(_MANY)), {"text": "late", "stars": 5}])
    rows, _ = _read(tmp_path, keep=["stars"])
    assert rows[-1] == {"stars": 5, "text": "late"}
    monkeypatch.setattr(keys, "_survey", None)
    rows, _ = _read(tmp_path, keep=["stars"], types={"stars": "int8"})
    assert rows[-1] == {"stars": 5, "text": "late"}


@pytest.fixture
def unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An input that is larger than what a plan looks at."""
    monkeypatch.setattr(keys, "SURVEY_BYTES", 0)
    late = {"text": "late", "secret key": 5, "meta": {"b": 1}}
    _write(tmp_path / "a.jsonl", [*map(_plain, range(_MANY)), late, late])
    return tmp_path


def test_keys_beyond_what_is_looked_at_are_told_with_the_split(unseen: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, notes = _read(unseen, split_bytes=1 << 19)
    assert len(rows) == _MANY + 2
    assert [note.unread for note in notes if note.unread] == [("meta.b", "secret key")]
    assert not _read(unseen, keep=["id"])[1][-1].unread  # who names the columns wants no others
    assert "secret" not in caplog.text


def test_strict_reading_ends_at_a_key_that_no_column_takes(unseen: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl' have keys that are no columns") as told:
        _read(unseen, strict=True)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("strict", ["yes", "false", 1, None])
def test_strict_is_a_bool(strict: Any) -> None:
    with pytest.raises(SettingsError, match="`strict` must be True or False"):
        ReadSettings("in", strict=strict)


_VALUES = st.one_of(st.none(), st.integers(-9, 9), st.text("ab", max_size=2), st.lists(st.integers(0, 3), max_size=2))
_OBJECTS = st.dictionaries(st.sampled_from("abc"), _VALUES, max_size=3)


@settings(max_examples=60, deadline=None)
@given(objects=st.lists(_OBJECTS, min_size=1, max_size=30), lines=st.integers(1, 200))
def test_no_key_is_lost_wherever_the_sample_ends(
    objects: Objects, lines: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("keys") / "a.jsonl"
    objects = [{"text": "t"} | each for each in objects]
    _write(path, objects)
    with pytest.MonkeyPatch.context() as patch:
        for module in (jsonl, keys):
            patch.setattr(module, "SAMPLE_BYTES", lines)
        schema = read_schema(plan_splits(ReadSettings(path))[0])
        rows, notes = _read(path)
    wanted = {key for each in objects for key in each}
    assert set(schema.names) == wanted
    assert not any(note.unread for note in notes)
    assert len(rows) + sum(len(note.rejects) for note in notes) == len(objects)
