"""Manifests, entries and staged records that somebody else has written: a clear error, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilbeam.transforms.errors import InputError, OutputError
from distilbeam.transforms.output import history, manifest
from distilbeam.transforms.output.commit import begin, commit
from distilbeam.transforms.output.history import Entry, entry_path, list_entries, load_entry, number_of
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.output.staging import OutputState
from tests.outputs import SHARDS, check_settled, files, resume, visible_rows
from tests.plans import Plan

PATHS = [
    "../mine.parquet",
    "/etc/passwd",
    "a/../../mine.parquet",
    "_rejects/../../mine.parquet",
    "mine.parquet",
    "_mine.parquet",
    "features/../mine.parquet",
    "features/mine.parquet",
    "features/a/part-00000-0b4cb75a.parquet",
    "part-00000-0b4cb75a.parquet/../../mine.parquet",
    "part-00000-0b4cb75a.parquet\n",
    "PART-00000-0b4cb75a.parquet",
    "s3://bucket/part-00000-0b4cb75a.parquet",
    "_distilbeam/manifest.json",
    "_distilbeam/staging/../../../mine.parquet",
    "",
    None,
    7,
    ["part-00000-0b4cb75a.parquet"],
    {},
]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output beside a file of somebody else."""
    made = tmp_path / "out"
    commit(str(made), Plan(lines=9).write_all(made, SHARDS))
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    return made


def change(path: Path, turn: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_bytes())
    turn(document)
    path.write_text(json.dumps(document))


def refused(output: Path, *more: Any, replaced: bool = True) -> list[str]:
    """What everyone who looks at the folder is told; nothing is touched, unless it is to be replaced."""
    before = {path: data for path, data in files(str(output)).items() if "staging" not in path}
    told = []
    plan = Plan(lines=15)
    for look in (
        lambda: OutputState.read(str(output)),
        lambda: begin(str(output), "error"),
        lambda: begin(str(output), "resume"),
        lambda: commit(str(output), plan.write_all(output, SHARDS), if_exists="resume"),
        *more,
    ):
        with pytest.raises((InputError, OutputError)) as caught:
            look()
        told.append(str(caught.value))
    assert all("damaged" in message for message in told), told
    assert before.items() <= files(str(output)).items()
    assert (output.parent / "mine.parquet").read_bytes() == b"mine"
    if replaced:
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(output.parent, Path(folder, "copy")) / output.name
            base = begin(str(copy), "overwrite")
            commit(str(copy), plan.write_all(copy, SHARDS), if_exists="overwrite", base=base)
            assert visible_rows(str(copy)) == plan.rows
            assert (copy.parent / "mine.parquet").read_bytes() == b"mine"
            OutputState.read(str(copy))
    return told


@pytest.mark.parametrize("path", PATHS)
def test_paths_in_a_manifest(output: Path, path: Any) -> None:
    def turn(document: dict[str, Any]) -> None:
        document["splits"][0]["shards"][0]["path"] = path

    change(output / "_distilbeam" / "manifest.json", turn)
    refused(output, lambda: load_manifest(str(output)))


@pytest.mark.parametrize("where", ["added", "removed"])
@pytest.mark.parametrize("path", PATHS)
def test_paths_in_an_entry(output: Path, path: Any, where: str) -> None:
    old = output / entry_path(1)
    shutil.copy(old, output / entry_path(2))

    def turn(document: dict[str, Any]) -> None:
        document.update(commit=2, base=1)
        if where == "added":
            document["added"][0]["path"] = path
        else:
            document["removed"] = [path]

    change(output / entry_path(2), turn)
    refused(output, lambda: load_entry(str(output), 2))


@pytest.mark.parametrize("path", PATHS)
def test_paths_in_a_staged_record(tmp_path: Path, path: Any) -> None:
    """A record that holds them is not used: the split is done again."""
    output, plan = tmp_path / "out", Plan(lines=9)
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    plan.write_all(output, SHARDS)
    for record in (output / "_distilbeam" / "staging").glob("*.json"):
        change(record, lambda document: document["shards"][0].update(path=path))
    assert resume(str(output), plan) == len(plan.splits)
    check_settled(str(output))
    assert visible_rows(str(output)) == plan.rows
    assert (tmp_path / "mine.parquet").read_bytes() == b"mine"


WRONG: list[tuple[str, Any]] = [
    ("rows", -1),
    ("rows", "1"),
    ("rows", True),
    ("rows", 1.5),
    ("bytes", None),
    ("sha256", 5),
    ("more", 1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_values(output: Path, name: str, value: Any) -> None:
    manifest_, entry = output / "_distilbeam" / "manifest.json", output / entry_path(1)
    whole = manifest_.read_bytes()
    change(manifest_, lambda document: document["splits"][0]["shards"][0].update({name: value}))
    refused(output)
    manifest_.write_bytes(whole)
    shutil.copy(entry, output / entry_path(2))
    change(output / entry_path(2), lambda document: document["added"][0].update({name: value}))
    change(output / entry_path(2), lambda document: document.update(commit=2, base=1))
    refused(output)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"version": 1}',
        b'{"version": 1, "commit": 1, "splits": {}}',
        b"[" * 100_000,
        b'{"version": 1, "commit": ' + b"9" * 10_000 + b"}",
        b'{"version": 1, "commit": -1, "splits": []}',
    ],
)
def test_no_manifest_and_no_entry(output: Path, data: bytes) -> None:
    (output / entry_path(2)).write_bytes(data)
    refused(output, lambda: load_entry(str(output), 2))
    (output / entry_path(2)).unlink()
    (output / "_distilbeam" / "manifest.json").write_bytes(data)
    refused(output, lambda: load_manifest(str(output)))


def test_what_is_huge_is_not_read(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_JSON_BYTES", 1000)
    told = refused(output, lambda: load_manifest(str(output)), replaced=False)
    assert "more than the 1000" in told[0]


def test_an_entry_under_another_number(output: Path) -> None:
    shutil.copy(output / entry_path(1), output / entry_path(2))
    refused(output)


def test_names_that_are_no_entries(output: Path) -> None:
    folder = output / "_distilbeam" / "history"
    for name in ("000002.txt", "2.json", "0000002.json", "9999999999999999.json", "000000.json", "deep/000007.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{")
    assert list_entries(str(output)) == [1]
    assert OutputState.read(str(output)).newest == 1
    assert number_of(entry_path(1_234_567)) == 1_234_567


def test_an_entry_comes_back_as_it_was(output: Path) -> None:
    entry = load_entry(str(output), 1)
    assert Entry.from_json(entry.to_json()) == entry
    assert entry.base == 0
    assert history.HISTORY in entry_path(1)


def test_a_symbolic_link_in_place_of_a_shard_is_all_that_goes(output: Path) -> None:
    shard = sorted(output.glob("features/*.parquet"))[0]
    shard.unlink()
    shard.symlink_to(output.parent / "mine.parquet")
    commit(str(output), Plan(lines=15).write_all(output, SHARDS), if_exists="overwrite")
    assert (output.parent / "mine.parquet").read_bytes() == b"mine"
    assert not shard.is_symlink()
