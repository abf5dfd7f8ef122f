"""The commit: staged splits become one complete output, named by a manifest that is written last.

Every step may be cut off and done again: shards are moved one by one, and what is in its place already stays there.
Meanwhile ``intent.json`` names what may have become visible, so that a later commit can replace it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import filesystems
from .errors import OutputError, OutputExistsError, RejectLimitError
from .manifest import (
    INTENT,
    STAGING,
    FileRecord,
    Manifest,
    SplitRecord,
    final_record,
    identity,
    save_manifest,
    settings_of,
)
from .rejects import REJECTS_SCHEMA, RejectLimit
from .shards import parquet_bytes
from .staging import OutputState, concurrently

__all__ = ["PART", "check_records", "commit", "first_lines"]

_log = logging.getLogger(__name__)

PART = "_part"
"""Column of staged rejects with the position of the part inside the split; not in the output."""

# Only files named like this are ever deleted, whatever a manifest says.
_OURS = re.compile(r"(_rejects/)?part-\d{5,}-[0-9a-f]{8}(-\d{3,})?\.(parquet|jsonl(\.zst|\.gz)?)")
_TEMPORARY = re.compile(r"(_distilbeam|_rejects)/\.[^/]+\.tmp")


def commit(
    output: str, records: Sequence[SplitRecord], *, if_exists: str = "error", limit: RejectLimit | None = None
) -> Manifest:
    """Makes staged splits visible as one output.

    Args:
        output: path or URL of the folder.
        records: one record for each split of the plan, in any order.
        if_exists: what to do with an output that is there already: ``error``, ``overwrite`` or ``resume``.
        limit: how many rejects are allowed; None for any number.

    Raises:
        OutputError: the records are not one complete plan, or a file cannot be placed.
        OutputExistsError: the folder holds what must stay.
        RejectLimitError: there are too many rejects. Nothing has become visible.
    """
    records = check_records(records)
    _check_rejects(output, records, limit or RejectLimit())
    placed = [final_record(record) for record in records]
    manifest = Manifest(tuple(placed))
    targets = {shard.path: shard.bytes for shard in manifest.shards}
    if len(manifest.files) < sum(len(record.files) for record in placed):
        raise OutputError("two splits have the same file names; set max_shard_bytes to another value and run again")

    state = OutputState.read(output)
    if if_exists != "error" or state.manifest is None or not _alike(state.manifest, manifest):
        state.refuse_existing(if_exists, targets)
    if if_exists == "resume":
        _refuse_other_model(state, manifest)
    _warn_of_mixed_precision(manifest)
    return _publish(state, records, manifest)


def check_records(records: Sequence[SplitRecord]) -> list[SplitRecord]:
    """The records in the order of the plan, if they are one complete plan.

    Raises:
        OutputError: a split is missing or doubled, lost rows, or differs from the others in schema, models, or settings
            of the writer or the input.
    """
    if not records:
        raise OutputError("no batch reached WriteFeatures, so there is nothing to commit; the input may be empty")
    records = sorted(records, key=lambda record: record.ordinal)
    sizes = sorted({record.splits for record in records})
    if len(sizes) > 1:
        raise OutputError(
            f"batches of several plans were mixed: plans of {_some(sizes)} splits; write each to its own folder"
        )
    counts = Counter(record.ordinal for record in records)
    missing = [ordinal for ordinal in range(sizes[0]) if ordinal not in counts]
    if missing:
        raise OutputError(
            f"{len(missing)} of {sizes[0]} splits did not arrive complete: {_some(missing)}; nothing was committed. A "
            "step between reading and writing may drop batches"
        )
    doubled = [ordinal for ordinal, count in counts.items() if count > 1]
    if doubled:
        raise OutputError(
            f"{len(doubled)} of {sizes[0]} splits arrived more than once: {_some(doubled)}; nothing was committed. A "
            "step between reading and writing may double batches, such as a Flatten of one PCollection with itself"
        )
    unknown = [ordinal for ordinal in counts if not 0 <= ordinal < sizes[0]]
    if unknown:
        raise OutputError(f"splits {_some(unknown)} are not in a plan of {sizes[0]} splits")
    for record in records:
        if record.seen != record.rows + record.rejects:
            raise OutputError(
                f"split {record.ordinal} read {record.seen} rows, but {record.rows} were written and {record.rejects} "
                "set aside; nothing was committed. A step between reading and writing may drop or add rows"
            )
    written = [record for record in records if record.rows]
    for first, record in _differing(written, lambda record: record.schema):
        columns = sorted({name for name, _ in set(first.schema) ^ set(record.schema)}) or ["their order"]
        raise OutputError(f"splits {first.ordinal} and {record.ordinal} have different columns: {_some(columns)}")
    modelled = [record for record in records if record.rows or record.models]
    for first, record in _differing(modelled, lambda record: identity(record.models)):
        raise OutputError(
            f"splits {first.ordinal} and {record.ordinal} were made by different models or settings; set if_exists to "
            "'overwrite' to start anew"
        )
    for first, record in _differing(records, lambda record: record.writer):
        raise OutputError(f"splits {first.ordinal} and {record.ordinal} were written with different settings")
    for first, record in _differing(records, lambda record: record.reading):
        raise OutputError(f"splits {first.ordinal} and {record.ordinal} were read with different settings")
    return records


def first_lines(records: Sequence[SplitRecord]) -> dict[tuple[int, int], int]:
    """How many lines of its file lie before each part, by ordinal of the split and position of the part."""
    lines: Counter[str] = Counter()
    before = {}
    for record in records:
        for position, part in enumerate(record.parts):
            before[record.ordinal, position] = lines[part.source]
            lines[part.source] += part.lines
    return before


def _check_rejects(output: str, records: Sequence[SplitRecord], limit: RejectLimit) -> None:
    rejects, seen = sum(record.rejects for record in records), sum(record.seen for record in records)
    if limit.exceeded(rejects, seen):
        raise RejectLimitError(
            f"{rejects} of {seen} rows were set aside, more than max_rejects={limit} allows; nothing was committed. "
            f"Most frequent: {_causes(output, records)}. All reasons are in "
            f"{filesystems.join(output, STAGING, '*-rejects.parquet')!r}, with lines counted from the start of each "
            "split; repair the input, or raise max_rejects and run again with if_exists 'resume', which keeps the "
            "finished work"
        )


def _causes(output: str, records: Sequence[SplitRecord]) -> str:
    """The most frequent stages and error classes of staged rejects, from the first few files."""
    causes: Counter[tuple[str, str]] = Counter()
    for record in [record for record in records if record.rejects_file][:16]:
        assert record.rejects_file
        data = filesystems.read_bytes(filesystems.join(output, record.rejects_file.path))
        table = pq.read_table(pa.BufferReader(data), columns=["stage", "error"])
        causes.update(zip(table["stage"].to_pylist(), table["error"].to_pylist(), strict=True))
    return ", ".join(f"{error} in stage {stage} ({count})" for (stage, error), count in causes.most_common(3))


def _refuse_other_model(state: OutputState, manifest: Manifest) -> None:
    settings = settings_of(manifest.models)
    state.refuse_other(settings=settings, writer=manifest.writer, reading=manifest.reading)
    before = state.manifest.models if state.manifest else ()
    if settings_of(before) == settings and identity(before) != identity(manifest.models):
        raise OutputExistsError(
            f"{state.output!r} holds an output of another model: its weights or tokenizer differ; set if_exists to "
            "'overwrite' to replace it"
        )


def _warn_of_mixed_precision(manifest: Manifest) -> None:
    """``auto`` lets each machine choose; what is written should say so where they chose differently."""
    for stage in range(len(manifest.models)):
        computes = [compute for compute in manifest.computes if compute["stage"] == stage]
        if len({compute.get("dtype") for compute in computes}) > 1:
            _log.warning(
                "the rows of this output were not all computed alike: %s; set dtype and run again with if_exists "
                "'overwrite' to have all in one precision",
                ", ".join(
                    f"{each.get('dtype')} on {each.get('device')} ({each['splits']} splits)" for each in computes
                ),
            )


def _publish(state: OutputState, records: Sequence[SplitRecord], manifest: Manifest) -> Manifest:
    """Moves files, writes the manifest, removes what is no longer named; in this order."""
    output = state.output
    moves = [
        (source, target)
        for record, placed in zip(records, manifest.records, strict=True)
        for source, target in zip(record.shards, placed.shards, strict=True)
        if source.path != target.path
    ]
    garbage = sorted(path for path in (state.owned - manifest.files) & state.present.keys() if _OURS.fullmatch(path))
    unchanged = state.manifest is not None and _alike(state.manifest, manifest)
    if moves or garbage or not unchanged:
        _note_intent(state, manifest)
    concurrently(lambda move: _place(state, *move), moves)
    before = first_lines(records)
    rejects = concurrently(
        lambda pair: _place_rejects(state, *pair, before), zip(records, manifest.records, strict=True)
    )
    manifest = Manifest(
        tuple(replace(record, rejects_file=file) for record, file in zip(manifest.records, rejects, strict=True))
    )
    if state.manifest != manifest:
        save_manifest(output, manifest)
    leftovers = [path for path in state.present if _TEMPORARY.fullmatch(path)]
    concurrently(lambda path: filesystems.delete(filesystems.join(output, path)), garbage + leftovers)
    if any(path.startswith(f"{STAGING}/") for path in state.present):
        filesystems.delete(filesystems.join(output, STAGING))
    if INTENT in state.present or moves or garbage or not unchanged:
        filesystems.delete(filesystems.join(output, INTENT))
    return manifest


def _note_intent(state: OutputState, manifest: Manifest) -> None:
    intent = {
        "files": sorted(state.owned | manifest.files),
        "settings": settings_of(manifest.models),
        "writer": manifest.writer,
        "reading": manifest.reading,
    }
    if intent != state.intent:
        filesystems.write_bytes(filesystems.join(state.output, INTENT), json.dumps(intent).encode())


def _place(state: OutputState, staged: FileRecord, final: FileRecord) -> None:
    if state.present.get(staged.path) == staged.bytes:
        filesystems.move(filesystems.join(state.output, staged.path), filesystems.join(state.output, final.path))
    elif state.present.get(final.path) != final.bytes or _sha256(state.output, final.path) != final.sha256:
        raise OutputError(
            f"the staged file {staged.path!r} is no longer in {state.output!r}; another job may have written to the "
            "same folder"
        )


def _place_rejects(
    state: OutputState, record: SplitRecord, placed: SplitRecord, before: Mapping[tuple[int, int], int]
) -> FileRecord | None:
    """Writes a split's rejects to their place with the line numbers of the whole file."""
    staged, final = record.rejects_file, placed.rejects_file
    if staged is None or final is None:
        return None
    if staged.path in state.present:
        data = filesystems.read_bytes(filesystems.join(state.output, staged.path))
        if staged.path != final.path:
            table = pq.read_table(pa.BufferReader(data))
            data = parquet_bytes(_with_lines(table, record, before))
            filesystems.write_bytes(filesystems.join(state.output, final.path), data)
    elif final.path in state.present:
        data = filesystems.read_bytes(filesystems.join(state.output, final.path))
    else:
        raise OutputError(f"the staged rejects {staged.path!r} are no longer in {state.output!r}")
    return FileRecord(final.path, staged.rows, len(data), hashlib.sha256(data).hexdigest())


def _with_lines(table: pa.Table, record: SplitRecord, before: Mapping[tuple[int, int], int]) -> pa.Table:
    offsets = pa.array(
        [before[record.ordinal, position] if part.relative else 0 for position, part in enumerate(record.parts)],
        pa.int64(),
    )
    lines = pc.add(table["line"], pc.take(offsets, table[PART]))
    table = table.set_column(table.schema.get_field_index("line"), "line", lines)
    return table.select(REJECTS_SCHEMA.names)


def _alike(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests name the same output; rejects are hashed only once they are in place."""

    def essence(manifest: Manifest) -> list[object]:
        return [
            (record.split, record.ordinal, record.rejects, record.shards, identity(record.models))
            for record in manifest.records
        ]

    return essence(one) == essence(other)


def _sha256(output: str, path: str) -> str:
    digest = hashlib.sha256()
    with filesystems.open_input(filesystems.join(output, path)) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _differing(
    records: Sequence[SplitRecord], key: Callable[[SplitRecord], object]
) -> Iterator[tuple[SplitRecord, SplitRecord]]:
    for record in records[1:]:
        if key(record) != key(records[0]):
            yield records[0], record


def _some(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values[:5]) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
