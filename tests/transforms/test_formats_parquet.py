"""Row ranges against a count by hand; wide files are looked through once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.input import decoding


class Counted(list[str]):
    """Columns that count how often somebody goes through them."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()

    def __contains__(self, name: object) -> bool:
        self.times += 1
        return super().__contains__(name)


@pytest.fixture
def nested(tmp_path: Path) -> str:
    table = pa.table(
        {
            "text": ["some text"] * 100,
            "a": [{"b": n, "c": [{"d": str(n)}]} for n in range(100)],
            "a.b": [float(n) for n in range(100)],
            "ab": ["x" * n for n in range(100)],
        }
    )
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=30)
    return str(tmp_path / "d.parquet")


@pytest.mark.parametrize("columns", [["text"], ["a"], ["a.b"], ["ab", "text"], ["a", "ab", "text", "a.b"], []])
def test_ranges_count_the_bytes_of_the_wanted_columns(nested: str, columns: list[str]) -> None:
    metadata = pq.read_metadata(nested)
    sizes = []
    for index in range(4):
        chunks = [metadata.row_group(index).column(leaf) for leaf in range(metadata.num_columns)]
        # "a.b" is a leaf of column "a" as well as a column, and the footer's paths do not tell one from the other.
        wanted = [c for c in chunks if any(f"{c.path_in_schema}.".startswith(f"{name}.") for name in columns)]
        sizes.append(sum(chunk.total_uncompressed_size for chunk in wanted))
    assert decoding.ranges(metadata, columns, 1 << 30) == [(0, 100, sum(sizes))]
    each = decoding.ranges(metadata, columns, max(sum(sizes) // 7, 1))
    assert [start for start, _, _ in each] == [0, *(stop for _, stop, _ in each[:-1])]
    assert each[-1][1] == 100
    assert len(each) > 4 or not columns


def test_ranges_go_through_the_columns_once(nested: str) -> None:
    columns = Counted(["text", "a"])
    decoding.ranges(pq.read_metadata(nested), columns, 1000)
    assert columns.times <= 1


def test_the_schema_of_a_wide_file_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({f"c{n}": [n] for n in range(50)})
    pq.write_table(table, tmp_path / "d.parquet")
    true = pq.ParquetFile.schema_arrow
    calls = []
    monkeypatch.setattr(pq.ParquetFile, "schema_arrow", property(lambda self: calls.append(1) or true.fget(self)))
    rows: list[pa.RecordBatch] = []
    with pq.ParquetFile(tmp_path / "d.parquet") as file:
        decoding.read_rows(file, 0, None, table.schema.names, batch_rows=10, batch_bytes=1 << 20, send=rows.append)
    assert pa.Table.from_batches(rows).equals(table)
    assert len(calls) < 5
