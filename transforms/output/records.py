"""One record per split: which files hold its rows, what was read, and what made them.

Records come back from JSON that anybody may have written, so each value is checked, and a path is one that we write.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

__all__ = [
    "FEATURES",
    "REJECTS",
    "STAGING",
    "FileRecord",
    "PartRecord",
    "SplitRecord",
    "Statistics",
    "agree",
    "canonical",
    "describe_schema",
    "feature_columns",
    "final_record",
    "fingerprint",
    "identity",
    "is_count",
    "is_placed",
    "settings_of",
    "without_path",
]

STAGING = "_distilbeam/staging"
REJECTS = "_rejects"
FEATURES = "features"
"""Folder of the shards. Nothing else ever lies there, so that readers can open it whole: temporary files are staged."""

# Only files with such names are ever read, moved or deleted, whatever a manifest or a record says.
_SUFFIX = r"\.(parquet|jsonl(\.zst|\.gz)?)"
# The first versions put shards at the top of the output.
_PLACED = re.compile(
    rf"({FEATURES}/)?part-\d{{5,}}-[0-9a-f]{{8}}(-\d{{3,}})?{_SUFFIX}|{REJECTS}/part-\d{{5,}}-[0-9a-f]{{8}}\.parquet"
)
_SPLIT = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")
_STAGED = re.compile(rf"{STAGING}/{_SPLIT.pattern}(-\d{{3,}}{_SUFFIX}|-rejects\.parquet)")


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
        lost: rows that a damage of the file has taken beside the rejects, about; None where nobody knows.
    """

    source: str
    seen: int
    lines: int
    relative: bool = False
    size: int = 0
    version: str = ""
    start: int = 0
    stop: int | None = None
    lost: int | None = 0


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file: its path below the output folder, rows, bytes and SHA-256."""

    path: str
    rows: int
    bytes: int
    sha256: str

    def check(self) -> None:
        """Raises ValueError or TypeError unless this is a file that we could have written."""
        _check(
            is_placed(self.path) or _STAGED.fullmatch(self.path) is not None,
            is_count(self.rows),
            is_count(self.bytes),
            isinstance(self.sha256, str),
        )


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
        unread: keys of JSON objects that no column takes.
        dropped: rows that steps of the user's have taken out on the way.
        added: rows that they have put in.
        base: ``Split.base`` of the plan of this run. It belongs to the run, not to the output, so it is not written.
    """

    split: str
    ordinal: int
    splits: int
    parts: tuple[PartRecord, ...]
    reading: str
    shards: tuple[FileRecord, ...]
    rejects_file: FileRecord | None
    statistics: Statistics
    # Not for the log, where Beam writes elements at debug level: the names of columns may come from documents.
    schema: tuple[tuple[str, str], ...] = field(repr=False)
    models: tuple[dict[str, Any], ...]
    writer: dict[str, Any]
    input: str = field(default="", repr=False)
    unread: tuple[str, ...] = field(default=(), repr=False)
    dropped: int = 0
    added: int = 0
    base: tuple[int, int] | None = field(default=None, compare=False)

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
        """8 hexadecimal digits of split, models and writer."""
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
        """The record as JSON values, without ``base``, and without what hardly any record has."""
        values = {name: getattr(self, name) for name in _FIELDS}
        values["parts"] = [asdict(part) for part in self.parts]
        values["shards"] = [asdict(shard) for shard in self.shards]
        values["rejects_file"] = self.rejects_file and asdict(self.rejects_file)
        values["statistics"] = asdict(self.statistics)
        return {key: value for key, value in values.items() if value or key not in _RARE}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SplitRecord:
        """The inverse of ``as_dict``.

        Raises:
            TypeError, KeyError, ValueError: it is not a record, or holds a path that we would not write.
        """
        fields = dict(fields)
        rejects_file = fields["rejects_file"]
        fields["parts"] = tuple(PartRecord(**part) for part in fields["parts"])
        fields["shards"] = tuple(FileRecord(**shard) for shard in fields["shards"])
        fields["rejects_file"] = None if rejects_file is None else FileRecord(**rejects_file)
        fields["statistics"] = Statistics(**fields["statistics"])
        if not isinstance(fields["schema"], tuple):  # as JSON has it
            fields["schema"] = tuple((name, kind) for name, kind in fields["schema"])
        fields["models"] = tuple(fields["models"])
        fields["unread"] = tuple(fields.get("unread", ()))
        if "base" in fields:
            raise ValueError("not a record of a split")
        record = cls(**fields)
        record._check()
        return record

    def _check(self) -> None:
        _check(
            _SPLIT.fullmatch(self.split) is not None,
            is_count(self.ordinal),
            is_count(self.splits),
            is_count(self.dropped),
            is_count(self.added),
            isinstance(self.reading, str),
            isinstance(self.input, str),
            all(isinstance(key, str) for key in self.unread),
            all(isinstance(name, str) and isinstance(kind, str) for name, kind in self.schema),
            all(isinstance(model, dict) for model in self.models),
            isinstance(self.writer, dict) and isinstance(self.writer.get("format"), str),
            all(not _is_rejects(shard.path) for shard in self.shards),
            self.rejects_file is None or _is_rejects(self.rejects_file.path),
        )
        for part in self.parts:
            _check(
                isinstance(part.source, str),
                isinstance(part.version, str),
                isinstance(part.relative, bool),
                all(is_count(count) for count in (part.seen, part.lines, part.size, part.start)),
                part.stop is None or is_count(part.stop),
                part.lost is None or is_count(part.lost),
            )
        for file in self.files:
            file.check()
        sums = self.statistics
        _check(
            all(count is None or is_count(count) for count in (sums.tokens, sums.truncated)),
            sums.labels is None
            or all(isinstance(name, str) and is_count(count) for name, count in sums.labels.items()),
        )


