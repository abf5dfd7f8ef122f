"""Columns whose type differs between files or between days: the same values, in one run and the next, or a refusal."""

from __future__ import annotations

import datetime
import decimal
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.column_types import common_type
from distilbeam.transforms.input.fitting import fit
from distilbeam.transforms.input.planning import plan_splits, read_schema
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.output.increments import Misfit, plan_increment
from distilbeam.transforms.provenance import Provenance

Day = tuple[pa.DataType, list[Any]]
NOON = datetime.datetime(2024, 2, 29, 12)
UTC = datetime.timezone.utc


def put(path: Path, kind: pa.DataType, values: list[Any]) -> None:
    array = pa.array(values, pa.string()).cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)
    pq.write_table(pa.table({"text": [str(n) for n in range(len(values))], "v": array}), path)


def values_and_rejects(settings: ReadSettings, splits: list[Any]) -> tuple[list[Any], list[str]]:
    batches = [batch for split in splits for batch in read_split(split, settings)]
    values = [value for batch in batches for value in batch["v"].to_pylist()]
    return values, [reject.reason for batch in batches for reject in Provenance.of(batch).rejects]


SAME: dict[str, tuple[Day, Day]] = {
    "sizes of text": ((pa.string(), ["a"]), (pa.large_string(), ["b"])),
    "views of text": ((pa.string(), ["a"]), (pa.string_view(), ["b"])),
    "views of bytes": ((pa.large_binary(), [b"a"]), (pa.binary_view(), [b"b"])),
    "sizes of integers": ((pa.int32(), [-1]), (pa.int64(), [2])),
    "signs of integers": ((pa.int32(), [-1]), (pa.uint32(), [2**31 - 1])),
    "units of time": ((pa.timestamp("ms"), [NOON]), (pa.timestamp("us"), [NOON])),
    "time zones": ((pa.timestamp("us", "Europe/Berlin"), [NOON]), (pa.timestamp("ms", "UTC"), [NOON])),
    "two other time zones": ((pa.timestamp("us", "Europe/Berlin"), [NOON]), (pa.timestamp("us", "+05:30"), [NOON])),
    "days and times": ((pa.date32(), [datetime.date(9999, 12, 31)]), (pa.timestamp("us"), [NOON])),
    "precisions of decimals": (
        (pa.decimal128(10, 2), [decimal.Decimal("1.25")]),
        (pa.decimal128(12, 2), [decimal.Decimal("-7.50")]),
    ),
    "scales of decimals": (
        (pa.decimal128(10, 2), [decimal.Decimal("99999999.99")]),
        (pa.decimal128(10, 6), [decimal.Decimal("9999.999900")]),
    ),
    "decimals and integers": ((pa.decimal128(10, 2), [decimal.Decimal("1.25")]), (pa.int64(), [5])),
    "widths of decimals": (
        (pa.decimal128(38, 2), [decimal.Decimal("1.25")]),
        (pa.decimal256(50, 2), [decimal.Decimal("2.50")]),
    ),
    "categories and text": ((pa.dictionary(pa.int8(), pa.string()), ["a"]), (pa.large_string(), ["b"])),
    "categories in order or not": (
        (pa.dictionary(pa.int8(), pa.string(), True), ["a"]),
        (pa.dictionary(pa.int16(), pa.string()), ["b"]),
    ),
    "nothing and numbers": ((pa.null(), [None]), (pa.float64(), [1.5])),
    "nothing and structs": ((pa.null(), [None]), (pa.struct({"a": pa.int8()}), [{"a": 1}])),
    "whole and other numbers": ((pa.int64(), [2**53]), (pa.float64(), [1.0])),
    "sizes of floats": ((pa.float32(), [0.5]), (pa.float64(), [0.25])),
    "units of durations": (
        (pa.duration("s"), [datetime.timedelta(days=1)]),
        (pa.duration("us"), [datetime.timedelta(hours=1)]),
    ),
    "times of day": ((pa.time32("ms"), [datetime.time(1)]), (pa.time64("us"), [datetime.time(2)])),
    "kinds of lists": ((pa.list_(pa.int32()), [[1]]), (pa.large_list(pa.int64()), [[2, None]])),
    "sizes of lists": ((pa.list_(pa.int32(), 1), [[1]]), (pa.list_(pa.int32(), 2), [[2, 3]])),
    "inside of lists": (
        (pa.list_(pa.timestamp("us", "UTC")), [[NOON]]),
        (pa.list_(pa.timestamp("us", "Asia/Tokyo")), [[NOON]]),
    ),
    "inside of structs": (
        (pa.struct({"a": pa.string(), "b": pa.decimal128(9, 1)}), [{"a": "x", "b": decimal.Decimal("0.5")}]),
        (pa.struct({"a": pa.string_view(), "b": pa.int8()}), [{"a": "y", "b": 2}]),
    ),
    "inside of maps": (
        (pa.map_(pa.string(), pa.int8()), [[("a", 1)]]),
        (pa.map_(pa.string(), pa.int64()), [[("b", 2)]]),
    ),
    "text and bytes": ((pa.string(), ["a"]), (pa.binary(), [b"b"])),
}


