"""Values of CSV, TSV and JSON lines in types that are asked for: what they say, or a reject that names the column."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.provenance import Provenance

UTC = datetime.timezone.utc
NEW_YEAR = datetime.datetime(2024, 1, 1, tzinfo=UTC)


def read(path: Path, kind: str) -> tuple[list[Any], list[str]]:
    settings = ReadSettings(path=str(path), types={"v": kind})
    batches = [batch for split in plan_splits(settings) for batch in read_split(split, settings)]
    values = [None if value is None else value for batch in batches for value in batch["v"].to_pylist()]
    return values, [reject.reason for batch in batches for reject in Provenance.of(batch).rejects]


# A type, texts, and what they are; what is left out is a reject.
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "decimals": ("decimal128(10, 2)", {"1.10": decimal.Decimal("1.10"), "1.105": ..., "99999999999": ..., "x": ...}),
    "floats": ("float", {"0.5": 0.5, "1e300": ..., "-1e39": ..., "x": ...}),
    "halves": ("halffloat", {"1.5": 1.5, "70000": ...}),
    "doubles": ("double", {"0.1": 0.1, "1e400": ..., "9007199254740993": ..., "10000000000000000000000": 1e22}),
    "bytes": ("int8", {"127": 127, "128": ..., "1.5": ...}),
    "unsigned": ("uint64", {"18446744073709551615": 2**64 - 1, "-1": ...}),
    "categories of numbers": ("dictionary<int64>", {"5": 5, "x": ...}),
}
QUOTED: dict[str, tuple[str, dict[str, Any]]] = {
    "clock times": (
        "timestamp[us]",
        {"2024-01-01T00:00:00.000001": datetime.datetime(2024, 1, 1, 0, 0, 0, 1), "2024-01-01T00:00:00.0000001": ...},
    ),
    "years": ("timestamp[ns]", {"9999-12-31T00:00:00": ..., "2024-01-01": datetime.datetime(2024, 1, 1)}),
    "moments": (
        "timestamp[us, tz=Europe/Berlin]",
        {"2024-01-01T00:00:00Z": NEW_YEAR, "2024-01-01T02:00:00+02:00": NEW_YEAR, "2024-01-01T00:00:00": ...},
    ),
    "days": ("date32", {"9999-12-31": datetime.date(9999, 12, 31), "2024-01-01T10:00:00": ...}),
    "times of day": ("time64[us]", {"10:00:00.000001": datetime.time(10, 0, 0, 1), "25:00:00": ..., "10:00:00Z": ...}),
    "seconds of the day": ("time32[s]", {"10:00:00": datetime.time(10), "10:00:00.5": ...}),
    "categories": ("dictionary<values=string, indices=int8, ordered=0>", {"a": "a"}),
    "bytes of one length": ("fixed_size_binary[2]", {"ab": b"ab", "abc": ...}),
}


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("name", [*TEXTS, *QUOTED])
def test_texts_are_what_they_say_or_set_aside(tmp_path: Path, name: str, format: str) -> None:
    kind, values = {**TEXTS, **QUOTED}[name]
    path = tmp_path / f"a.{format}"
    if format == "jsonl":
        if name == "bytes of one length":
            return  # Arrow's JSON has none
        shown = {text: json.dumps(text) if name in QUOTED or text == "x" else text for text in values}
        path.write_text("".join(f'{{"text": "t", "v": {text}}}\n' for text in shown.values()))
    else:
        mark = "," if format == "csv" else "\t"
        path.write_text(f"text{mark}v\n" + "".join(f"t{mark}{text}\n" for text in values))
    found, rejects = read(path, kind)
    assert found == [value for value in values.values() if value is not ...]
    assert len(rejects) == sum(value is ... for value in values.values())
    assert all("column 'v'" in reason for reason in rejects)


def test_infinity_that_is_written_is_infinity(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "text,v\n" + "".join(f"t,{text}\n" for text in ("inf", "-Infinity", "nan", "1e999"))
    )
    for kind in ("double", "float"):
        values, rejects = read(tmp_path / "a.csv", kind)
        assert values[:2] == [math.inf, -math.inf]
        assert math.isnan(values[2])
        assert (len(values), len(rejects)) == (3, 1)


NESTED: dict[str, tuple[str, list[Any], list[Any]]] = {
    "days in lists": ("list<list<date32>>", [[["2024-01-01"]], [["x"]]], [[[datetime.date(2024, 1, 1)]]]),
    "moments in structs": (
        "struct<at: timestamp[us, tz=Asia/Tokyo], price: decimal128(5, 2)>",
        [{"at": "2024-01-01T00:00:00Z", "price": "1.25"}, {"at": "2024-01-01T00:00:00", "price": "1.25"}],
        [{"at": NEW_YEAR, "price": decimal.Decimal("1.25")}],
    ),
    "floats in lists": ("list<float>", [[0.5], [1e300]], [[0.5]]),
    "halves in structs": ("struct<a: halffloat>", [{"a": 1.5}, {"a": 70000}], [{"a": 1.5}]),
    "lists of one size": ("fixed_size_list<int8>[2]", [[1, 2], [1], None], [[1, 2], None]),
    "large lists": ("large_list<int8>", [[1], [128]], [[1]]),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_values_of_json(tmp_path: Path, name: str) -> None:
    kind, given, expected = NESTED[name]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "v": value}) + "\n" for value in given))
    values, rejects = read(path, kind)
    assert values == expected
    assert len(rejects) == len(given) - len(expected)
    assert all("column 'v'" in reason for reason in rejects)


@pytest.mark.parametrize(
    ("format", "kind"),
    [("csv", "list<int8>"), ("csv", "duration[s]"), ("jsonl", "map<string, int8>"), ("jsonl", "duration[s]")],
)
def test_types_that_a_format_cannot_give_are_refused_at_once(tmp_path: Path, format: str, kind: str) -> None:
    (tmp_path / f"a.{format}").write_text('{"text": "t", "v": 1}\n' if format == "jsonl" else "text,v\nt,1\n")
    with pytest.raises(InputError, match=rf"column 'v' cannot be read as .* from {format} files"):
        read(tmp_path / f"a.{format}", kind)
