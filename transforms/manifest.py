"""What an output folder holds, as JSON: one record per split, and the manifest that names the complete output.

OUT/part-00000-1a2b3c4d.parquet       shards; a split with several has -000, -001, ... before the suffix
OUT/_rejects/part-00000-1a2b3c4d.parquet
OUT/_distilbeam/manifest.json         written last
OUT/_distilbeam/intent.json           what an unfinished commit may have made visible
OUT/_distilbeam/staging/              files of splits until the commit
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from . import filesystems
from .errors import InputError

__all__ = [
    "INTENT",
    "MANIFEST",
    "REJECTS",
    "STAGING",
    "FileRecord",
    "Manifest",
    "PartRecord",
    "SplitRecord",
    "Statistics",
    "canonical",
    "describe_schema",
    "feature_columns",
    "final_record",
    "find_manifest",
    "fingerprint",
    "identity",
    "load_manifest",
    "read_json",
    "save_manifest",
    "settings_of",
]

MANIFEST = "_distilbeam/manifest.json"
INTENT = "_distilbeam/intent.json"
STAGING = "_distilbeam/staging"
REJECTS = "_rejects"
VERSION = 1
_SHARED = ("input", "models", "reading", "schema", "writer")


@dataclass(frozen=True, slots=True)
class PartRecord:
    """How much of one part of a file was read.

    Attributes:
        source: path or URL of the file.
        seen: rows read, good and bad.
        lines: physical lines consumed, or rows where the format counts rows.
        relative: whether rows were counted from the start of the part.
        size: bytes of the file as it was read.
        version: what changes when the file does, as ``Part.version``.
        start: first byte or row of the part, as ``Part.start``.
        stop: end of the part, as ``Part.stop``.
    """

    source: str
    seen: int
    lines: int
    relative: bool = False
    size: int = 0
    version: str = ""
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file: its path below the output folder, rows, bytes and SHA-256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums over rows: tokens, truncated rows, and rows per label; None where there is no such feature."""

    tokens: int | None = None
    truncated: int | None = None
    labels: dict[str, int] | None = None

    def __add__(self, other: Statistics) -> Statistics:
        labels = None
        if self.labels is not None or other.labels is not None:
            labels = dict(sorted((Counter(self.labels) + Counter(other.labels)).items()))
        return Statistics(_sum(self.tokens, other.tokens), _sum(self.truncated, other.truncated), labels)


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """One split as it was written.

    Attributes:
        split: id of the split.
        ordinal: position of the split in the plan, from 0.
        splits: number of splits in the plan.
        parts: what was read, in order.
        reading: digest of the settings of the input, as ``Provenance.reading``.
        shards: the files with the rows, in order; none if there are no rows.
        rejects_file: the file with the rejects, if there are any.
        statistics: sums over the rows.
        schema: (name, type) of the columns written.
        models: identity of checkpoint and settings of each stage, as ``Provenance.models``.
        writer: settings of the writer that shape the files.
        input: ``Split.schema`` in base64, so that a later run reads new files into the same columns.
    """

    split: str
    ordinal: int
    splits: int
    parts: tuple[PartRecord, ...]
    reading: str
    shards: tuple[FileRecord, ...]
    rejects_file: FileRecord | None
    statistics: Statistics
    schema: tuple[tuple[str, str], ...]
    models: tuple[dict[str, Any], ...]
    writer: dict[str, Any]
    input: str = ""

    @property
    def rows(self) -> int:
        """Rows written."""
        return sum(shard.rows for shard in self.shards)

    @property
    def rejects(self) -> int:
        """Rows set aside."""
        return self.rejects_file.rows if self.rejects_file else 0

    @property
    def fingerprint(self) -> str:
        """8 hexadecimal digits of split, models and writer; part of the file names."""
        return fingerprint(self.split, self.models, self.writer)

    @property
    def name(self) -> str:
        """The record among all of its split: ``split-fingerprint``."""
        return f"{self.split}-{self.fingerprint}"

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Shards, and the rejects file if there is one."""
        return self.shards + ((self.rejects_file,) if self.rejects_file else ())

    @property
    def seen(self) -> int:
        """Rows read, good and bad."""
        return sum(part.seen for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SplitRecord:
        """The inverse of ``as_dict``.

        Raises:
            TypeError, KeyError: it is not a record.
        """
        fields = dict(fields)
        rejects_file = fields["rejects_file"]
        fields["parts"] = tuple(PartRecord(**part) for part in fields["parts"])
        fields["shards"] = tuple(FileRecord(**shard) for shard in fields["shards"])
        fields["rejects_file"] = rejects_file and FileRecord(**rejects_file)
        fields["statistics"] = Statistics(**fields["statistics"])
        fields["schema"] = tuple((name, kind) for name, kind in fields["schema"])
        fields["models"] = tuple(fields["models"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The complete output: its splits in the order of the plan, with paths below the output folder."""

    records: tuple[SplitRecord, ...]

    @property
    def files(self) -> frozenset[str]:
        """Paths of all shards and rejects files."""
        return frozenset(file.path for record in self.records for file in record.files)

    @property
    def shards(self) -> tuple[FileRecord, ...]:
        """All shards, in order."""
        return tuple(shard for record in self.records for shard in record.shards)

    @property
    def rows(self) -> int:
        """Rows written."""
        return sum(record.rows for record in self.records)

    @property
    def rejects(self) -> int:
        """Rows set aside."""
        return sum(record.rejects for record in self.records)

    @property
    def statistics(self) -> Statistics:
        """Sums over all rows."""
        return sum((record.statistics for record in self.records), Statistics())

    @property
    def schema(self) -> tuple[tuple[str, str], ...]:
        """(name, type) of the columns."""
        return max(self.records, key=lambda record: record.rows > 0).schema

    @property
    def models(self) -> tuple[dict[str, Any], ...]:
        """Identity of checkpoint and settings of each stage; their ``compute`` is that of the first split."""
        return next((record.models for record in self.records if record.models), ())

    @property
    def computes(self) -> list[dict[str, Any]]:
        """Each ``compute`` (device, dtype, threads) that was met, by ``stage`` from 0, with its number of ``splits``.

        There is more than one of a stage where machines differ.
        """
        counts: Counter[tuple[int, str]] = Counter(
            (stage, json.dumps(model["compute"]))
            for record in self.records
            for stage, model in enumerate(record.models)
            if model.get("compute")
        )
        return [{"stage": stage, **json.loads(text), "splits": count} for (stage, text), count in counts.items()]

    @property
    def reading(self) -> str:
        """Digest of the settings of the input."""
        return self.records[0].reading

    @property
    def input(self) -> str:
        """Columns of the input, as ``SplitRecord.input``."""
        return next((record.input for record in self.records if record.input), "")

    @property
    def writer(self) -> dict[str, Any]:
        """Settings of the writer."""
        return self.records[0].writer

    def summary(self, output: str) -> dict[str, Any]:
        """The manifest in a few numbers, for logs and for the next step of a pipeline."""
        return {
            "output": output,
            "manifest": filesystems.join(output, MANIFEST),
            "format": self.writer["format"],
            "rows": self.rows,
            "rejects": self.rejects,
            "splits": len(self.records),
            "shards": len(self.shards),
            "bytes": sum(shard.bytes for shard in self.shards),
            **asdict(self.statistics),
            "models": list(self.models),
            "computes": self.computes,
        }

    def to_json(self) -> bytes:
        """The manifest as JSON; equal for equal outputs. What all splits share is written once."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in _SHARED}
        splits = [
            {key: value for key, value in record.as_dict().items() if key not in shared or value != shared[key]}
            for record in self.records
        ]
        document = {
            "version": VERSION,
            "rows": self.rows,
            "rejects": self.rejects,
            "statistics": asdict(self.statistics),
            "computes": self.computes,
            **shared,
            "splits": splits,
        }
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """The inverse of ``to_json``.

        Raises:
            ValueError, TypeError, KeyError: it is not a manifest of this version.
        """
        document = json.loads(data)
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']!r}")
        shared = {name: document[name] for name in _SHARED if name in document}
        return cls(tuple(SplitRecord.from_dict({**shared, **split}) for split in document["splits"]))


def find_manifest(output: str) -> Manifest | None:
    """The manifest of an output folder; None if there is none.

    Raises:
        InputError: it is damaged, of another version or cannot be read.
    """
    return load_manifest(output) if filesystems.exists(filesystems.join(output, MANIFEST)) else None


def load_manifest(output: str) -> Manifest:
    """The manifest of an output folder.

    Raises:
        InputError: there is none, or it is damaged, of another version or cannot be read.
    """
    url = filesystems.join(output, MANIFEST)
    try:
        return Manifest.from_json(filesystems.read_bytes(url))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{url!r} is no manifest that this version of distilbeam can read ({type(error).__name__}); "
            "it may be damaged or written by a newer version"
        ) from None


def save_manifest(output: str, manifest: Manifest) -> None:
    """Writes the manifest, whole or not at all."""
    filesystems.write_bytes(filesystems.join(output, MANIFEST), manifest.to_json())


def canonical(value: Any) -> Any:
    """A JSON-able value as it comes back from JSON, so that settings compare equal after a round trip."""
    return json.loads(json.dumps(value, sort_keys=True))


def identity(models: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What must agree among all rows of an output: weights, tokenizer, configuration and settings; not the device."""
    keys = ("weights_sha256", "tokenizer_sha256", "settings", "effective")
    return [canonical({key: model.get(key) for key in keys}) for model in models]


