"""A split's id says whether work on it can be used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distilbeam.transforms.planning import ReadSettings, plan_splits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x", "title": "y", "n": 1}\n' * 50)
    return tmp_path


def ids(folder: Path, **settings: Any) -> list[str]:
    return [split.id for split in plan_splits(ReadSettings(str(folder), split_bytes=500, **settings))]


def test_ids_repeat_and_differ_from_split_to_split(folder: Path) -> None:
    assert ids(folder) == ids(folder)
    assert len(set(ids(folder))) == len(ids(folder)) > 4


@pytest.mark.parametrize(
    "settings",
    [
        {"text": "title"},
        {"text": ["text", "title"]},
        {"text": ["text", "title"], "separator": "\n"},
        {"keep": ["n"]},
        {"keep": []},
        {"nulls": "keep"},
        {"id": "n"},
        {"types": {"n": "double"}},
        {"batch_rows": 10},
        {"include_reject_text": True},
    ],
)
def test_other_settings_make_other_splits(folder: Path, settings: dict[str, Any]) -> None:
    assert not set(ids(folder, **settings)) & set(ids(folder))


def test_only_a_changed_file_changes_its_splits(folder: Path) -> None:
    before = ids(folder)
    (folder / "b.jsonl").write_text('{"text": "changed", "title": "y", "n": 1}\n' * 50)
    after = ids(folder)
    kept = len(set(before) & set(after))
    assert 0 < kept < len(before)
