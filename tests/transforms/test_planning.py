"""Plans of files apart, held to those of files in groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilbeam.transforms.input.formats import kinds
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.splits import Part, Split
from distilbeam.transforms.storage.filesystems import file_info, open_input
from tests.recurring import Folder


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("split_bytes", [50, 300, 1 << 20])
def test_apart_no_split_has_two_files_and_nothing_is_lost(tmp_path: Path, format: str, split_bytes: int) -> None:
    folder = Folder(str(tmp_path), format)
    for name, rows in {"a": 1, "b": 40, "c": 0, "d": 2, "e": 9}.items():
        folder.put(name, [f"{name}{row}" for row in range(rows)])
    settings = ReadSettings(path=(str(tmp_path),), split_bytes=split_bytes)
    apart, grouped = plan_splits(settings, apart=True), plan_splits(settings)
    assert [part for split in apart for part in split.parts] == [part for split in grouped for part in split.parts]
    assert all(len({part.source for part in split.parts}) == 1 for split in apart)
    assert {part.source for split in apart for part in split.parts} == {folder.path(name) for name in folder.files}
    assert [(split.ordinal, split.splits) for split in apart] == [(at, len(apart)) for at in range(len(apart))]
    assert {split.schema for split in apart} == {split.schema for split in grouped}
    if split_bytes == 1 << 20:
        assert (len(apart), len(grouped)) == (5, 1)


def test_a_split_that_has_a_record_goes_by_its_name() -> None:
    split = Split((Part("a", "", 1, "v"),), 0, 1, b"", 0, record="00aa-12345678")
    assert split.id == "00aa"


def test_a_file_whose_name_tells_no_format_is_opened_once_to_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text('{"text": "t", "n": "1", "x": 1}\n')
    opened = []
    monkeypatch.setattr(kinds, "open_input", lambda url: opened.append(url) or open_input(url))
    infos = [file_info(str(tmp_path / name)) for name in ("a", "b")]
    plan_splits(ReadSettings(tmp_path / "*", types={"n": "int64"}, keep=["n", "x"]), infos=infos)
    assert sorted(opened) == [info.url for info in infos]
