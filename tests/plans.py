"""Plans of splits with invented features, as reading and inference would hand them to the writer."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from distilbeam.transforms.features import SplitWriter
from distilbeam.transforms.input.splits import Part, Split
from distilbeam.transforms.output.manifest import SplitRecord
from distilbeam.transforms.output.shards import ShardSettings
from distilbeam.transforms.provenance import ROW, Provenance, Reject

_USER = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("when", pa.timestamp("us", "UTC")),
        ("price", pa.decimal128(9, 2)),
        ("tags", pa.list_(pa.string())),
        ("place", pa.struct([("city", pa.string()), ("height", pa.float64())])),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        (ROW, pa.int64()),
        ("secret", pa.string()),
    ],
    metadata={b"owner": b"us"},
)
_START = datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc)


def _settings() -> dict[str, Any]:
    return {"model": "tiny", "prefix": "", "features": ["embedding", "label", "score"]}


@dataclass
class Plan:
    """Splits over files of lines, of which every fifth is blank and every seventh bad.

    Attributes:
        splits: the plan.
        batches: what is read of each split, with features.
        table: the rows that must be written.
        rejects: file and line of every reject.
    """

    files: int = 2
    lines: int = 33
    lines_per_part: int = 8
    parts_per_split: int = 2
    batch_rows: int = 3
    dimensions: int = 4
    dtype: str = "float32"
    nulls: bool = False
    settings: dict[str, Any] = field(default_factory=_settings)
    weights: str = "abc"
    reading: str = "r"
    compute: str = "float32"
    splits: list[Split] = field(init=False)
    batches: list[list[pa.RecordBatch]] = field(init=False)
    table: pa.Table = field(init=False)
    rejects: list[tuple[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        cuts = [
            (f"/in/{file}.jsonl", start, min(start + self.lines_per_part, self.lines + 1))
            for file in range(self.files)
            for start in range(1, self.lines + 1, self.lines_per_part)
        ]
        groups = [cuts[at : at + self.parts_per_split] for at in range(0, len(cuts), self.parts_per_split)]
        self.splits = [
            Split(
                parts=tuple(Part(source, "jsonl", 1000, "v1", start=start) for source, start, _ in group),
                ordinal=ordinal,
                splits=len(groups),
                schema=b"",
                size=1,
                reading=self.reading,
            )
            for ordinal, group in enumerate(groups)
        ]
        self.rejects = []
        self.batches = [self._read(split, group) for split, group in zip(self.splits, groups, strict=True)]
        everything = pa.Table.from_batches([batch for batches in self.batches for batch in batches])
        self.table = everything.drop_columns([ROW, "secret"]).replace_schema_metadata(None)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that must be written, by id."""
        return list(self.table.sort_by("id").to_pylist())

    @property
    def model(self) -> dict[str, Any]:
        """What the batches say of their model."""
        return {
            "id": "tiny",
            "revision": "r1",
            "weights_sha256": self.weights,
            "tokenizer_sha256": "def",
            "settings": self.settings,
            "compute": {"device": "cpu", "dtype": self.compute, "threads": 1},
            "version": "0",
        }

    def finished(self, ordinal: int) -> pa.RecordBatch:
        """What is read of a split that needs no work."""
        split = self.splits[ordinal]
        provenance = Provenance(
            "", split.id, ordinal=ordinal, splits=split.splits, last=True, finished=True, reading=self.reading
        )
        return provenance.attach(pa.RecordBatch.from_pylist([], schema=_USER))

    def write(self, output: str | Path, ordinal: int, shards: ShardSettings | None = None) -> SplitRecord:
        """Stages one split."""
        split = self.splits[ordinal]
        writer = SplitWriter(str(output), split.id, shards or ShardSettings())
        for batch in self.batches[ordinal]:
            writer.write(batch, Provenance.of(batch))
        return writer.finish(Provenance.of(batch))

    def write_all(self, output: str | Path, shards: ShardSettings | None = None) -> list[SplitRecord]:
        """Stages all splits."""
        return [self.write(output, split.ordinal, shards) for split in self.splits]

    def _read(self, split: Split, group: Sequence[tuple[str, int, int]]) -> list[pa.RecordBatch]:
        batches: list[pa.RecordBatch] = []
        state = Provenance(
            source="",
            split=split.id,
            ordinal=split.ordinal,
            splits=split.splits,
            unit="line",
            text=("text",),
            id="id",
            transient=("secret",),
            models=(self.model,),
            reading=self.reading,
        )
        for position, (source, start, stop) in enumerate(group):
            state = replace(state, source=source, part=position, seen=0, lines=0, relative=start > 1)
            lines = range(start, stop)
            for at in range(0, len(lines), self.batch_rows):
                block = lines[at : at + self.batch_rows]
                bad = [line for line in block if line % 7 == 0]
                good = [line for line in block if line % 7 and line % 5]
                self.rejects += [(source, line) for line in bad]
                # A reader that starts inside a file counts lines from there.
                first = start - 1 if state.relative else 0
                rejects = tuple(
                    Reject("read", "JSONDecodeError", "not JSON", row=line - first, length=line) for line in bad
                )
                state = replace(
                    state, seen=state.seen + len(bad) + len(good), lines=state.lines + len(block), rejects=rejects
                )
                batches.append(self._features(source, good, first, state))
        notes = [replace(Provenance.of(batch), sequence=number) for number, batch in enumerate(batches)]
        notes[-1] = replace(notes[-1], last=True)
        return [note.attach(batch) for note, batch in zip(notes, batches, strict=True)]

    def _features(self, source: str, lines: Sequence[int], first: int, state: Provenance) -> pa.RecordBatch:
        ids = [1000 * int(source[4]) + line for line in lines]
        vectors = [np.random.default_rng(key).standard_normal(self.dimensions) for key in ids]
        rows = [
            {
                "id": key,
                "text": f"text {key}",
                "when": _START + datetime.timedelta(microseconds=key),
                "price": decimal.Decimal(key) / 100,
                "tags": ["a", str(key)],
                "place": {"city": "ü", "height": key / 3},
                "kind": "even" if key % 2 == 0 else "odd",
                ROW: line - first,
                "secret": "s",
            }
            for key, line in zip(ids, lines, strict=True)
        ]
        batch = pa.RecordBatch.from_pylist(rows, schema=_USER)
        flat = np.array(vectors, dtype=self.dtype).reshape(-1)
        columns = {
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(flat),
                self.dimensions,
                mask=pa.array([self.nulls and key % 11 == 0 for key in ids], pa.bool_()),
            ),
            "label": pa.array(["POSITIVE" if key % 3 else "NEGATIVE" for key in ids], pa.string()),
            "score": pa.array([1 / key for key in ids], pa.float32()),
            "token_count": pa.array([key % 10 for key in ids], pa.int32()),
            "truncated": pa.array([key % 4 == 0 for key in ids], pa.bool_()),
        }
        for name, column in columns.items():
            field = pa.field(name, column.type, nullable=name != "embedding" or self.nulls)
            batch = batch.append_column(field, column)
        return state.attach(batch)


@contextmanager
def s3_bucket() -> Iterator[str]:
    """URL of a bucket on an S3 server on this machine; inside the block s3:// reaches that server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        filesystem = fsspec.filesystem("s3")
        filesystem.clear_instance_cache()
        filesystem = fsspec.filesystem("s3")
        # The server keeps its buckets as long as the process lives.
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        filesystem.mkdir(bucket)
        try:
            yield f"s3://{bucket}"
        finally:
            filesystem.clear_instance_cache()
            server.stop()
