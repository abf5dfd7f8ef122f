#!/usr/bin/env bash
# Conversions of pyarrow that are not what their names and "safe" promise.
#
# Versions: pyarrow 25.0.1, CPython 3.11, Linux x86-64.
#
# Guess before looking: a safe cast raises where a value changes; a cast of an array to its own type changes nothing; an
# array that a cast gives is valid; decimal to double gives the double nearest to the decimal; int64 can be cast to the
# type that unify_schemas(promote_options="permissive") finds for int64 and a decimal.
#
# Seen:
#   1. decimal128(38, 2) 3.30 -> double is 3.3000000000000003, though float("3.30") is 3.3
#   2. timestamp[us] 1970-01-01 12:00 -> date32 drops the time without an error, though cast is safe by default
#   3. list_view<int32> [[2, 3]] -> list<int32> gives an array whose offsets end before its only list does (validate fails)
#   4. Table.cast to its own schema raises ArrowInvalid for list<null> [[None, None]], which Array.validate finds valid
#   5. int64 + decimal128(10, 2) unify to decimal128(20, 2), to which no int64 can be cast, not even 5
#
# The script fails as soon as one of these is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==25.0.1
"$folder/venv/bin/python" - <<'PYTHON'
from decimal import Decimal

import pyarrow as pa


def raises(call):
    try:
        call()
    except pa.ArrowInvalid as error:
        return str(error)
    raise SystemExit("no error where one was seen")


double = pa.array([Decimal("3.30")], pa.decimal128(38, 2)).cast(pa.float64())[0].as_py()
print("1.", double)
assert double != float("3.30")

noon = pa.array([12 * 3600 * 10**6]).cast(pa.timestamp("us"))
day = noon.cast(pa.date32())
print("2.", noon[0].as_py(), "->", day[0].as_py())
assert day.cast(pa.timestamp("us")) != noon

lists = pa.array([[2, 3]], pa.list_view(pa.int32())).cast(pa.list_(pa.int32()))
print("3.", raises(lists.validate))

table = pa.table({"v": pa.array([[None, None]], pa.list_(pa.null()))})
table.validate(full=True)
print("4.", raises(lambda: table.cast(table.schema)))

fields = [pa.schema([("v", kind)]) for kind in (pa.int64(), pa.decimal128(10, 2))]
both = pa.unify_schemas(fields, promote_options="permissive").field("v").type
print("5.", both, raises(lambda: pa.array([5]).cast(both)))
PYTHON
