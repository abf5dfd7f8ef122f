"""The same rows give the same features, whatever they are stored in and wherever they lie."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

ROWS = [
    {"id": f"r{number}", "text": text}
    for number, text in enumerate(
        [
            "",
            " ",
            'a "quoted", comma and \\ backslash',
            "naïve café, 北京 🙂",
            "[SEP] is text",
            *(f"review {number} is {'good ' * (number % 40)}" for number in range(300)),
        ]
    )
]


def write(folder: Path, kind: str) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    match kind:
        case "parquet":
            path = folder / "rows.parquet"
            pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=70)
        case "jsonl":
            path = folder / "rows.jsonl"
            path.write_text(lines)
        case "jsonl.gz":
            path = folder / "rows.jsonl.gz"
            path.write_bytes(gzip.compress(lines.encode()))
        case "jsonl.zst":
            path = folder / "rows.jsonl.zst"
            path.write_bytes(pa.Codec("zstd").compress(lines.encode(), asbytes=True))
        case _:
            path = folder / "rows.csv"
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["id", "text"], quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(ROWS)
    return path


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


KINDS = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "csv"]


def vectors(found: pa.Table) -> np.ndarray:
    return np.stack(found.column("embedding").to_numpy())


def test_every_format_gives_the_same_features(tmp_path: Path, tiny: str, distilbeam: Callable[..., Any]) -> None:
    tables = []
    for kind in KINDS:
        output = tmp_path / f"out-{kind}"
        distilbeam("embed", "--model", tiny, "--input", write(tmp_path, kind), "--output", output, "--dtype", "float32")
        tables.append(ds.dataset(str(output)).to_table())
    for found in tables:
        assert found.column("id").to_pylist() == [row["id"] for row in ROWS]
        assert found.column("text").to_pylist() == [row["text"] for row in ROWS]
        assert found.column("token_count") == tables[0].column("token_count")
        # Other splits make other micro-batches, so the last bits may differ.
        np.testing.assert_allclose(vectors(found), vectors(tables[0]), atol=1e-5)


@pytest.mark.slow
def test_s3_gives_the_same_features_as_the_local_disk(
    tmp_path: Path, tiny: str, distilbeam: Callable[..., Any], s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    from s3fs import S3FileSystem

    # Another test may have left one with another server.
    S3FileSystem.clear_instance_cache()
    store = S3FileSystem()
    store.mkdir("lake")
    local = tmp_path / "local"
    distilbeam("embed", "--model", tiny, "--input", write(tmp_path, "parquet"), "--output", local, "--dtype", "float32")
    expected = ds.dataset(str(local)).to_table()
    for kind in KINDS:
        store.put_file(str(write(tmp_path, kind)), f"lake/in/{kind}/rows.{kind}")
        output = f"s3://lake/out-{kind}"
        distilbeam(
            *("embed", "--model", tiny, "--input", f"s3://lake/in/{kind}", "--output", output, "--dtype", "float32")
        )
        found = ds.dataset(f"lake/out-{kind}", filesystem=store, format="parquet").to_table()
        assert found.column("id") == expected.column("id")
        np.testing.assert_allclose(vectors(found), vectors(expected), atol=1e-5)
        assert store.exists(f"lake/out-{kind}/_distilbeam/manifest.json")
        assert not store.find(f"lake/out-{kind}/_distilbeam/staging")
