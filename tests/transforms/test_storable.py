"""Columns of one's own in types that Parquet has not, or that Arrow cannot read back: the same values, or a name."""

from __future__ import annotations

import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import OutputError
from distilbeam.transforms.output.shards import ShardSettings, ShardWriter

PAIR = pa.list_(pa.float32(), 2)
COLUMNS = {
    "nulls in a struct": pa.array([{"v": None}, None, {"v": [1, 2]}], pa.struct([("v", PAIR)])),
    "nulls in a list": pa.array([[None, [1, 2]], None, []], pa.list_(PAIR)),
    "nulls in a map": pa.array([[("a", None)], None, [("b", [1, 2])]], pa.map_(pa.string(), PAIR)),
    "nulls in pairs of pairs": pa.array([[None, [1, 2]], [[3, 4], None]], pa.list_(PAIR, 2)),
    "lists of no items": pa.array([[], []], pa.list_(pa.int8(), 0)),
    "tensors": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), (2,)), pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    ),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"])),
    "decimals of hundreds": pa.array([decimal.Decimal("12300")], pa.decimal128(5, -2)),
    "lists of nulls": pa.array([[None, None], [None], None]),
    "seconds": pa.array([1, 2], pa.timestamp("s")),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_values_come_back(tmp_path: Path, name: str) -> None:
    batch = pa.record_batch({"n": range(len(COLUMNS[name])), "v": COLUMNS[name]})
    writer = ShardWriter(str(tmp_path), "a", batch.schema, ShardSettings())
    writer.write(batch)
    (record,) = writer.close()
    found = pq.read_table(tmp_path / record.path)["v"].to_pylist()
    assert found == [value.tolist() if hasattr(value, "tolist") else value for value in batch["v"].to_pylist()]


@pytest.mark.parametrize("kind", [pa.struct([]), pa.list_(pa.struct([])), pa.month_day_nano_interval()], ids=str)
def test_a_type_that_parquet_has_not_is_named_with_its_column(tmp_path: Path, kind: pa.DataType) -> None:
    schema = pa.schema([("good", pa.int8()), ("odd", kind)])
    with pytest.raises(OutputError, match=r"Parquet has nothing for column 'odd' of type .*`keep`"):
        ShardWriter(str(tmp_path), "a", schema, ShardSettings())
    ShardWriter(str(tmp_path), "a", schema, ShardSettings(format="jsonl"))


def test_a_column_that_arrow_does_not_convert_is_named(tmp_path: Path) -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"]).dictionary_encode())
    batch = pa.record_batch({"odd": runs})
    with pytest.raises(OutputError, match=r"Arrow cannot store column 'odd' of type run_end_encoded.*`keep`"):
        ShardWriter(str(tmp_path), "a", batch.schema, ShardSettings()).write(batch)
