"""Recurring jobs over a growing folder without a model, and what their output must be."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from distilbeam.transforms.documents import ReadDocuments, _Read
from distilbeam.transforms.features import SplitWriter, WriteFeatures
from distilbeam.transforms.output.commit import commit
from distilbeam.transforms.output.increments import Changes, compare
from distilbeam.transforms.output.ledger import Ledger
from distilbeam.transforms.output.manifest import SplitRecord, find_manifest, load_manifest
from distilbeam.transforms.output.staging import OutputState, finished_record
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.rejects import parse_max_rejects
from distilbeam.transforms.storage import filesystems


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class Ran:
    """What a run has done.

    Attributes:
        read: rows and rejects read, by file.
        plan: splits of the plan, and how many of them were finished.
        changes: as the command line tells them.
    """

    read: Counter[str]
    plan: tuple[int, int]
    changes: Changes


@dataclass
class Folder:
    """A folder of files of rows, each an id and a text; an id that begins with ``!`` is a line that is no JSON.

    Attributes:
        url: the folder.
        format: ``jsonl``, ``csv`` or ``parquet``.
        files: ids of the rows of each file, as they must be in the output.
    """

    url: str
    format: str = "jsonl"
    files: dict[str, list[str]] = field(default_factory=dict)

    def put(self, name: str, ids: Sequence[str]) -> None:
        """Writes a file; the same ids again make a file that is touched but equal."""
        self.files[name] = list(ids)
        filesystems.write_bytes(self.path(name), self._bytes(ids))

    def remove(self, name: str) -> None:
        del self.files[name]
        filesystems.delete(self.path(name))

    def path(self, name: str) -> str:
        return f"{self.url}/{name}.{self.format}"

    @property
    def rows(self) -> list[str]:
        """Ids that must be in the output, sorted."""
        return sorted(name for ids in self.files.values() for name in ids if name[0] != "!")

    @property
    def bad(self) -> list[tuple[str, int]]:
        """File and line of what must be rejected, sorted."""
        lines = ((self.path(n), at, name) for n, ids in self.files.items() for at, name in enumerate(ids, 1))
        return sorted((path, at) for path, at, name in lines if name[0] == "!")

    def _bytes(self, ids: Sequence[str]) -> bytes:
        if self.format == "parquet":
            sink = io.BytesIO()
            table = pa.table({"id": pa.array(ids, pa.string()), "text": pa.array([f"text {name}" for name in ids])})
            pq.write_table(table, sink, row_group_size=3)
            return sink.getvalue()
        if self.format == "csv":
            return "".join(["id,text\n", *(f'{name},"text {name}"\n' for name in ids)]).encode()
        rows = ("{" if name[0] == "!" else json.dumps({"id": name, "text": f"text {name}"}) for name in ids)
        return ("".join(row + "\n" for row in rows) or "\n").encode()  # a file of 0 bytes would be passed over


def run(
    folder: str | Sequence[str],
    output: str,
    *,
    if_exists: str = "resume",
    incremental: bool = True,
    since: str | None = None,
    if_changed: str = "error",
    settings: Sequence[Mapping[str, Any]] = (),
    models: Sequence[Callable[[], Mapping[str, Any]]] = (),
    die_after: int | None = None,
    **reading: Any,
) -> Ran:
    """One run of a job that computes nothing, as its workers would do it one after the other.

    Args:
        die_after: splits after whose writing the process ends.
    """
    before = _records(output), _records(since)
    writing = WriteFeatures(output, if_exists="overwrite" if if_changed == "overwrite" else if_exists)
    ledger = writing.ledger(*settings, incremental=incremental, since=since, if_changed=if_changed, models=list(models))
    wanted = ReadDocuments(folder, ledger=ledger, **reading).settings
    plan = ledger.plan(wanted)
    reader = _Read(wanted, ledger)
    identities = tuple(dict(model()) for model in models)
    read: Counter[str] = Counter()
    records: list[SplitRecord] = []
    state = OutputState.read(output)
    for split, finished in plan:
        batches = list(reader.process((split, finished)))
        if finished:
            note = Provenance.of(batches[0])
            assert note is not None
            records.append(finished_record(state, note, ledger.shards))
            continue
        if die_after is not None and len(read) >= die_after:
            raise Killed
        writer = SplitWriter(ledger.output, split.id, ledger.shards)
        for batch in batches:
            note = Provenance.of(batch)
            assert note is not None
            note = _with_models(note, identities)
            writer.write(batch, note)
            read[note.source] += batch.num_rows + len(note.rejects)
        records.append(writer.finish(note))
    mode = "overwrite" if if_changed == "overwrite" else if_exists
    manifest = commit(output, records, if_exists=mode, limit=parse_max_rejects(None))
    done = sum(finished for _, finished in plan)
    return Ran(read, (len(plan), done), compare(before[0], manifest.records, before[1]))


def ids(output: str) -> list[str]:
    """Ids of all rows that the manifest names, which must be all that readers of the folder see; sorted."""
    manifest = load_manifest(output)
    state = OutputState.read(output)
    assert state.visible == {shard.path for shard in manifest.shards}
    tables = [pq.read_table(_open(output, shard.path)) for shard in manifest.shards]
    return sorted(name for table in tables for name in table["id"].to_pylist())


def rejects(output: str) -> list[tuple[str, int]]:
    """File and line of all rejects, sorted."""
    files = [record.rejects_file.path for record in load_manifest(output).records if record.rejects_file]
    rows = [row for path in files for row in pq.read_table(_open(output, path)).to_pylist()]
    return sorted((row["source"], row["line"]) for row in rows)


def snapshot(output: str) -> dict[str, tuple[int, str]]:
    """Size and version of every file below a folder."""
    return {info.url: (info.size, info.version) for info in filesystems.list_files(output)}


def forget(url: str) -> None:
    """Empties a folder of the memory file system."""
    memory = fsspec.filesystem("memory")
    if memory.exists(url):
        memory.rm(url, recursive=True)


def _with_models(note: Provenance, identities: tuple[dict[str, Any], ...]) -> Provenance:
    return replace(note, models=identities)


def _records(output: str | None) -> tuple[SplitRecord, ...]:
    manifest = find_manifest(output) if output else None
    return manifest.records if manifest else ()


def _open(output: str, path: str) -> pa.BufferReader:
    return pa.BufferReader(filesystems.read_bytes(filesystems.join(output, path)))


__all__ = ["Folder", "Killed", "Ledger", "Ran", "forget", "ids", "rejects", "run", "snapshot"]
