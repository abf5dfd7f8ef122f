"""CSV against Python's csv module, TSV against splitting at tabs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.formats.base import Unreadable
from distilbeam.transforms.input.formats.delimited import read_records, record_ends
from distilbeam.transforms.input.formats.lines import BadLine

FIELD = st.lists(st.sampled_from(["a", '"', ",", "\n", "\r\n", " ", "ü", "\t"]), max_size=6).map("".join)
TABLE = st.lists(st.tuples(FIELD, FIELD), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TABLE, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_csv_writes_is_read(
    tmp_path: Path, read: Any, rows: list[tuple[str, str]], quoting: Any, end: str, final: bool
) -> None:
    out = io.StringIO()
    csv.writer(out, quoting=quoting, lineterminator=end).writerows([("title", "text"), *rows])
    text = out.getvalue()
    (tmp_path / "d.csv").write_text(text if final else text.removesuffix(end), newline="")
    found = read(tmp_path / "d.csv")
    assert [(row["title"], row["text"]) for row in found.rows] == rows
    assert not found.rejects


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", '"', '""', ",", "\n", ',"', '",', '"\n']), max_size=20).map("".join))
def test_records_end_where_csv_ends_them(text: str) -> None:
    """Also where quotes stand in odd places."""
    stops, is_open = record_ends(text.encode())
    stops = stops if len(stops) and stops[-1] == len(text) else np.append(stops, len(text))
    pieces = [text[low:high] for low, high in zip(np.append([0], stops), stops, strict=False)]
    ours = [row for piece in pieces for row in csv.reader(io.StringIO(piece, newline="")) if row]
    assert ours == [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    assert is_open == ends_inside_quotes(text)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", '"', '""', ",", "\n", ',"', '",', "\r"]), max_size=30).map("".join))
def test_records_are_the_same_whatever_the_blocks_are(text: str) -> None:
    def records(block_bytes: int) -> list[tuple[int, object]]:
        found: list[tuple[int, object]] = []
        try:
            for item in read_records(io.BytesIO(text.encode()), max_record_bytes=6, block_bytes=block_bytes):
                if isinstance(item, BadLine):
                    found.append((item.number, (item.length, item.error)))
                else:
                    found += [(int(item.numbers[index]), item.line(index)) for index in range(len(item))]
        except Unreadable as error:
            found.append((1 << 60, str(error)))
        return sorted(found, key=lambda one: one[0])

    whole = records(1 << 20)
    assert all(records(size) == whole for size in (1, 2, 3, 5, 11))


def ends_inside_quotes(text: str) -> bool:
    """Whether a last quote brings csv out of a quoted field: only then does the field after it split off."""
    plain = list(csv.reader(io.StringIO(text + ",x", newline="")))
    return bool(text) and not (plain and plain[-1][-1:] == ["x"])


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 8, 13, 1000])
def test_records_at_every_block_size(block_bytes: int) -> None:
    from distilbeam.transforms.input.formats.delimited import read_records

    text = '\ufefftext,n\r\n"a\n""b""\r\n",1\r\n\n5" screen,2\n"x"y,3\n"' + "long," * 20 + '",4\nlast,5'
    blocks = list(read_records(io.BytesIO(text.encode()), max_record_bytes=90, block_bytes=block_bytes))
    lines = {int(n): b.line(i) for b in blocks if not isinstance(b, BadLine) for i, n in enumerate(b.numbers)}
    lines |= {b.number: b.length for b in blocks if isinstance(b, BadLine)}
    assert lines == {-1: b"text,n", 0: b'"a\n""b""\r\n",1', 1: b'5" screen,2', 2: b'"x"y,3', 3: 104, 4: b"last,5"}


def test_bad_records_are_named_by_row(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b'text,n\na,1\nb\n\n"c\nc",3,3\nd\xff,4\ne,x\nf,6\rg,7\nh,\n"open')
    found = read(path, types={"n": "int64"})
    assert found.rows == [{"text": "a", "n": 1}, {"text": "h", "n": None}]
    assert [position for _, position in found.positions] == [0, 6]
    assert found.bad == [
        (1, "FieldCount"),
        (2, "FieldCount"),
        (3, "UnicodeDecodeError"),
        (4, "TypeError"),
        (5, "BareCarriageReturn"),
        (7, "UnclosedQuote"),
    ]


def test_a_quote_that_swallows_rows_fails_the_job(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "d.csv"
    path.write_text('text,n\na,1\n"b,2\nc,3\nd,4\n')
    with pytest.raises(InputError, match="opens in row 1 is never closed"):
        read(path)
    path.write_text('text,n\na,1\n"b,2\n' + "c,3\n" * 1_500_000)
    with pytest.raises(InputError, match="opens in row 1 is never closed"):
        read(path, max_line_bytes=1000)


def test_empty_fields_and_odd_files(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "d.csv"
    path.write_text('text,n\n,\n"",""\nNA,null\n')
    assert read(path).rows == [{"text": "", "n": ""}, {"text": "", "n": ""}, {"text": "NA", "n": "null"}]
    for only_header in ("text,n", "text,n\n", "\ufefftext,n\r\n"):
        path.write_text(only_header)
        assert read(path).rows == []
    path.write_bytes(b"text,n\ra,1\rb,2\r")
    with pytest.raises(InputError, match=r"\\r alone"):
        read(path)
    path.write_text('"text\nx",n\na,1\n')
    assert read(path, text="text\nx").rows == [{"text\nx": "a", "n": "1"}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.csv", b"x" * 140_000 + b",text\n1,a\n", "a name of more than 131072 characters"),
        ("d.csv", b'"text,n\n1,a\n', "a quote that opens in the header is never closed"),
        (
            "d.csv",
            b"text," + b"n" * 100 + b"\na,1\n",
            "header cannot be read: the line is longer than `max_line_bytes`",
        ),
        (
            "d.tsv",
            b"text\t" + b"n" * 100 + b"\na\t1\n",
            "header cannot be read: the line is longer than `max_line_bytes`",
        ),
    ],
)
def test_a_header_that_cannot_be_read_is_told_with_the_file(
    tmp_path: Path, read: Any, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"cannot read '.*{name}': .*{message}"):
        read(tmp_path / name, max_line_bytes=100 if len(data) < 1000 else 1 << 20)


def test_a_long_row_does_not_hide_the_header(tmp_path: Path, read: Any) -> None:
    for name, separator in (("d.csv", ","), ("d.tsv", "\t")):
        path = tmp_path / name
        path.write_text(separator.join(("text", "n")) + "\n" + "x" * 50 + separator + "1\n" + f"a{separator}2\n")
        found = read(path, max_line_bytes=20)
        assert found.rows == [{"text": "a", "n": "2"}]
        assert [error for _, error in found.bad] == ["LineTooLong"]


def test_columns_are_found_by_name_in_every_file(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.csv").write_text("text,n\na,1\n")
    (tmp_path / "b.tsv").write_text("n\textra\ttext\n2\te\tb\n")
    (tmp_path / "c.csv").write_text("extra\nx\n")
    paths = [str(tmp_path / name) for name in ("a.csv", "b.tsv", "c.csv")]
    found = read(paths, nulls="keep", types={"n": "int8"})
    assert found.rows == [
        {"text": "a", "n": 1, "extra": None},
        {"text": "b", "n": 2, "extra": "e"},
        {"text": None, "n": None, "extra": "x"},
    ]
    assert found.batches[0].schema.field("n").type == pa.int8()


CELL = st.lists(st.sampled_from(["a", '"', ",", "\r", " ", "ü", "\u2028", "\\", "#"]), max_size=5).map("".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=12), st.integers(1, 60))
def test_tsv_is_what_lies_between_tabs(tmp_path: Path, read: Any, rows: list[list[str]], split_bytes: int) -> None:
    path = tmp_path / "d.tsv"
    path.write_bytes("".join("\t".join(row) + "\n" for row in [["a", "text", "b"], *rows]).encode())
    found = read(path, split_bytes=split_bytes)
    cells = ["\t".join(row).removesuffix("\r").split("\t") for row in rows]
    expected = [(number, row) for number, row in enumerate(cells, 2) if row != [""]]
    assert [position for _, position in found.positions] == [number for number, row in expected if len(row) == 3]
    assert [list(row.values()) for row in found.rows] == [row for _, row in expected if len(row) == 3]
    assert found.bad == [(number, "FieldCount") for number, row in expected if len(row) != 3]


def test_a_single_column_keeps_empty_texts(tmp_path: Path, read: Any) -> None:
    (tmp_path / "d.tsv").write_text("text\na\n\nb\n")
    assert read(tmp_path).texts == ["a", "", "b"]
