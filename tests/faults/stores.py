"""Folders that tests look into without the code under test: on this disk, or in a bucket of moto's S3 server."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.config import Config
from moto.server import ThreadedMotoServer

__all__ = ["S3", "Disk", "Server", "Store", "s3_server"]

BUCKET = "faults"


class Store:
    """A folder: names of the files below it, relative to it, and their bytes."""

    url: str

    def names(self) -> list[str]:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        raise NotImplementedError

    def table(self, name: str) -> pa.Table:
        """A Parquet file."""
        return pq.read_table(pa.BufferReader(self.read(name)))


@dataclass
class Disk(Store):
    """A folder on this disk."""

    path: Path

    @property
    def url(self) -> str:  # type: ignore[override]
        return str(self.path)

    def names(self) -> list[str]:
        found = []
        for folder, _, names in os.walk(self.path):  # unlike rglob it bears folders that vanish
            found += [str((Path(folder) / name).relative_to(self.path)) for name in names]
        return sorted(found)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass
class S3(Store):
    """A folder of a bucket, reached past any proxy."""

    client: Any
    prefix: str

    @property
    def url(self) -> str:  # type: ignore[override]
        return f"s3://{BUCKET}/{self.prefix}"

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix + "/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return sorted(key.removeprefix(self.prefix + "/") for key in keys)

    def read(self, name: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}")["Body"].read()
        return data

    def write(self, name: str, data: bytes) -> None:
        self.client.upload_fileobj(io.BytesIO(data), BUCKET, f"{self.prefix}/{name}")

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}")


@dataclass
class Server:
    """moto's S3 server, with one empty bucket."""

    host: str
    port: int
    client: Any

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def store(self, prefix: str) -> S3:
        return S3(self.client, prefix)

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What a process needs to reach it, through a proxy if its endpoint is given."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def s3_server() -> Iterator[Server]:
    """An S3 server in a thread of this process."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}),
        )
        client.create_bucket(Bucket=BUCKET)
        yield Server(host, port, client)
    finally:
        moto.stop()
