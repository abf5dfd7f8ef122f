"""CSV of every dialect against Python's csv module and DuckDB, and files without a header."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from distilbeam.transforms.errors import InputError, SettingsError
from distilbeam.transforms.input.formats.base import Unreadable
from distilbeam.transforms.input.formats.delimited import read_records
from distilbeam.transforms.input.formats.dialect import Dialect
from distilbeam.transforms.input.formats.lines import BadLine
from distilbeam.transforms.input.read_settings import ReadSettings

DIALECTS = [
    Dialect(";"),
    Dialect("\t", "'"),
    Dialect("|", '"', "\\"),
    Dialect(",", "'", "^"),
    Dialect("\x01", "", "\\"),
]
FIELD = st.lists(st.sampled_from([*"a\"',;|\\^ \t\x01", "\n", "\r\n", "ü"]), max_size=6).map("".join)
TABLE = st.lists(st.tuples(FIELD, FIELD), max_size=10)


def given_as(dialect: Dialect) -> dict[str, str]:
    return {"csv_delimiter": dialect.delimiter, "csv_quote": dialect.quote, "csv_escape": dialect.escape}


def written(rows: list[tuple[str, str]], dialect: Dialect, doubled: bool, quoting: int) -> str:
    out = io.StringIO()
    csv.writer(
        out,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote or None,
        escapechar=dialect.escape or None,
        doublequote=doubled,
        quoting=quoting if dialect.quote else csv.QUOTE_NONE,
        lineterminator="\n",
    ).writerows(rows)
    return out.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TABLE, st.sampled_from(DIALECTS), st.booleans(), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_csv_writes_is_read(
    tmp_path: Path, read: Any, rows: list[tuple[str, str]], dialect: Dialect, doubled: bool, quoting: int
) -> None:
    text = written([("title", "text"), *rows], dialect, doubled or not dialect.escape, quoting)
    assume(dialect.quote or "\r" not in text)  # which the csv module writes without an escape, and then reads otherwise
    (tmp_path / "d.csv").write_text(text, newline="")
    found = read(tmp_path / "d.csv", **given_as(dialect))
    assert [(row["title"], row["text"]) for row in found.rows] == rows
    assert not found.rejects


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "'", "''", ";", "\n", ";'", "';", "\\", "\\\\", "\\'", "\\\n"]), max_size=25).map(
        "".join
    ),
    st.sampled_from([Dialect(";", "'"), Dialect(";", "'", "\\"), Dialect(";", "", "\\")]),
)
def test_records_are_the_same_whatever_the_blocks_are(text: str, dialect: Dialect) -> None:
    def records(block_bytes: int, limit: int) -> list[tuple[int, object]]:
        found: list[tuple[int, object]] = []
        stream = io.BytesIO(text.encode())
        try:
            for item in read_records(stream, max_record_bytes=limit, block_bytes=block_bytes, dialect=dialect):
                if isinstance(item, BadLine):
                    found.append((item.number, (item.length, item.error)))
                else:
                    found += [(int(item.numbers[index]), item.line(index)) for index in range(len(item))]
        except Unreadable as error:
            found.append((1 << 60, str(error)))
        return sorted(found, key=lambda one: one[0])

    for limit in (5, 1000):
        whole = records(1 << 20, limit)
        assert all(records(size, limit) == whole for size in (1, 2, 3, 5, 11))


@pytest.mark.parametrize("dialect", DIALECTS[:4], ids=lambda dialect: repr(dialect.delimiter))
def test_duckdb_reads_the_same(tmp_path: Path, read: Any, dialect: Dialect) -> None:
    rows = [
        ("1", "plain"),
        ("2", f"a{dialect.delimiter}b"),
        ("3", f"say {dialect.quote}x{dialect.quote}"),
        ("4", "two\nlines"),
    ]
    path = tmp_path / "d.csv"
    path.write_text(written([("n", "text"), *rows], dialect, not dialect.escape, csv.QUOTE_ALL), newline="")
    truth = duckdb.read_csv(
        str(path),
        header=True,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote,
        escapechar=dialect.escape or dialect.quote,
        all_varchar=True,
    ).fetchall()
    assert truth == rows
    assert [(row["n"], row["text"]) for row in read(path, **given_as(dialect)).rows] == truth


@pytest.mark.parametrize("format", ["csv", "tsv"])
@pytest.mark.parametrize("split_bytes", [10, 1 << 20])
def test_files_without_a_header(tmp_path: Path, read: Any, format: str, split_bytes: int) -> None:
    delimiter = "\t" if format == "tsv" else ","
    rows = [(str(n), f"text {n}", f"x{n}") for n in range(20)]
    path = tmp_path / f"part.{format}"
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    truth = duckdb.read_csv(str(path), header=False, sep=delimiter, names=["id", "text", "tag"], all_varchar=True)
    found = read(path, columns=["id", "text", "tag"], split_bytes=split_bytes)
    assert [tuple(row.values()) for row in found.rows] == truth.fetchall() == rows
    kept = read(path, columns="id,text,tag", keep=["tag"], types={"id": "int64"}, id="id")
    assert [row["id"] for row in kept.rows] == list(range(20))


def test_columns_that_do_not_fit_are_told(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,one\n2,two,too many\n3\n4,four\n")
    found = read(path, columns=["id", "text"])
    assert found.texts == ["one", "four"]
    assert found.bad == [(1, "FieldCount"), (2, "FieldCount")]
    with pytest.raises(InputError, match=r"first line of '.*a.csv' has 2 fields, but `columns` names 3"):
        read(path, columns=["id", "text", "more"])
    with pytest.raises(InputError, match=r"no column 'text' in .*; `columns` names 'id', 'body'"):
        read(path, columns=["id", "body"])
    path.write_text("id,text\n1,one\n")
    with pytest.raises(InputError, match=r"first line of '.*a.csv' is a header"):
        read(path, columns=["id", "text"])
    path.write_text("")
    assert read(path, columns=["id", "text"]).rows == []
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"`columns` names .* but '.*b.jsonl' is jsonl"):
        read(tmp_path / "b.jsonl", columns=["id", "text"])


def test_without_quotes_every_line_is_a_record(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.csv").write_text('id|text\n1|"half a quote\n2|a "b" c\n')
    assert read(tmp_path / "a.csv", csv_delimiter="|", csv_quote="").texts == ['"half a quote', 'a "b" c']


@pytest.mark.parametrize("wrong", ["", ",,", "\n", "\r", "\0", "ü", None, 5])
@pytest.mark.parametrize("name", ["csv_delimiter", "csv_quote", "csv_escape"])
def test_wrong_characters_are_refused(name: str, wrong: Any) -> None:
    if wrong == "" and name != "csv_delimiter":
        return
    with pytest.raises(SettingsError, match=f"`{name}` must be one ASCII character"):
        ReadSettings(path="a", **{name: wrong})


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(["csv_delimiter", "csv_quote", "csv_escape"], 2)])
def test_characters_must_differ(one: str, other: str) -> None:
    with pytest.raises(SettingsError, match=f"`{one}` and `{other}` are both '!'"):
        ReadSettings(path="a", **{one: "!", other: "!"})


def test_settings_that_the_format_has_no_use_for_are_refused() -> None:
    for format in ("parquet", "jsonl", "text"):
        with pytest.raises(SettingsError, match="`columns` names the columns of CSV"):
            ReadSettings(path="a", format=format, columns=["a"])
    with pytest.raises(SettingsError, match="set `format='csv'`"):
        ReadSettings(path="a", format="tsv", csv_quote="'")
    with pytest.raises(SettingsError, match=r"columns.* names a column twice"):
        ReadSettings(path="a", columns=["a", "a"])


def test_what_is_read_depends_on_them() -> None:
    plain = ReadSettings(path="a")
    others: list[dict[str, Any]] = [{"columns": ["a"]}, {"csv_delimiter": ";"}, {"csv_quote": ""}, {"csv_escape": "\\"}]
    digests = {ReadSettings(path="a", **other).digest for other in others}
    assert len(digests | {plain.digest}) == 5
    assert ReadSettings(path="a", csv_delimiter=",", csv_quote='"', csv_escape="").digest == plain.digest
    assert ReadSettings(path="a", csv_delimiter="\\t").digest == ReadSettings(path="a", csv_delimiter="\t").digest