_RARE = ("unread", "dropped", "added")
_FIELDS = tuple(field.name for field in fields(SplitRecord) if field.name != "base")


def is_placed(path: str) -> bool:
    """Whether the path, from the output folder, is that of a shard or a rejects file after the commit."""
    return _PLACED.fullmatch(path) is not None


def is_count(value: object) -> bool:
    """Whether a value from JSON is a whole number from 0."""
    return type(value) is int and value >= 0


def canonical(value: Any) -> Any:
    """A JSON-able value as it comes back from JSON, so that settings compare equal after a round trip."""
    return json.loads(json.dumps(value, sort_keys=True))


def identity(models: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What must agree among all rows of an output: weights, tokenizer, configuration and settings.

    Not the device, and not the path that the model was given by, since its contents are hashed.
    """
    keys = ("weights_sha256", "tokenizer_sha256", "settings", "effective")
    found = [canonical({key: model.get(key) for key in keys}) for model in models]
    return [{**model, "settings": without_path(model["settings"])} for model in found]


def without_path(settings: Any) -> Any:
    """The settings of a stage without the name or path of its model."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: value for name, value in settings.items() if name != "model"}


def agree(made: Sequence[Any], asked: Sequence[Any]) -> bool:
    """Whether the settings of stages are those that are asked for, as they come back from JSON.

    A model's name or path counts only where it is asked for; it is not where hashes tell which model it is.
    """
    return len(made) == len(asked) and all(
        (was if not isinstance(now, Mapping) or "model" in now else without_path(was)) == canonical(now)
        for was, now in zip(made, asked, strict=True)
    )


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
    """The record with its staged files under their final names, which follow from ordinal, fingerprint and contents.

    So a name never stands for two contents: whoever deletes old files late deletes no new one. Files that are in their
    place already stay there.
    """
    contents = json.dumps([record.fingerprint, *(file.sha256 for file in record.files)])
    stem = f"part-{record.ordinal:05d}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}"
    several = len(record.shards) > 1
    shards = [
        _renamed(shard, f"{FEATURES}/{stem}" + (f"-{number:03d}" if several else "") + _suffix(shard.path))
        for number, shard in enumerate(record.shards)
    ]
    rejects = record.rejects_file and _renamed(record.rejects_file, f"{REJECTS}/{stem}.parquet")
    return replace(record, shards=tuple(shards), rejects_file=rejects)


def describe_schema(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """(name, type) of every column."""
    return tuple((field.name, str(field.type)) for field in schema)


def _renamed(file: FileRecord, path: str) -> FileRecord:
    return replace(file, path=path) if file.path.startswith(STAGING) else file


def _suffix(path: str) -> str:
    return "".join(PurePosixPath(path).suffixes)


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _is_rejects(path: str) -> bool:
    return path.startswith(f"{REJECTS}/") or path.endswith("-rejects.parquet")


def _check(*conditions: bool) -> None:
    if not all(conditions):
        raise ValueError("not a record of a split")