def settings_of(models: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The settings of each stage, as they come back from JSON."""
    return [canonical(model.get("settings")) for model in models]


def fingerprint(split: str, models: Iterable[Mapping[str, Any]], writer: Mapping[str, Any]) -> str:
    """8 hexadecimal digits, equal for equal split, models and writer settings."""
    text = json.dumps([split, identity(models), writer], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def feature_columns(models: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, str]:
    """Names of the columns that hold features, by feature; of several stages, the first that gives a feature.

    A column that no stage has added is the user's, whatever its name.

    Args:
        models: identity of each stage.
        names: names of all columns.
    """
    known = set(names)
    columns: dict[str, str] = {}
    for model in models:
        settings = model.get("settings") or {}
        for feature in (*(settings.get("features") or ()), "token_count", "truncated"):
            column = (settings.get("prefix") or "") + feature
            if column in known:
                columns.setdefault(feature, column)
    return columns


def final_record(record: SplitRecord) -> SplitRecord:
    """The record with its staged files under their final names, which follow from ordinal and fingerprint.

    Files that are in their place already stay there.
    """
    stem = f"part-{record.ordinal:05d}-{record.fingerprint}"
    several = len(record.shards) > 1
    shards = [
        _renamed(shard, (f"{stem}-{number:03d}" if several else stem) + _suffix(shard.path))
        for number, shard in enumerate(record.shards)
    ]
    rejects = record.rejects_file and _renamed(record.rejects_file, f"{REJECTS}/{stem}.parquet")
    return replace(record, shards=tuple(shards), rejects_file=rejects)


def describe_schema(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """(name, type) of every column."""
    return tuple((field.name, str(field.type)) for field in schema)


def read_json(url: str) -> Any:
    """The JSON in a file; None if there is no such file or it is not JSON.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json.loads(filesystems.read_bytes(url))
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except ValueError:
        return None


def _renamed(file: FileRecord, path: str) -> FileRecord:
    return replace(file, path=path) if file.path.startswith(STAGING) else file


def _suffix(path: str) -> str:
    return "".join(PurePosixPath(path).suffixes)


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
