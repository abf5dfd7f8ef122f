"""Every JSON text of a public suite and of our own is taken, refused or dealt with as the table in ``jsonl`` says."""

from __future__ import annotations

import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilbeam.transforms.input.formats import jsonl
from distilbeam.transforms.input.formats.lines import parse, read_blocks
from tests.faults.hostile import read_all
from tests.faults.table import FaultReport

# Values, wrapped into {"text": "a", "v": VALUE}.
TAKEN = [
    *(b"0 -0 1 -1 1.5 -0.0 1e5 1E+5 1e-5 0.1e1 9007199254740992 true false null".split()),
    *(b'"" "a" "\\u0000" "\\"" "\\/\\b\\f\\n\\r\\t" "\\u00e9" "\\ud83e\\udd9c" "\xf0\x9f\xa6\x9c" "\x7f"'.split()),
    *(b'[] [[]] [{}] [1,2] {} {"":0} {"a":{"b":[1]}} "NaN" ["Infinity]"] {"NaN":1}'.split()),
    '"\u2028\u2029\ufeff"'.encode(),
    b" \t 1 \t ",
    b"[" * 90 + b"]" * 90,
    b"1e-999",
]
REFUSED = [
    *(b"01 -01 1. .5 -.5 1.e5 1e 1e+ +1 0x1 1_0 -a 1,2 1a - -- NaN -NaN Infinity -Infinity Inf nan".split()),
    *(b'True nul tru [1,] [,] [1 [1}} ]1[ {a:1} {\'a\':1} {1:1} {"a"} {"a":} {"a",1} {,} {"a":1,}'.split()),
    *(b'" "a "\\x" "\\u12" "\\u12g4" "\\ud800" "\\udc00" "\\ud800\\u0041" \'a\' a // /**/ 1//'.split()),
    *(b'["a" "b"] [NaN] {"a":NaN} [1,Infinity] {"\\ud800":1} 1e999 -1e999 [1e999] undefined'.split()),
    b'"\t"',
    b'"\x00"',
    b'"\x1f"',
    b'"\xff"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b"\x00",
    b"\xef\xbb\xbf1",
    b"\x0b1",
    b"\xc2\xa01",
    b"",
    b"[" * 1000,
    b"1}\r{",
]


def _wrapped(value: bytes) -> bytes:
    return b'{"text": "a", "v": ' + value + b"}\n"