def plain(value: Any) -> Any:
    """A value so that equal ones of different types are equal in Python too, moments by their time in UTC."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


ONE_WAY = {  # what the type of the first day, the first or else the second of the two, cannot hold on the next
    ("signs of integers", True),
    ("days and times", False),
    ("scales of decimals", False),
    ("scales of decimals", True),
    ("decimals and integers", True),
    ("nothing and numbers", False),
    ("nothing and structs", False),
    ("sizes of floats", False),
    ("sizes of lists", False),
    ("sizes of lists", True),
    ("inside of structs", True),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_equal_values_of_two_types(tmp_path: Path, name: str, turned: bool) -> None:
    days = [*SAME[name]][:: -1 if turned else 1]
    for number, (kind, values) in enumerate(days):
        put(tmp_path / f"{number}.parquet", kind, values)
    expected = [
        plain(value) for number in (0, 1) for value in pq.read_table(tmp_path / f"{number}.parquet")["v"].to_pylist()
    ]
    settings = ReadSettings(path=str(tmp_path))
    values, rejects = values_and_rejects(settings, plan_splits(settings))
    assert ([plain(value) for value in values], rejects) == (expected, [])
    # The first day had one of the two, the second day brings the other.
    first = plan_splits(ReadSettings(path=str(tmp_path / "0.parquet")))[0].schema
    try:
        splits, _ = plan_increment(settings, [], first, covered={})
    except Misfit:
        if (name, turned) in ONE_WAY:
            return
        raise
    values, rejects = values_and_rejects(settings, splits)
    if (name, turned) in ONE_WAY:
        expected.pop()
        assert len(rejects) == 1
    assert [plain(value) for value in values] == expected


LOSSY: dict[str, tuple[Day, Day, int]] = {
    "an integer beyond a double": ((pa.int64(), [1, 2**53 + 1]), (pa.float64(), [0.5]), 1),
    "an integer beyond an int64": ((pa.int64(), [1]), (pa.uint64(), [2**63]), 1),
    "a date beyond nanoseconds": ((pa.date32(), [datetime.date(9999, 12, 31)]), (pa.timestamp("ns"), [NOON]), 1),
    "a time beyond nanoseconds": (
        (pa.timestamp("us"), [NOON, datetime.datetime(1, 1, 1)]),
        (pa.timestamp("ns"), [NOON]),
        1,
    ),
    "an integer beyond a half": ((pa.int8(), [1]), (pa.float16(), [1.5]), 0),
    "beside other values": ((pa.list_(pa.int64()), [[1], [1, 2**60], None, []]), (pa.list_(pa.float64()), [[0.5]]), 1),
    "inside of structs": (
        (pa.struct({"a": pa.int64(), "b": pa.float64()}), [{"a": 2**60 + 1, "b": 1.0}, {"a": 1, "b": 2.0}]),
        (pa.struct({"a": pa.float64()}), [{"a": 1.0}]),
        1,
    ),
}


@pytest.mark.parametrize("name", LOSSY)
def test_values_that_do_not_fit_are_set_aside_by_name(tmp_path: Path, name: str) -> None:
    one, other, lost = LOSSY[name]
    put(tmp_path / "0.parquet", *one)
    put(tmp_path / "1.parquet", *other)
    settings = ReadSettings(path=str(tmp_path))
    values, rejects = values_and_rejects(settings, plan_splits(settings))
    assert len(rejects) == lost
    assert len(values) == len(one[1]) + len(other[1]) - lost
    assert all("column 'v'" in reason and "types`" in reason for reason in rejects)
    given = [plain(value) for kind, values in (one, other) for value in pa.array(values, kind).to_pylist()]
    given += [{"a": 1.0, "b": None}]
    assert all(
        {"b": None, **value} in given if isinstance(value, dict) else value in given for value in map(plain, values)
    )


LATER: dict[str, tuple[Day, Day, int]] = {
    "numbers of which one is not whole": ((pa.int64(), [1]), (pa.float64(), [2.0, 2.5, math.nan]), 2),
    "numbers too large": ((pa.int8(), [1]), (pa.int64(), [2, 128]), 1),
    "times that are no days": ((pa.date32(), [datetime.date(2024, 1, 1)]), (pa.timestamp("us"), [NOON]), 1),
    "digits": ((pa.decimal128(5, 1), [decimal.Decimal("1.5")]), (pa.decimal128(9, 4), [decimal.Decimal("1.25")]), 1),
    "nanoseconds": ((pa.timestamp("us"), [NOON]), (pa.timestamp("ns"), [1, 1000]), 1),
    "bytes that are no text": ((pa.string(), ["a"]), (pa.binary(), [b"b", b"\xff"]), 1),
    "lists of another size": ((pa.list_(pa.int8(), 2), [[1, 2]]), (pa.list_(pa.int8()), [[1, 2], [3]]), 1),
}


@pytest.mark.parametrize("name", LATER)
def test_on_a_later_day_values_that_do_not_fit_are_set_aside_by_name(tmp_path: Path, name: str) -> None:
    one, other, lost = LATER[name]
    put(tmp_path / "0.parquet", *one)
    settings = ReadSettings(path=str(tmp_path))
    schema = plan_splits(settings)[0].schema
    put(tmp_path / "1.parquet", *other)
    splits, _ = plan_increment(settings, [], schema, covered={})
    assert {read_schema(split) for split in splits} == {pa.ipc.read_schema(pa.py_buffer(schema))}
    values, rejects = values_and_rejects(settings, splits)
    assert len(rejects) == lost
    assert len(values) == len(one[1]) + len(other[1]) - lost
    assert all("column 'v'" in reason for reason in rejects)


REFUSED: dict[str, tuple[Day, Day]] = {
    "lists and their views": ((pa.list_(pa.int32()), [[1]]), (pa.list_view(pa.int32()), [[2, 3]])),
    "clock times and moments": ((pa.timestamp("us"), [NOON]), (pa.timestamp("us", "UTC"), [NOON])),
    "days and moments": ((pa.date32(), [datetime.date(2024, 1, 1)]), (pa.timestamp("us", "UTC"), [NOON])),
    "decimals and floats": ((pa.decimal128(9, 2), [decimal.Decimal("0.10")]), (pa.float64(), [0.1])),
    "decimals and halves": ((pa.decimal128(9, 2), [decimal.Decimal("0.10")]), (pa.float16(), [0.5])),
    "numbers and text": ((pa.int64(), [1]), (pa.string(), ["1"])),
    "truth and numbers": ((pa.bool_(), [True]), (pa.int8(), [1])),
    "lists and structs": ((pa.list_(pa.int8()), [[1]]), (pa.struct({"a": pa.int8()}), [{"a": 1}])),
    "too many digits": ((pa.decimal256(76, 0), [decimal.Decimal(1)]), (pa.decimal256(76, 70), [decimal.Decimal(1)])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_types_with_other_meanings_are_refused(tmp_path: Path, name: str) -> None:
    for number, (kind, values) in enumerate(REFUSED[name]):
        put(tmp_path / f"{number}.parquet", kind, values)
    settings = ReadSettings(path=str(tmp_path))
    with pytest.raises(InputError, match=r"column 'v' is .* in .*0\.parquet' but .* in .*1\.parquet'; .*types`"):
        plan_splits(settings)
    first = plan_splits(ReadSettings(path=str(tmp_path / "0.parquet")))[0].schema
    with pytest.raises(Misfit, match=r"column 'v' is .* in the output, but .* in .*1\.parquet'.*types`"):
        plan_increment(settings, [], first, covered={})


def test_what_a_later_file_would_lose_is_refused(tmp_path: Path) -> None:
    for one, other in (
        (pa.float32(), pa.float64()),  # nearly every value is another one in a smaller float
        (pa.struct({"a": pa.int8()}), pa.struct({"a": pa.int8(), "b": pa.int8()})),
        (pa.list_(pa.struct({"a": pa.int8()})), pa.list_(pa.struct({"b": pa.int8()}))),
    ):
        put(tmp_path / "0.parquet", one, [None])
        put(tmp_path / "1.parquet", other, [None])
        settings = ReadSettings(path=str(tmp_path))
        assert len(values_and_rejects(settings, plan_splits(settings))[0]) == 2
        first = plan_splits(ReadSettings(path=str(tmp_path / "0.parquet")))[0].schema
        with pytest.raises(Misfit, match=r"column 'v' is"):
            plan_increment(settings, [], first, covered={})


SMALL = pa.scalar(0.1, pa.float32()).as_py()
ASKED: dict[str, tuple[pa.DataType, list[Any], pa.DataType, list[Any], int]] = {
    "a day of a time": (
        pa.timestamp("us"),
        [NOON, datetime.datetime(2024, 1, 1)],
        pa.date32(),
        [datetime.date(2024, 1, 1)],
        1,
    ),
    "a decimal of a float": (pa.float64(), [0.1, 0.125], pa.decimal128(5, 2), [decimal.Decimal("0.10")], 1),
    "a float of a decimal": (
        pa.decimal128(38, 20),
        [decimal.Decimal("0.1"), decimal.Decimal("3.3"), decimal.Decimal("0.12345678901234567891")],
        pa.float64(),
        [0.1, 3.3],
        1,
    ),
    "truth of a number": (pa.int64(), [7, 1, 0], pa.bool_(), [True, False], 1),
    "truth of a float": (pa.float64(), [0.5, 1.0, math.nan, 0.0], pa.bool_(), [True, False], 2),
    "truth in lists": (pa.list_(pa.int8()), [[1, 0], [1, 2]], pa.list_(pa.bool_()), [[True, False]], 1),
    "a small float of a text": (pa.string(), ["123456789", "16777216", "0.1"], pa.float32(), [2.0**24, SMALL], 1),
    "a half of a text": (pa.large_string(), ["2049", "2048"], pa.float16(), [2048.0], 1),
    "a double of a category": (
        pa.dictionary(pa.int8(), pa.string()),
        ["9007199254740993", "7"],
        pa.float64(),
        [7.0],
        1,
    ),
    "fields of a struct": (
        pa.struct({"a": pa.int8()}),
        [{"a": 1}, {"a": 2}],
        pa.struct({"a": pa.bool_()}),
        [{"a": True}],
        1,
    ),
    "a smaller float": (pa.float64(), [0.1, 1e300], pa.float32(), [pa.scalar(0.1, pa.float32()).as_py()], 1),
    "text of a number": (pa.int64(), [7], pa.string(), ["7"], 0),
    "a number of a text": (pa.string(), ["7", "x"], pa.int64(), [7], 1),
    "moments of clock times": (pa.timestamp("us"), [NOON], pa.timestamp("us", "UTC"), [NOON.replace(tzinfo=UTC)], 0),
}


@pytest.mark.parametrize("name", ASKED)
def test_types_that_are_asked_for(tmp_path: Path, name: str) -> None:
    kind, given, asked, expected, lost = ASKED[name]
    put(tmp_path / "0.parquet", kind, given)
    settings = ReadSettings(path=str(tmp_path), types={"v": asked})
    values, rejects = values_and_rejects(settings, plan_splits(settings))
    assert values == expected
    assert len(rejects) == lost
    assert all("column 'v' does not fit" in reason for reason in rejects)


def test_types_that_cannot_be_read_are_refused_before_anything_is(tmp_path: Path) -> None:
    put(tmp_path / "0.parquet", pa.timestamp("us"), [NOON])
    for kind in (pa.timestamp("us", "Europe/Berlin"), pa.list_(pa.int8()), pa.bool_()):
        with pytest.raises(
            InputError, match=r"column 'v' of .*0\.parquet' is timestamp\[us\], which cannot be read as"
        ):
            plan_splits(ReadSettings(path=str(tmp_path), types={"v": kind}))


STRUCT = pa.struct({"a": pa.int8(), "b": pa.timestamp("us")})


@pytest.mark.parametrize(
    ("kind", "value", "asked"),
    [
        (pa.timestamp("us"), NOON, pa.time64("us")),  # without its day
        (pa.timestamp("ms", "UTC"), NOON, pa.time32("ms")),
        (pa.list_(pa.timestamp("us")), [NOON], pa.list_(pa.time64("us"))),
        (STRUCT, {"a": 1, "b": NOON}, pa.struct({"a": pa.int8()})),  # without one of its fields
        (STRUCT, {"a": 1, "b": NOON}, pa.struct({"a": pa.int8(), "b": pa.timestamp("us", "Asia/Tokyo")})),
        (pa.list_(STRUCT), [{"a": 1, "b": NOON}], pa.large_list(pa.struct({"b": pa.timestamp("us")}))),
        (pa.map_(pa.string(), STRUCT), [("k", {"a": 1, "b": NOON})], pa.map_(pa.string(), pa.struct({"a": pa.int8()}))),
    ],
)
def test_types_that_would_drop_a_part_are_refused(tmp_path: Path, kind: Any, value: Any, asked: Any) -> None:
    put(tmp_path / "0.parquet", kind, [value])
    with pytest.raises(InputError, match=r"column 'v' of .*0\.parquet' is .*, which cannot be read as"):
        plan_splits(ReadSettings(path=str(tmp_path), types={"v": asked}))


def test_times_of_day_are_of_the_first_day_or_none() -> None:
    moments = pa.array([NOON, datetime.datetime(1970, 1, 1, 10, 0, 0, 5), None], pa.timestamp("us"))
    found, lost = fit(moments, pa.time64("us"))
    assert (found.to_pylist(), lost) == ([None, datetime.time(10, 0, 0, 5), None], [0])


def test_categories_are_held_to_what_their_values_are() -> None:
    numbers = pa.array([1, 7, 1]).dictionary_encode()
    found, lost = fit(numbers, pa.bool_())
    assert (found.to_pylist(), lost) == ([True, None, True], [1])
    found, lost = fit(pa.array(["a", None]).dictionary_encode(), pa.null())
    assert lost == [0]


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_every_integer_fits_the_decimal_that_is_chosen_for_it(size: int) -> None:
    for name, value in ((f"int{size}", -(2 ** (size - 1))), (f"uint{size}", 2**size - 1)):
        kind = getattr(pa, name)()
        chosen = common_type(kind, pa.decimal128(9, 4))
        assert pa.array([value], kind).cast(chosen).to_pylist() == [value]
