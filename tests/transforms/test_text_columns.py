"""Text columns that hold something else are told at planning, and read as text where their type is given so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.formats.json_text import as_text
from distilbeam.transforms.input.formats.lines import read_blocks

VALUES = ["1", "-2.5", "true", "false"]


def lines(path: Path, *values: str, key: str = "text") -> Path:
    path.write_text("".join(f'{{"n": 1, "{key}": {value}, "k": [2]}}\n' for value in values))
    return path


@pytest.mark.parametrize(
    ("value", "kind"),
    [("1", "int64"), ("1.5", "double"), ("true", "bool"), ('{"body": "b"}', "struct"), ('["a"]', "list")],
)
def test_json_lines_without_a_string_are_told_at_once(tmp_path: Path, read: Any, value: str, kind: str) -> None:
    path = lines(tmp_path / "a.jsonl", *[value] * 300, "null")
    with pytest.raises(
        InputError, match=rf"text column 'text' of .*a.jsonl' is {kind}, not a string; .*`types`"
    ) as told:
        read(path)
    assert "body" not in str(told.value)
    with pytest.raises(InputError, match=rf"text column 'other' of .*a.jsonl' is {kind}, not a string"):
        read(lines(path, *[value] * 3, key="other"), text=["text", "other"], types={"text": "string"})


def test_a_column_with_some_strings_has_rejects(tmp_path: Path, read: Any) -> None:
    lines(tmp_path / "a.jsonl", "1", '"one"', "2")
    lines(tmp_path / "b.jsonl", "3", "4")
    found = read(tmp_path)
    assert found.texts == ["one"]
    assert [error for _, error in found.bad] == ["TypeError"] * 4


@pytest.mark.parametrize("column", ["text", "id"])
def test_the_type_string_takes_values_as_they_are_written(tmp_path: Path, read: Any, column: str) -> None:
    values = [*VALUES, '"a string"', "null"]
    path = tmp_path / "a.jsonl"
    if column == "text":
        lines(path, *values)
    else:
        path.write_text("".join(f'{{"id": {value}, "text": "t"}}\n' for value in values))
    truth = duckdb.sql(f"SELECT {column} FROM read_json('{path}', columns={{'{column}': 'VARCHAR'}})").fetchall()
    found = read(path, types={column: "string"}, nulls="keep")
    assert [row[column] for row in found.rows] == [value for (value,) in truth]
    assert found.bad == []
    assert found.batches[0].schema.field(column).type == pa.string()


def test_digits_are_kept_as_they_are_written(tmp_path: Path, read: Any) -> None:
    values = ["-2.50", "1e3", "123456789012345678901234567890", '{"a": [1, 2]}']
    assert read(lines(tmp_path / "a.jsonl", *values), types={"text": "string"}).texts == values


def test_ids_of_two_kinds_are_refused_with_the_cure_and_read_with_it(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 17, "text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "x-18", "text": "b"}\n')
    with pytest.raises(InputError, match="`types`, such as string"):
        read(tmp_path)
    found = read(tmp_path, types={"id": "string"})
    assert [row["id"] for row in found.rows] == ["17", "x-18"]


@pytest.mark.parametrize("values", [[1, 2], [1.5, None], [True], [b"raw"], ["a"]])
def test_parquet(tmp_path: Path, read: Any, values: list[Any]) -> None:
    column = pa.array(values)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    if isinstance(values[0], int | float):
        with pytest.raises(
            InputError, match=rf"is {column.type}, not a string; convert it, or give it the type string"
        ):
            read(tmp_path)
    found = read(tmp_path, types={"text": "string"}, nulls="keep")
    assert found.texts == column.cast(pa.string()).to_pylist()


def test_parquet_structs_are_refused_whatever_the_type(tmp_path: Path, read: Any) -> None:
    pq.write_table(pa.table({"text": [{"body": "b"}]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="is struct<body: string>, not a string; convert it"):
        read(tmp_path, types={"text": "string"})


@pytest.mark.parametrize(
    "line",
    [
        '{"a":1,"b":2}',
        ' { "x" : { "a" : 1 } , "a" : [ 1 , "]}" ] }  ',
        '{"a": "1", "b": null}',
        '{"\\u0061": 1.0}',
        '{"a": 1, "a": 2}',
        '{"ä": "\\ud83e\\udd9c", "a": {"ö": "ü\\n"}}',
        "{}",
    ],
)
def test_values_become_strings_and_nothing_else_changes(line: str) -> None:
    (block,) = read_blocks(_Stream(f"{line}\n".encode()), max_line_bytes=1000)
    changed = json.loads(as_text(block, ["a"]).line(0), object_pairs_hook=list)
    for (key, value), (same, before) in zip(changed, json.loads(line, object_pairs_hook=list), strict=True):
        assert key == same
        if key == "a" and before is not None and not isinstance(before, str):
            assert json.loads(value, object_pairs_hook=list) == before
            assert value in line
        else:
            assert value == before


@pytest.mark.parametrize(
    "line", ["[1]", "{", '{"a": 1', '{"a": }', "x", "", '{"a" 1}', '{"a": 1 "b": 2', '{"a": tru}', "\xff"]
)
def test_what_is_no_object_stays(line: str) -> None:
    data = line.encode("latin-1")
    for block in read_blocks(_Stream(data + b"\n"), max_line_bytes=1000):
        assert as_text(block, ["a"]).line(0) == data


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


def test_a_file_without_the_text_column_is_named_once(
    tmp_path: Path, read: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name, column in (("a", "text"), ("b", "body"), ("c", "body"), ("d", "title")):
        pq.write_table(pa.table({column: ["x"], "n": [1]}), tmp_path / f"{name}.parquet")
    found = read(tmp_path)
    assert found.texts == ["x"]
    assert [error for _, error in found.bad] == ["NullText"] * 3
    (told,) = [record.getMessage() for record in caplog.records if "has no column" in record.getMessage()]
    assert f"{str(tmp_path / 'b.parquet')!r}" in told
    assert "has no column 'text', so that every row of it is set aside" in told


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        (["title", "text"], {"text": ["text", "title"]}),
        ([], {"text": "n"}),
    ],
)
def test_a_file_with_one_of_the_text_columns_is_none_without(
    tmp_path: Path, read: Any, caplog: pytest.LogCaptureFixture, columns: list[str], settings: dict[str, Any]
) -> None:
    for name in columns or ["n"]:
        pq.write_table(pa.table({name: ["x"]}), tmp_path / f"{name}.parquet")
    read(tmp_path, **settings)
    assert "has no column" not in caplog.text


def test_lines_and_folders_may_lack_or_give_a_text_column(
    tmp_path: Path, read: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lines(tmp_path / "a.jsonl", '"one"')
    lines(tmp_path / "b.jsonl", '"two"', key="other")
    read(tmp_path)
    for folder in ("text=a", "text=b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        pq.write_table(pa.table({"n": [1]}), tmp_path / "in" / folder / "a.parquet")
    assert read(tmp_path / "in").texts == ["a", "b"]
    assert "has no column" not in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "told", "untold"),
    [
        ("a.csv", "id;text\n1;x\n", "its only column is 'id;text'; .*`csv_delimiter`; .*`columns`", None),
        ("a.csv", "1,x\n", "it has 2 columns, .*no header, name their columns with `columns`", "csv_delimiter"),
        ("a.tsv", "1\n", "it has 1 column, .*no header, name their columns with `columns`", "csv_delimiter"),
        ("a.jsonl", '{"a": 1}\n', "it has 1 column, none of a name like that", "`columns`"),
    ],
)
def test_a_text_column_that_is_not_there_is_told_with_what_may_be_wrong(
    tmp_path: Path, read: Any, name: str, data: str, told: str, untold: str | None
) -> None:
    (tmp_path / name).write_text(data)
    with pytest.raises(InputError, match=f"no column 'text' .*{told}") as caught:
        read(tmp_path / name)
    assert untold is None or untold not in str(caught.value)