def _kept(line: bytes, fields: dict[str, pa.DataType]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows and the error classes of a line read into these columns."""
    schema = pa.schema({"text": pa.string(), **fields})
    rows, errors = [], []
    for block in read_blocks(io.BytesIO(line), max_line_bytes=1 << 26):
        batches, _, rejects = parse(block, jsonl.parser(schema), jsonl.diagnoser(schema, None), include_text=False)
        rows += [row for batch in batches for row in batch.to_pylist()]
        errors += [reject.error for reject in rejects]
    return rows, errors


@pytest.mark.parametrize("value", TAKEN)
def test_valid_values_are_taken(value: bytes) -> None:
    assert json.loads(value) is not ...
    assert _kept(_wrapped(value), {}) == ([{"text": "a"}], [])


@pytest.mark.parametrize("value", REFUSED)
def test_invalid_values_cost_their_line_even_where_they_are_not_read(value: bytes) -> None:
    rows, errors = _kept(_wrapped(value), {})
    assert rows == []
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (b"9223372036854775807", pa.int64(), 2**63 - 1),
        (b"9223372036854775808", pa.int64(), "TypeError"),
        (b"18446744073709551615", pa.uint64(), 2**64 - 1),
        (b"1.0", pa.int64(), "TypeError"),
        (b"9007199254740991", pa.float64(), 2.0**53 - 1),
        (b"9007199254740993", pa.float64(), "LostDigits"),
        (b"-9007199254740993", pa.float64(), "LostDigits"),
        (b"9007199254740993.0", pa.float64(), 2.0**53),
        (b"123456789012345680000", pa.float64(), 123456789012345680000.0),
        (b"1" * 400, pa.float64(), "LostDigits"),
        (b"1" * 100_000, pa.float64(), "LostDigits"),
        (b"[1, 9007199254740993]", pa.list_(pa.float64()), "TypeError"),
        (b'{"a": 9007199254740993}', pa.struct([("a", pa.float64())]), "TypeError"),
        (b"1e400", pa.float64(), "TypeError"),
        (b"1e-400", pa.float64(), 0.0),
        (b"null", pa.float64(), None),
        (b'{"a": 1, "a": 2}', pa.struct([("a", pa.int64())]), "DuplicateKey"),
        (b'1, "v": 2', pa.int64(), "DuplicateKey"),
        (b"true", pa.int64(), "TypeError"),
        (b"0", pa.bool_(), "TypeError"),
        (b"5", pa.string(), "TypeError"),
    ],
)
def test_numbers_and_keys_are_read_exactly_or_not_at_all(value: bytes, kind: pa.DataType, expected: Any) -> None:
    rows, errors = _kept(_wrapped(value), {"v": kind})
    assert (errors or [row["v"] for row in rows]) == [expected]


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_objects = st.builds(
    lambda text, n, other: {"text": text, "n": n, **other},
    st.none() | st.text(max_size=5) | st.integers(),
    _values,
    st.dictionaries(st.sampled_from(["v", "w", "\u2028", ""]), _values, max_size=2),
)
_lines = st.builds(
    lambda value, ascii, cut, junk: (
        (json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass"))[:cut] + junk
    ),
    _objects,
    st.booleans(),
    st.none() | st.integers(0, 40),
    st.sampled_from([b"", b"", b"", b"", b" ", b"}", b'"', b"\xff", b"\\"]),
).filter(lambda line: b"\n" not in line)


def _strict(line: bytes) -> dict[str, Any] | None:
    """What a line is by Python's parser and the rules of the table, or None if it is to be set aside."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        pairs = json.loads(line.decode().strip(" \t\r"), parse_constant=refuse, object_pairs_hook=list)
        value = json.loads(line.decode().strip(" \t\r"))
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str | None):
        return None
    names = [name for name, _ in pairs]
    n = value.get("n")
    if names.count("text") > 1 or names.count("n") > 1 or isinstance(n, bool) or not isinstance(n, int | float | None):
        return None
    if isinstance(n, int) and int(float(n)) != n and Decimal(repr(float(n))) != n:
        return None
    if any(isinstance(item, float) and math.isinf(item) for item in _leaves(value)):
        return None
    return {"text": value.get("text"), "n": None if n is None else float(n)}


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for inner in value for leaf in _leaves(inner)] if isinstance(value, list) else [value]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_lines, max_size=12))
def test_each_line_is_judged_alone_and_as_an_independent_parser_does(lines: list[bytes]) -> None:
    schema = pa.schema({"text": pa.string(), "n": pa.float64()})
    expected = [_strict(line) for line in lines if line.strip(b" \t\r")]
    rows: list[dict[str, Any]] = []
    positions: list[int] = []
    bad: list[int | None] = []
    for block in read_blocks(io.BytesIO(b"\n".join(lines)), max_line_bytes=1 << 20):
        block = jsonl.without_blank(block)
        batches, numbers, rejects = parse(
            block, jsonl.parser(schema), jsonl.diagnoser(schema, None), include_text=False
        )
        rows += [row for batch in batches for row in batch.to_pylist()]
        positions += numbers.tolist()
        bad += [reject.row for reject in rejects]
    numbered = [number for number, line in enumerate(lines, 1) if line.strip(b" \t\r")]
    assert rows == [value for value in expected if value is not None]
    assert positions == [number for number, value in zip(numbered, expected, strict=True) if value is not None]
    assert bad == [number for number, value in zip(numbered, expected, strict=True) if value is None]


@pytest.mark.data
def test_json_test_suite(data: Path, tmp_path: Path, fault_report: FaultReport) -> None:
    cases = sorted((data / "hostile" / "JSONTestSuite" / "test_parsing").glob("*.json"))
    assert len(cases) == 318
    names, paths, wholes = [], [], []
    for case in cases:
        value = case.read_bytes().rstrip(b"\n")
        wholes.append(tmp_path / f"{case.stem}.whole.jsonl")
        wholes[-1].write_bytes(case.read_bytes())
        if b"\n" not in value:
            names.append(case.stem)
            paths.append(tmp_path / f"{case.stem}.jsonl")
            paths[-1].write_bytes(_wrapped(value))
    assert len(paths) > 290
    whole = read_all(wholes, nulls="keep")
    for case, outcome in zip(cases, whole, strict=True):
        outcome.check()
        if case.stem.startswith("n_"):
            assert outcome.rows == 0, case.stem
    for settings_ in ({}, {"keep": []}):
        for name, outcome in zip(names, read_all(paths, **settings_), strict=True):
            outcome.check()
            assert outcome.failure is None, name
            assert outcome.rows + sum(outcome.rejects.values()) == 1, name
            if name.startswith(("n_", "y_")):
                assert outcome.rows == name.startswith("y_"), (name, outcome)
    seconds = sum(outcome.seconds for outcome in whole)
    fault_report.add("JSONTestSuite", injected=len(cases) + 2 * len(paths), seconds=seconds)
