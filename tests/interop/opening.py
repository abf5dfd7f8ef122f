"""Openers of an output in other libraries, one a function; run as a script it opens folders with one of them.

It imports nothing of the project, so that an environment with other libraries can run it:
``python opening.py READER PATH...``.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Rows = list[tuple[int, Any]]

__all__ = ["APART", "BESIDE", "DISTRIBUTIONS", "READERS", "open_with"]


def _sorted(ids: Iterable[Any], vectors: Iterable[Any]) -> Rows:
    pairs = zip(ids, vectors, strict=True)
    rows = [(int(key), None if vector is None else [float(number) for number in vector]) for key, vector in pairs]
    return sorted(rows, key=lambda row: row[0])


def _pandas(path: str) -> Rows:
    frame = importlib.import_module("pandas").read_parquet(path)
    return _sorted(frame["id"], frame["embedding"])


def _pyarrow(path: str) -> Rows:
    table = importlib.import_module("pyarrow.parquet").read_table(path)
    return _sorted(table["id"].to_pylist(), table["embedding"].to_pylist())


def _polars(path: str) -> Rows:
    frame = importlib.import_module("polars").read_parquet(path)
    assert importlib.import_module("polars").scan_parquet(path).select("id").collect().height == frame.height
    return _sorted(frame["id"], frame["embedding"].to_list())


def _duckdb(path: str) -> Rows:
    duckdb = importlib.import_module("duckdb")
    rows = duckdb.sql(f"SELECT id, embedding FROM read_parquet('{path}')").fetchall()
    assert duckdb.sql(f"SELECT count(*) FROM read_parquet('{path}')").fetchall() == [(len(rows),)]
    return _sorted(*zip(*rows, strict=True))


def _datasets(path: str) -> Rows:
    where = {"data_files": path} if "*" in path else {"data_dir": path}
    cache = str(Path(path.partition("/features")[0]).parent / "datasets-cache")
    rows = importlib.import_module("datasets").load_dataset("parquet", split="train", cache_dir=cache, **where)
    return _sorted(rows["id"], rows["embedding"])


def _dask(path: str) -> Rows:
    frame = importlib.import_module("dask.dataframe").read_parquet(path)
    assert len(frame) == len(frame.compute())
    return _sorted(frame["id"].compute(), frame["embedding"].compute())


def _spark(path: str) -> Rows:
    session = importlib.import_module("pyspark.sql").SparkSession
    spark = session.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    frame = spark.read.parquet(path)
    rows = frame.select("id", "embedding").collect()
    assert frame.count() == len(rows)
    return _sorted(*zip(*rows, strict=True))


def _daft(path: str) -> Rows:
    rows = importlib.import_module("daft").read_parquet(path).select("id", "embedding").to_pydict()
    return _sorted(rows["id"], rows["embedding"])


def _datafusion(path: str) -> Rows:
    context = importlib.import_module("datafusion").SessionContext()
    context.register_parquet("t", path)
    table = context.sql("SELECT id, embedding FROM t").to_arrow_table()
    return _sorted(table["id"].to_pylist(), table["embedding"].to_pylist())


def _clickhouse(path: str) -> Rows:
    chdb = importlib.import_module("chdb")
    # Its arrays are never null: a null vector comes out empty, and has no distance.
    distance = "if(empty(embedding), 0, cosineDistance(embedding, embedding))"
    vector = "arrayMap(x -> toFloat64(x), embedding)"
    query = f"SELECT id, {vector} AS vector, {distance} AS distance FROM file('{path}', Parquet)"
    rows = json.loads(str(chdb.query(query, "JSON")))["data"]
    assert all(abs(row["distance"] or 0) < 1e-3 for row in rows)
    return _sorted([row["id"] for row in rows], [row["vector"] or None for row in rows])


BESIDE: dict[str, Callable[[str], Rows]] = {
    "pandas": _pandas,
    "pyarrow": _pyarrow,
    "Polars": _polars,
    "DuckDB": _duckdb,
    "datasets": _datasets,
    "Dask": _dask,
}
"""Readers that the tests' own environment has."""

APART: dict[str, Callable[[str], Rows]] = {
    "Spark": _spark,
    "Daft": _daft,
    "DataFusion": _datafusion,
    "ClickHouse": _clickhouse,
}
"""Readers that have an environment of their own."""

READERS = BESIDE | APART

DISTRIBUTIONS = {name: {"Spark": "pyspark", "ClickHouse": "chdb"}.get(name, name.lower()) for name in READERS}
"""Names of the distributions that bring them."""


def open_with(reader: str, path: str) -> Rows:
    """Ids and vectors of all rows, by id.

    Args:
        reader: a key of ``READERS``.
        path: a folder or a glob.
    """
    return READERS[reader](path)


def main(reader: str, *paths: str) -> None:
    """Prints a JSON object: version, and for each path its rows or the text of its error."""
    found: dict[str, Rows | str] = {}
    for path in paths:
        try:
            found[path] = open_with(reader, path)
        except Exception as error:
            found[path] = f"{type(error).__name__}: {error}"
    print("\n" + json.dumps({"version": version(DISTRIBUTIONS[reader]), "found": found}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
