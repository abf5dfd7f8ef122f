"""Names of types: read back as Arrow writes them, and wrong ones told where they are wrong."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilbeam.transforms.errors import SettingsError
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.type_names import TypeNameError, parse_type

PLAIN = [pa.null(), pa.bool_(), pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
PLAIN += [pa.binary_view(), pa.date32(), pa.date64(), pa.float16(), pa.float32(), pa.float64(), pa.binary(16)]
PLAIN += [getattr(pa, f"{sign}int{size}")() for sign in ("", "u") for size in (8, 16, 32, 64)]
PLAIN += [pa.time32(unit) for unit in ("s", "ms")] + [pa.time64(unit) for unit in ("us", "ns")]
PLAIN += [pa.timestamp(unit, zone) for unit in ("s", "us") for zone in (None, "UTC", "Europe/Berlin", "+05:30")]
PLAIN += [pa.duration(unit) for unit in ("s", "ms", "us", "ns")] + [pa.month_day_nano_interval()]
PLAIN += [pa.decimal32(9, 2), pa.decimal64(18, 0), pa.decimal128(38, 10), pa.decimal128(5, -2), pa.decimal256(76, 76)]
PLAIN += [pa.uuid(), pa.json_(), pa.bool8()]
NAMES = st.one_of(st.sampled_from(["a", "b c", "größe", "a.b", "Ünïcode", "$x", "item, of", "x[0]", "(y)"]))


def fields(kinds: st.SearchStrategy[pa.DataType], name: str | None = None) -> st.SearchStrategy[pa.Field]:
    names = NAMES if name is None else st.sampled_from([name, "element"])
    return st.builds(
        lambda name, kind, nullable: pa.field(name, kind, nullable or pa.types.is_null(kind)),
        names,
        kinds,
        st.booleans(),
    )


def nested(kinds: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    items, keys = fields(kinds, "item"), kinds.filter(lambda kind: not pa.types.is_null(kind))
    return st.one_of(
        *[items.map(make) for make in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)],
        st.builds(pa.list_, items, st.integers(0, 9)),
        st.lists(fields(kinds), max_size=3).map(pa.struct),
        st.builds(lambda key, item, ordered: pa.map_(key, item, keys_sorted=ordered), keys, kinds, st.booleans()),
        st.builds(pa.dictionary, st.sampled_from([pa.int8(), pa.uint32(), pa.int64()]), kinds, st.booleans()),
        st.builds(pa.run_end_encoded, st.sampled_from([pa.int16(), pa.int32()]), kinds),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.sampled_from(PLAIN), nested, max_leaves=6))
def test_what_arrow_shows_is_read_back(kind: pa.DataType) -> None:
    assert parse_type(str(kind)) == kind
    assert str(parse_type(str(kind))) == str(kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("list<string>", pa.list_(pa.string())),
        (" list < element : int64 not null > ", pa.list_(pa.field("element", pa.int64(), False))),
        ("struct<>", pa.struct([])),
        ("struct<a:int64,b:list<string>>", pa.struct({"a": pa.int64(), "b": pa.list_(pa.string())})),
        ("decimal128(10,2)", pa.decimal128(10, 2)),
        ("decimal128(10)", pa.decimal128(10, 0)),
        ("timestamp[us,tz=UTC]", pa.timestamp("us", "UTC")),
        ("map<string, int64 ('c')>", pa.map_(pa.string(), pa.int64())),
        ("dictionary<string>", pa.dictionary(pa.int32(), pa.string())),
        ("dictionary<values=string, indices=int8>", pa.dictionary(pa.int8(), pa.string())),
        ("float64", pa.float64()),
        ("utf8", pa.string()),
        ("date32", pa.date32()),
        ("fixed_size_list<float>[3]", pa.list_(pa.float32(), 3)),
    ],
)
def test_short_forms(name: str, kind: pa.DataType) -> None:
    assert parse_type(name) == kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "at position 1 there is 'the end' where there must be the name of a type, one of bool"),
        ("number", "at position 1 there is 'number'"),
        ("int64 x", "at position 7 there is 'x' where there must be the end"),
        ("list<string", "at position 12 there is 'the end' where there must be '>'"),
        ("map<null, int8>", "the keys of a map cannot be null"),
        ("list<null not null>", "the field 'item' of nulls cannot be not null"),
        ("list<nothing>", "at position 6 there is 'nothing>'"),
        ("timestamp", r"at position 10 there is 'the end' where there must be \[s\], \[ms\], \[us\] or \[ns\]"),
        ("timestamp[us, Europe/Berlin]", "at position 13 .* or a time zone, such as ', tz=Europe/Berlin'"),
        ("timestamp[min]", "at position 10"),
        ("decimal128(10; 2)", r"at position 11 .* precision and scale, such as '\(10, 2\)'"),
        ("decimal128(99, 2)", "at position 11, .*38"),
        ("struct<int64>", "a name, a colon and a type"),
        ("struct<a: int64; b: string>", "at position 16 there is '; b: string>' where there must be ',' or '>'"),
        ("extension<my.type>", "'my.type' is not one of arrow.uuid, arrow.json, arrow.bool8"),
        ("dictionary<string, indices=double>", "indices of integers, not of double"),
        ("fixed_size_list<float>", r"a size, such as '\[16\]'"),
        ("list<" * 60 + "int8" + ">" * 60, "nested more than 50 deep"),
        ("dense_union<0: int64=0>", "at position 1"),
    ],
)
def test_wrong_names_are_told_where_they_are_wrong(name: str, message: str) -> None:
    with pytest.raises(TypeNameError, match=message):
        parse_type(name)
    with pytest.raises(SettingsError, match=r"`types` gives column 'x' the type"):
        ReadSettings(path="x", types={"x": name})


@settings(max_examples=300, deadline=None)
@given(st.text("abinldstructmapg0123456789<>[](),:= 'é", max_size=40))
def test_any_text_is_a_type_or_an_error(name: str) -> None:
    try:
        kind = parse_type(name)
    except TypeNameError:
        return
    assert parse_type(str(kind)) == kind
