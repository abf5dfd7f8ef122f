"""An output as other libraries open it: folder and glob of the features, with rejects, manifest and history beside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from distilbeam.pipelines.opening import features_of, opening
from distilbeam.transforms.output.commit import commit
from distilbeam.transforms.output.shards import ShardSettings
from distilbeam.transforms.provenance import ROW, Provenance
from tests.interop.opening import APART, BESIDE, Rows, open_with
from tests.interop.table import CASES, NO_GLOBS, REFUSED, WAYS, make, open_apart
from tests.plans import Plan

Made = Callable[[str], tuple[Path, Rows]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes an output of a kind of vectors, with rejects and several shards; gives it and its rows."""
    outputs: dict[str, tuple[Path, Rows]] = {}

    def give(kind: str) -> tuple[Path, Rows]:
        if kind not in outputs:
            output = tmp_path_factory.mktemp(kind) / "out"
            outputs[kind] = output, make(output, kind)
            assert any((output / "_rejects").iterdir())
        return outputs[kind]

    return give


@pytest.fixture(scope="module")
def found_apart(made: Made) -> Callable[[str], dict[str, Rows | str]]:
    """Opens all outputs with a reader in the other environment, once."""
    python = os.environ.get("DISTILBEAM_READERS")
    if not python:
        pytest.skip("DISTILBEAM_READERS names no Python with these libraries: run `make test-readers`")
    paths = [f"{made(kind)[0]}/features{WAYS[way]}" for kind in CASES for way in WAYS]
    found: dict[str, dict[str, Rows | str]] = {}

    def give(reader: str) -> dict[str, Rows | str]:
        if reader not in found:
            _, found[reader] = open_apart(python, reader, paths)
        return found[reader]

    return give


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("reader", BESIDE)
def test_readers(made: Made, reader: str, kind: str, way: str) -> None:
    output, expected = made(kind)
    if way == "glob" and reader in NO_GLOBS:
        with pytest.raises(FileNotFoundError):
            open_with(reader, f"{output}/features{WAYS[way]}")
        return
    assert open_with(reader, f"{output}/features{WAYS[way]}") == expected


@pytest.mark.readers
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("reader", APART)
def test_readers_with_an_environment_of_their_own(
    made: Made, found_apart: Callable[[str], dict[str, Rows | str]], reader: str, kind: str, way: str
) -> None:
    output, expected = made(kind)
    rows = found_apart(reader)[f"{output}/features{WAYS[way]}"]
    if isinstance(rows, str) and "JAVA" in rows:
        pytest.skip("Spark found no Java 17")
    if (reader, kind) in REFUSED:
        assert isinstance(rows, str), "it opens now; say so in help and documents"
        assert "FLOAT16" in rows
    else:
        assert rows == expected


@pytest.mark.parametrize("reader", ["pandas", "pyarrow"])
def test_the_output_itself_where_a_reader_skips_underscores(made: Made, reader: str) -> None:
    output, expected = made("float32")
    assert open_with(reader, str(output)) == expected


@pytest.mark.parametrize("nulls", [False, True])
def test_beams_own_reader_gives_rows(tmp_path: Path, nulls: bool) -> None:
    plan = Plan(nulls=nulls)
    # Without the columns of the user's that Beam's schemas do not know: times, decimals and categories.
    names = ["id", "text", ROW, "embedding", "label", "score", "token_count", "truncated"]
    plan.batches = [[Provenance.of(batch).attach(batch.select(names)) for batch in split] for split in plan.batches]
    commit(str(tmp_path), plan.write_all(tmp_path, ShardSettings(vector_type="list")))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        read = beam.io.ReadFromParquet(f"{tmp_path}/features/*.parquet", as_rows=True)
        rows = pipeline | read | beam.Map(lambda row: (row.id, row.embedding and list(row.embedding)))
        assert_that(rows, equal_to([(row["id"], row["embedding"]) for row in plan.rows]))


def test_elements_are_not_null(made: Made) -> None:
    """As ClickHouse's distances need them."""
    for kind in CASES:
        output, _ = made(kind)
        for path in (output / "features").iterdir():
            field = pq.read_schema(path).field("embedding")
            assert not field.type.value_field.nullable
            assert field.nullable


def test_the_calls_that_are_shown_work(made: Made) -> None:
    import dask.dataframe
    import duckdb
    import pandas
    import polars
    import pyarrow.parquet

    output, expected = made("float32")
    known = {"pandas": pandas, "polars": polars, "pyarrow": pyarrow, "dask": dask}
    for reader, call in opening(str(output), "parquet").items():
        if reader in ("Spark", "datasets"):  # the one is elsewhere; the other fills a cache at home
            continue
        if reader == "DuckDB":
            assert len(duckdb.sql(call).fetchall()) == len(expected)
        else:
            assert len(eval(call, known)) == len(expected), reader
    assert features_of(str(output)) == f"{output}/features"
    assert len(pd.read_parquet(output)) == pl.read_parquet(output / "features").height
