"""Bad lines of every kind are set aside alone, whatever their neighbours are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from distilbeam.transforms.errors import InputError

BAD = [
    (b'{"text": "cut', "JSONDecodeError"),
    (b'{"text": "a"} trailing', "JSONDecodeError"),
    (b'{"text": "a"}{"text": "b"}', "JSONDecodeError"),
    (b'{"text": "a"},', "JSONDecodeError"),
    (b'{"text": "a",}', "JSONDecodeError"),
    (b"{'text': 'a'}", "JSONDecodeError"),
    (b'{"text":', "JSONDecodeError"),
    (b'"spread over two lines"}', "JSONDecodeError"),
    (b'{"text": "tab\there"}', "JSONDecodeError"),
    (b'{"text": "nul\x00"}', "JSONDecodeError"),
    (b"text", "JSONDecodeError"),
    (b"}{", "JSONDecodeError"),
    (b"null", "NotAnObject"),
    (b"5", "NotAnObject"),
    (b'"a"', "NotAnObject"),
    (b'["a"]', "NotAnObject"),
    (b'{"text": 5}', "TypeError"),
    (b'{"text": ["a"]}', "TypeError"),
    (b'{"text": {"a": 1}}', "TypeError"),
    (b'{"text": true}', "TypeError"),
    (b'{"text": "a", "n": "five"}', "TypeError"),
    (b'{"text": "a", "n": 1e999}', "TypeError"),
    (b'{"text": "a", "n": NaN}', "JSONDecodeError"),
    (b'{"text": "a", "unread": [-Infinity ]}', "JSONDecodeError"),
    (b'{"text": "a", "n": 9007199254740993}', "LostDigits"),
    (b'{"text": "a", "n": -' + b"1" * 400 + b"}", "LostDigits"),
    (b'{"text": "a", "n": ' + b"[" * 490 + b"]" * 490 + b"}", "TypeError"),
    (b'{"text": "a", "text": "b"}', "DuplicateKey"),
    (b'{"text": "\xff"}', "UnicodeDecodeError"),
    (b'{"text": "\xed\xa0\x80"}', "UnicodeDecodeError"),
    (b'{"text": "\\ud83d"}', "UnicodeEncodeError"),
    (b'{"text": "' + b"x" * 3000 + b'"}', "LineTooLong"),
    (b'{"text": null}', "NullText"),
    (b"{}", "NullText"),
]
GOOD = [
    b'{"text": "a"}',
    b'  {"text": "spaces around"}  ',
    b'{"text": "a", "other": {"deep": [1, "x", null]}}',
    b'{"text": "a", "n": 123456789012345680000}',
    b'{"text": "NaN, Infinity]", "n": -9007199254740992}',
    b'{"text": "\\"NaN,", "unread": 9007199254740993}',
    b'{"text": "\\u0000 \\ud83e\\udd9c"}',
    b'{"n": 2, "text": "\xc3\xbc"}',
    b'{"text": ""}',
    b'{"text": "a", "unread": 1, "unread": 2}',
    b'{"text": "}{"}',
    b'{"text": "a", "deep": ' + b"[" * 900 + b"]" * 900 + b"}",
]
TYPES = {"n": "double"}


def test_each_bad_line_alone_is_named(tmp_path: Path, read: Any) -> None:
    lines: list[bytes] = []
    expected = []
    for number, (line, error) in enumerate(BAD):
        lines += [GOOD[number % len(GOOD)], line, b""]
        expected.append((len(lines) - 1, error))
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read(path, keep=["n"], types=TYPES, max_line_bytes=2500)
    assert found.bad == expected
    assert [position for _, position in found.positions] == [1 + 3 * n for n in range(len(BAD))]
    for reject in found.rejects:
        if reject.error != "NullText":
            assert reject.length == len(lines[(reject.row or 0) - 1])
    assert found.texts == [json.loads(GOOD[n % len(GOOD)])["text"] for n in range(len(BAD))]


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture(tmp_path: Path, read: Any, seed: int) -> None:
    chance = random.Random(seed)
    share = [0.0, 0.01, 0.3, 0.9, 1.0][seed]
    drawn = [chance.choice(BAD) if chance.random() < share else (chance.choice(GOOD), "") for _ in range(500)]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in drawn))
    found = read(path, keep=["n"], types=TYPES, max_line_bytes=2500, split_bytes=4000, batch_rows=50)
    assert found.bad == [(n, error) for n, (_, error) in enumerate(drawn, 1) if error]
    assert found.texts == [json.loads(line)["text"] for line, error in drawn if not error]


def test_text_of_bad_lines_is_kept_only_where_asked(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b'{"text": "ok"}\n{"text": "secret \xff"}\n{"id": 7, "text": 5, "x": "secret"}\n{secret' + b"x" * 20_000
    )
    quiet = read(path, id="id", types={"id": "int64"})
    assert "secret" not in repr(quiet.rejects)
    assert [reject.text for reject in quiet.rejects] == [None] * 3
    assert quiet.rejects[1].id == "7"
    loud = read(path, rejects_include_text=True, types={"id": "int64"}).rejects
    assert loud[0].text == '{"text": "secret \\xff"}'
    assert len(loud[2].text) == 10_000


def test_types_are_inferred_and_unified(tmp_path: Path, read: Any) -> None:
    first = [
        {
            "text": None,
            "i": 1,
            "when": "2020-01-01T00:00:00Z",
            "none": None,
            "o": {"a": None, "e": {}},
            "l": [],
            "e": {},
        },
        {"text": "b", "i": 1.5, "when": None, "o": {"b": "2020-01-01"}, "l": [1]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, first)))
    (tmp_path / "b.jsonl").write_text('{"text": "c", "i": 3, "new": true}\n')
    found = read(tmp_path, nulls="keep", split_bytes=1)
    schema = found.batches[0].schema
    assert schema.names == ["text", "i", "when", "none", "o", "l", "new", "_row"]
    assert [schema.field(name).type for name in ("text", "i", "when", "none", "l", "new")] == [
        pa.string(),
        pa.float64(),
        pa.string(),
        pa.string(),
        pa.list_(pa.int64()),
        pa.bool_(),
    ]
    assert schema.field("o").type == pa.struct([("a", pa.string()), ("b", pa.string())])
    assert [row["i"] for row in found.rows] == [1.0, 1.5, 3.0]
    (tmp_path / "c.jsonl").write_text('{"text": "d", "i": "four"}\n')
    with pytest.raises(InputError, match=r"column 'i' is double in .* but string in .*c\.jsonl"):
        read(tmp_path)


def test_a_type_that_changes_later_costs_only_those_lines(tmp_path: Path, read: Any) -> None:
    rows = [{"text": str(n), "n": n if n % 10 else "ten"} for n in range(1, 100)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(tmp_path)
    assert found.bad == [(n, "TypeError") for n in range(10, 100, 10)]
    assert len(read(tmp_path, keep=[]).rows) == 99


def test_empty_files_have_no_rows(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text("\n \n")
    found = read(tmp_path, keep=["id"])
    assert found.rows == []
    assert found.batches[-1].schema.names == ["id", "text", "_row"]


def test_very_deep_objects_neither_crash_nor_lose_rows(tmp_path: Path, read: Any) -> None:
    deep = '{"text": "b", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n' + deep + '\n{"text": "c"}\n')
    found = read(tmp_path, keep=[])
    assert found.texts == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("date32", "2020-01-02", "2020-01-02"),
        ("timestamp[us]", "2020-01-02T03:04:05", "2020-01-02 03:04:05"),
        ("halffloat", 1.5, "1.5"),
        ("int8", 3, "3"),
        ("bool", True, "true"),
        (pa.dictionary(pa.int32(), pa.string()), "x", "x"),
        (pa.decimal128(10, 2), "1.50", "1.50"),
    ],
)
def test_a_type_that_is_given_is_obeyed_or_refused(tmp_path: Path, read: Any, kind: Any, value: Any, text: str) -> None:
    rows = [{"text": "a", "v": value}, {"text": "b", "v": {"not": "this"}}, {"text": "c"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text(f"text,v\na,{text}\nc,\n")
    found = read(tmp_path / "a.jsonl", types={"v": kind})
    assert found.bad == [(2, "TypeError")]
    assert found.batches[0].schema.field("v").type == (pa.type_for_alias(kind) if isinstance(kind, str) else kind)
    assert found.rows == read(tmp_path / "a.csv", types={"v": kind}).rows
    with pytest.raises(InputError, match=r"cannot be read as duration\[s\] from jsonl"):
        read(tmp_path / "a.jsonl", types={"v": "duration[s]"})


def test_a_first_line_that_is_an_array_is_a_bad_line_like_others(tmp_path: Path, read: Any) -> None:
    (tmp_path / "d.jsonl").write_text('["a"]\n{"text": "b"}\n')
    found = read(tmp_path)
    assert (found.texts, found.bad) == (["b"], [(1, "NotAnObject")])
