"""Recurring jobs over places that others empty, and over tables whose log they write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from distilbeam.transforms.errors import InputError, OutputExistsError
from distilbeam.transforms.input.discovery import covers
from distilbeam.transforms.storage import filesystems
from tests.recurring import Folder, forget, ids, run

ROOT = "memory://inboxes"
OUT = f"{ROOT}/out"


@pytest.fixture
def inbox() -> Iterator[Folder]:
    forget(ROOT)
    yield Folder(f"{ROOT}/in")
    forget(ROOT)


@pytest.mark.parametrize("pattern", ["{}", "{}/", "{}/*.jsonl", "{}/**", "{}/*day*", "memory://inboxes/i[n]"])
def test_an_inbox_that_another_tool_empties_goes_on(inbox: Folder, pattern: str) -> None:
    path = pattern.format(inbox.url)
    for day in ("monday", "tuesday", "wednesday"):
        for name in list(inbox.files):
            inbox.remove(name)
        inbox.put(day, [f"{day}1", f"{day}2"])
        changes = run(path, OUT).changes
        assert ids(OUT) == inbox.rows
    assert (changes.files_added, changes.files_removed) == (1, 1)


def test_an_inbox_without_any_file_leaves_the_output_as_it_is(inbox: Folder) -> None:
    inbox.put("monday", ["m1"])
    run(inbox.url, OUT)
    inbox.remove("monday")
    with pytest.raises(
        InputError, match=r"no file matches 'memory://inboxes/in'.*'memory://inboxes/out' stays as it is"
    ):
        run(inbox.url, OUT)
    assert ids(OUT) == ["m1"]
    inbox.put("tuesday", ["t1"])
    run(inbox.url, OUT)
    assert ids(OUT) == ["t1"]


def test_an_inbox_of_empty_files_leaves_the_output_as_it_is(inbox: Folder) -> None:
    inbox.put("monday", ["m1"])
    run(inbox.url, OUT)
    filesystems.write_bytes(inbox.path("monday"), b"")
    with pytest.raises(InputError, match=r"files of the input are empty.*'memory://inboxes/out' stays as it is"):
        run(inbox.url, OUT)
    assert ids(OUT) == ["m1"]
    inbox.put("tuesday", ["t1"])
    run(inbox.url, OUT)
    assert ids(OUT) == ["t1"]


def test_a_key_that_only_the_second_day_has_is_told(inbox: Folder) -> None:
    inbox.put("monday", ["m1"])
    run(inbox.url, OUT)
    lines = [f'{{"id": "t{n}", "text": "{"x" * 300}"}}' for n in range(5000)]
    late = '{"id": "last", "text": "y", "stars": 5}'
    filesystems.write_bytes(inbox.path("tuesday"), "\n".join([*lines, late]).encode())
    with pytest.raises(InputError, match=r"tuesday\.jsonl' has a column 'stars' that the output does not have"):
        run(inbox.url, OUT)
    assert ids(OUT) == ["m1"]


@pytest.mark.parametrize("other", [f"{ROOT}/in2", f"{ROOT}/in2/*", f"{ROOT}/in/x.jsonl"])
def test_an_input_elsewhere_is_still_refused(inbox: Folder, other: str) -> None:
    inbox.put("a", ["a1"])
    run(inbox.url, OUT)
    for folder, name in ((inbox, "x"), (Folder(f"{ROOT}/in2"), "x")):
        folder.put(name, ["x1"])
    inbox.remove("a")
    with pytest.raises(OutputExistsError, match="another input: none of its 1 files"):
        run(other, OUT)


def test_a_path_covers_what_it_would_match(tmp_path: Path) -> None:
    names = ["a.parquet", "b.jsonl", "d=1/a.parquet", "d=1/e/c.parquet", "inbox2/a.parquet", "[x]/a.parquet"]
    for name in names:
        filesystems.write_bytes(f"{tmp_path}/in/{name}", b"x")
    for pattern in (
        "",
        "*",
        "*.parquet",
        "d=*",
        "*/*.parquet",
        "**/*.parquet",
        "**",
        "d=[12]",
        "d=[!2]/*",
        "?.jsonl",
        "inbox2",
    ):
        path = f"{tmp_path}/in/{pattern}"
        matched = {info.url for info in filesystems.match_files(path)}
        assert {name for name in names if covers(path, f"{tmp_path}/in/{name}")} == {
            url.removeprefix(f"{tmp_path}/in/") for url in matched
        }, pattern


def test_an_output_stays_equal_to_a_table_whatever_becomes_of_it(inbox: Folder, tmp_path: Path) -> None:
    root = str(tmp_path / "table")

    def rows(*names: str) -> pa.Table:
        return pa.table({"id": list(names), "text": [f"text {name}" for name in names]})

    def check() -> None:
        run(root, OUT)
        assert ids(OUT) == sorted(DeltaTable(root).to_pyarrow_table()["id"].to_pylist())

    write_deltalake(root, rows("a", "b", "c"))
    check()
    write_deltalake(root, rows("d", "e"), mode="append")
    ran = run(root, OUT)
    assert ran.read.total() == 2  # the file of before is not read again
    DeltaTable(root).delete("id = 'b'")
    check()
    DeltaTable(root).update(predicate="id = 'd'", updates={"id": "'f'"})
    check()
    DeltaTable(root).optimize.compact()
    check()
    write_deltalake(root, rows("z"), mode="overwrite")
    check()
    assert ids(OUT) == ["z"]
    assert run(root, OUT).read.total() == 0
    # The next output gets only what is new in the table.
    write_deltalake(root, rows("y"), mode="append")
    run(root, f"{ROOT}/next", since=OUT)
    assert ids(f"{ROOT}/next") == ["y"]
