"""Reading from a real S3 server through s3fs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from moto.server import ThreadedMotoServer

from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.errors import InputError
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.storage import filesystems

ROWS = [{"text": f"text {n} ü", "n": n} for n in range(2000)]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket with the same rows in many formats."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    folder = tmp_path_factory.mktemp("parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "d.parquet", row_group_size=500)
    for key, data in {
        "formats/d.jsonl": lines,
        "formats/d.jsonl.gz": pa.compress(lines, "gzip", asbytes=True),
        "formats/d.jsonl.zst": pa.compress(lines, "zstd", asbytes=True),
        "formats/d.csv": b"text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in ROWS).encode(),
        "formats/d.parquet": (folder / "d.parquet").read_bytes(),
        "hive/": b"",
        "hive/lang=en/": b"",
        "hive/lang=en/a.jsonl": lines,
        "hive/lang=de/b.jsonl": lines,
        "hive/_distilbeam/c.jsonl": lines,
    }.items():
        client.put_object(Bucket="corpus", Key=key, Body=data)
    yield "s3://corpus"
    patch.undo()
    server.stop()


@pytest.mark.parametrize("split_bytes", [5000, 8 << 20])
@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.csv", "d.parquet"])
def test_every_format(bucket: str, read: Any, name: str, split_bytes: int) -> None:
    found = read(f"{bucket}/formats/{name}", split_bytes=split_bytes, types={"n": "int64"})
    assert found.rows == ROWS
    assert {source for source, _ in found.positions} == {f"{bucket}/formats/{name}"}


def test_folders_and_globs(bucket: str, read: Any) -> None:
    found = read(f"{bucket}/hive")
    assert [row["lang"] for row in found.rows] == ["de"] * 2000 + ["en"] * 2000
    assert read(f"{bucket}/hive/lang=*/*.jsonl").rows == found.rows
    with pytest.raises(InputError, match=r"no file matches 's3://corpus/nothing/\*\.jsonl'"):
        read(f"{bucket}/nothing/*.jsonl")
    with pytest.raises(InputError, match=r"s3://elsewhere/x\.jsonl"):
        read("s3://elsewhere/x.jsonl")


def test_a_pipeline(bucket: str) -> None:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        batches = pipeline | ReadDocuments(f"{bucket}/formats/d.jsonl", split_bytes=10_000)
        texts = batches | beam.FlatMap(lambda batch: batch["text"].to_pylist())
        assert_that(texts, equal_to([row["text"] for row in ROWS]), "texts")
        sources = batches | beam.Map(lambda batch: Provenance.of(batch).source) | beam.Distinct()
        assert_that(sources, equal_to([f"{bucket}/formats/d.jsonl"]), "sources")


def test_a_replaced_object_is_noticed_though_listings_are_cached(bucket: str, tmp_path: Path) -> None:
    from distilbeam.transforms.input.planning import plan_splits
    from distilbeam.transforms.input.read_settings import ReadSettings
    from distilbeam.transforms.input.reading import read_split

    client = boto3.client("s3")
    client.put_object(Bucket="corpus", Key="changing/a.jsonl", Body=b'{"text": "old"}\n')
    settings = ReadSettings(path=f"{bucket}/changing")
    (split,) = plan_splits(settings)
    client.put_object(Bucket="corpus", Key="changing/a.jsonl", Body=b'{"text": "new"}\n')
    with pytest.raises(InputError, match="changed"):
        list(read_split(split, settings))
    (again,) = plan_splits(settings)
    assert again.id != split.id


def test_files_are_written_moved_and_deleted(bucket: str) -> None:
    url = filesystems.join(bucket, "out", "a b.bin")
    filesystems.write_bytes(url, b"one")
    assert filesystems.read_bytes(url) == b"one"
    filesystems.write_bytes(url, b"three")
    assert filesystems.read_bytes(url) == b"three"
    with filesystems.create(filesystems.join(bucket, "out", "deep", "big")) as stream:
        stream.write(b"x" * 6_000_000)
    infos = filesystems.list_files(filesystems.join(bucket, "out"))
    assert [(info.url, info.size) for info in infos] == [(url, 5), ("s3://corpus/out/deep/big", 6_000_000)]
    assert infos[0] == filesystems.file_info(url)
    filesystems.move(url, filesystems.join(bucket, "out", "c"))
    assert not filesystems.exists(url)
    assert filesystems.read_bytes("s3://corpus/out/c") == b"three"
    filesystems.delete("s3://corpus/out")
    assert filesystems.list_files("s3://corpus/out") == []
    filesystems.delete("s3://corpus/out")
