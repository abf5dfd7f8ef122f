"""What an output folder holds, as JSON: one record per split, and the manifest that names the complete output.

OUT/features/part-00000-1a2b3c4d.parquet  shards; a split with several has -000, -001, ... before the suffix
OUT/_rejects/part-00000-1a2b3c4d.parquet
OUT/_distilbeam/manifest.json             written last
OUT/_distilbeam/manifest/                 pieces of it where splits are very many
OUT/_distilbeam/history/000001.json       an entry for each commit, written first
OUT/_distilbeam/staging/                  files of splits until the commit
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage import filesystems

from .pieces import MAX_JSON_BYTES, PIECES, Piece, in_pieces, read_piece, write_piece
from .records import (
    FEATURES,
    REJECTS,
    STAGING,
    FileRecord,
    PartRecord,
    SplitRecord,
    Statistics,
    agree,
    canonical,
    describe_schema,
    feature_columns,
    final_record,
    fingerprint,
    identity,
    is_count,
    is_placed,
    settings_of,
    without_path,
)

__all__ = [
    "FEATURES",
    "MANIFEST",
    "MAX_JSON_BYTES",
    "REJECTS",
    "STAGING",
    "FileRecord",
    "Manifest",
    "PartRecord",
    "SplitRecord",
    "Statistics",
    "agree",
    "canonical",
    "check_size",
    "describe_schema",
    "feature_columns",
    "fenced",
    "final_record",
    "find_manifest",
    "fingerprint",
    "identity",
    "is_placed",
    "load_manifest",
    "parse_manifest",
    "read_json",
    "settings_of",
    "without_path",
]

MANIFEST = "_distilbeam/manifest.json"
VERSION = 1
VERSION_IN_PIECES = 2
_LOOKS = 4
_NONE = {"version": VERSION, "commit": 0, "splits": []}
_SHARED = ("input", "models", "reading", "schema", "writer")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The complete output: its splits in the order of the plan, with paths below the output folder.

    Attributes:
        records: the splits.
        commit: number of the commit that made it, as in the history; 0 before it has one.
        pieces: the files that hold the splits, if the manifest itself does not.
    """

    records: tuple[SplitRecord, ...]
    commit: int = 0
    pieces: tuple[Piece, ...] = field(default=(), compare=False, repr=False)
    _digest: list[str] = field(default_factory=list, init=False, compare=False, repr=False)

    @property
    def files(self) -> frozenset[str]:
        """Paths of all shards and rejects files."""
        return frozenset(file.path for record in self.records for file in record.files)

    @property
    def shards(self) -> tuple[FileRecord, ...]:
        """All shards, in order."""
        return tuple(shard for record in self.records for shard in record.shards)

    @property
    def has_first_layout(self) -> bool:
        """Whether its shards lie at the top of the folder, as first versions put them, and may have other types.

        Such an output can be read and replaced, and not be gone on with.
        """
        return any(not shard.path.startswith(f"{FEATURES}/") for shard in self.shards)

    @property
    def rows(self) -> int:
        """Rows written."""
        return sum(record.rows for record in self.records)

    @property
    def rejects(self) -> int:
        """Rows set aside."""
        return sum(record.rejects for record in self.records)

    @property
    def dropped(self) -> int:
        """Rows that steps of the user's have taken out between reading and writing."""
        return sum(record.dropped for record in self.records)

    @property
    def added(self) -> int:
        """Rows that they have put in."""
        return sum(record.added for record in self.records)

    @property
    def statistics(self) -> Statistics:
        """Sums over all rows."""
        return sum((record.statistics for record in self.records), Statistics())

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of JSON objects that no column takes."""
        return tuple(sorted({key for record in self.records for key in record.unread}))

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
    def schema_of_input(self) -> bytes:
        """Columns of the input, as ``Split.schema``."""
        return base64.b64decode(self.input)

    @property
    def writer(self) -> dict[str, Any]:
        """Settings of the writer."""
        return self.records[0].writer

    @property
    def digest(self) -> str:
        """SHA-256 of what the output is, whichever commit makes it; without the bytes of rejects, known only in it."""
        if not self._digest:
            shared = self._shared
            digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode())
            for record in self.records:
                rejects = record.rejects_file and replace(record.rejects_file, bytes=0, sha256="")
                own = _own(replace(record, rejects_file=rejects), shared)
                digest.update(json.dumps(own, separators=(",", ":")).encode())
            self._digest.append(digest.hexdigest())
        return self._digest[0]

    @property
    def _shared(self) -> dict[str, Any]:
        """What splits have in common, as far as they have."""
        return {name: getattr(self, name) for name in _SHARED}

    def summary(self, output: str) -> dict[str, Any]:
        """The manifest in a few numbers, for logs and for the next step of a pipeline."""
        return {
            "output": output,
            "manifest": filesystems.join(output, MANIFEST),
            "commit": self.commit,
            "format": self.writer["format"],
            "rows": self.rows,
            "rejects": self.rejects,
            "dropped": self.dropped,
            "added": self.added,
            "splits": len(self.records),
            "shards": len(self.shards),
            "bytes": sum(shard.bytes for shard in self.shards),
            **asdict(self.statistics),
            "models": list(self.models),
            "computes": self.computes,
        }

    def save_pieces(self, output: str) -> Manifest:
        """This manifest with its splits in files of their own, which are written, if one file would get too large.

        Raises:
            OutputError: a piece cannot be written.
        """
        shared = self._shared
        groups = in_pieces(_own(record, shared) for record in self.records)
        first = next(groups)
        if len(first) == len(self.records):
            return self
        pieces = [write_piece(output, self.commit, 0, first)]
        del first
        pieces += (write_piece(output, self.commit, number, group) for number, group in enumerate(groups, 1))
        filesystems.sync(filesystems.join(output, PIECES))
        return replace(self, pieces=tuple(pieces))

    def to_json(self) -> bytes:
        """The manifest as JSON; equal for equal outputs. What all splits share is written once."""
        shared = self._shared
        document: dict[str, Any] = {
            "version": VERSION_IN_PIECES if self.pieces else VERSION,
            "commit": self.commit,
            "rows": self.rows,
            "rejects": self.rejects,
            "statistics": asdict(self.statistics),
            "computes": self.computes,
            **shared,
        }
        if self.pieces:
            document["pieces"] = [asdict(piece) for piece in self.pieces]
        else:
            document["splits"] = [_own(record, shared) for record in self.records]
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, output: str = "") -> Manifest:
        """The inverse of ``to_json``.

        Args:
            data: the manifest.
            output: path or URL of the folder with its pieces, if it has any.

        Raises:
            ValueError, TypeError, KeyError, RecursionError: it is not a manifest of a version that is known.
            InputError: a piece cannot be read.
        """
        document = json.loads(data)
        if document["version"] not in (VERSION, VERSION_IN_PIECES):
            raise ValueError(f"version {document['version']!r}")
        if not is_count(document.get("commit", 0)):
            raise ValueError("the commit is not a number")
        shared = {name: document[name] for name in _SHARED if name in document}
        if "schema" in shared:  # one object for all records
            shared["schema"] = tuple((name, kind) for name, kind in shared["schema"])
        if document["version"] == VERSION:
            pieces: tuple[Piece, ...] = ()
            groups: Iterator[list[dict[str, Any]]] = iter([document["splits"]])
        else:
            pieces = tuple(Piece.from_dict(piece) for piece in document["pieces"])
            groups = (read_piece(output, piece) for piece in pieces)
        records = tuple(SplitRecord.from_dict({**shared, **split}) for group in groups for split in group)
        if not records or not all(is_placed(file.path) for record in records for file in record.files):
            raise ValueError("no splits, or a path that no output has")
        return cls(records, document.get("commit", 0), pieces)


def _own(record: SplitRecord, shared: Mapping[str, Any]) -> dict[str, Any]:
    """A split as JSON values, without what it has in common with the others."""
    return {key: value for key, value in record.as_dict().items() if key not in shared or value != shared[key]}


def find_manifest(output: str) -> Manifest | None:
    """The manifest of an output folder; None if there is none.

    Raises:
        InputError: it is damaged, of another version or cannot be read.
    """
    return _read(output) if filesystems.exists(filesystems.join(output, MANIFEST)) else None


def load_manifest(output: str) -> Manifest:
    """The manifest of an output folder.

    Raises:
        InputError: there is none, or it is damaged, of another version or cannot be read.
    """
    manifest = _read(output)
    if manifest is None:
        raise InputError(f"{output!r} holds no complete output yet: its first commit was cut off; run the job again")
    return manifest


def _read(output: str) -> Manifest | None:
    url = filesystems.join(output, MANIFEST)
    for last in (*[False] * _LOOKS, True):
        check_size(url, filesystems.file_info(url).size)
        data = filesystems.read_bytes(url)
        try:
            return parse_manifest(output, data)
        except InputError as error:
            # The next commit may have replaced it and deleted its pieces meanwhile.
            gone = isinstance(error.__cause__, FileNotFoundError)
            if last or not gone or filesystems.read_bytes(url) == data:
                raise
    raise AssertionError("unreachable")


def fenced(manifest: Manifest | None, commit: int) -> bytes:
    """The same manifest, or none, in other bytes: what a commit writes that replaces one which may still be under way.

    The other one can then no longer write its manifest in place of the version that it has read.

    Args:
        manifest: what the file says; None if there is no such file.
        commit: number of the commit that writes it.
    """
    document = json.loads(manifest.to_json()) if manifest else dict(_NONE)
    return (json.dumps({**document, "taken_over_by": commit}, indent=1, ensure_ascii=False) + "\n").encode()


def parse_manifest(output: str, data: bytes) -> Manifest | None:
    """The manifest in the bytes of its file; None if they are what ``fenced`` gives where there is none.

    Raises:
        InputError: it, or a piece of it, is damaged or of another version, or a piece cannot be read.
    """
    try:
        document = json.loads(data)
        if _NONE.items() <= document.items():
            return None
        return Manifest.from_json(data, output)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{filesystems.join(output, MANIFEST)!r} is no manifest that this version of distilbeam can read "
            f"({type(error).__name__}); it may be damaged or written by a newer version"
        ) from None


def check_size(url: str, size: int) -> None:
    """Refuses a file of JSON that is too large to be read.

    Raises:
        InputError: it has more than ``MAX_JSON_BYTES``.
    """
    if size > MAX_JSON_BYTES:
        raise InputError(
            f"{url!r} has {size} bytes, more than the {MAX_JSON_BYTES} that distilbeam reads; it may be damaged"
        )


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
    except (ValueError, RecursionError):
        return None
