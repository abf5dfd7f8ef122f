"""The commit: staged splits become one complete output, named by a manifest that is written last.

An entry in the history is created before anything becomes visible, and only one job can create it: it decides between
two jobs on one output, and names what may be seen until the manifest names it. Then files that are to go are deleted,
new ones are moved to their place, and the manifest is written on the condition that it is still the one that was read.
Every step may be cut off and done again, by the same job or by the next one.

What is removed, and when: each commit ends by removing all that lay staged when it began (splits, rejects and attempts,
also those of jobs that died), hidden temporary files and entries of commits that were never finished. Files in the
output itself are deleted before new ones come, if the manifest or an unfinished entry names them and the new output
does not. Nothing else is ever deleted.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distilbeam.transforms.errors import InputError, OutputError, OutputExistsError
from distilbeam.transforms.rejects import REJECTS_SCHEMA, RejectLimit
from distilbeam.transforms.storage import filesystems

from .accounting import (
    check_records,
    check_rejects,
    first_lines,
    warn_of_mixed_precision,
    warn_of_unread_keys,
    without_empty_shards,
)
from .claims import Claim, other_job
from .cleaning import clean, clean_alone
from .folders import concurrently, listed, sha256_of
from .history import Base, is_superseded, list_entries, load_entry
from .manifest import Manifest, find_manifest
from .records import (
    FEATURES,
    STAGING,
    FileRecord,
    SplitRecord,
    agree,
    final_record,
    identity,
    is_placed,
    settings_of,
    without_path,
)
from .shards import parquet_bytes
from .staging import OutputState

__all__ = ["PART", "begin", "commit", "was_overtaken"]

_log = logging.getLogger(__name__)

PART = "_part"
"""Column of staged rejects with the position of the part inside the split; not in the output."""


def begin(output: str, if_exists: str, job: str | None = None) -> Base:
    """Looks at the output folder before any work is done.

    An unfinished first commit is no output yet: this may be the job that a runner has started again. The commit looks
    whether it leads to the same output. Nor is the job's own commit refused, which a runner may have lost the reply of.

    Args:
        output: path or URL of the folder.
        if_exists: ``error``, ``overwrite`` or ``resume``.
        job: what tells this job from all others, the same however often a runner begins it; None for a new job.

    Raises:
        OutputExistsError: the folder holds what must stay.
        InputError, OutputError: it cannot be read, or holds something damaged.
    """
    state = OutputState.read(output, replace=if_exists == "overwrite")
    if state.damaged:
        _log.warning(
            "what %r says of its output cannot be read; all files with names of an output are replaced at the commit",
            output,
        )
    staged = sum(path.startswith(f"{STAGING}/") and path.endswith(".json") for path in state.present)
    if staged and if_exists != "resume":
        _log.warning(
            "%r holds %d finished splits of a job that did not end, which this one does not use; to go on from them, "
            "stop it and run it with `if_exists='resume'`",
            output,
            staged,
        )
    job = job or uuid.uuid4().hex
    state.refuse_existing(if_exists if state.manifest and not state.is_made_by(job) else "resume")
    return state.base(job)


def was_overtaken(output: str, base: Base) -> bool:
    """Whether another job has begun or made a commit since a job began that has not come to its own yet."""
    newest = list_entries(output)[-1:]
    if newest and newest[0] > base.newest:
        return True
    manifest = find_manifest(output)
    return manifest is not None and manifest.commit != base.commit


def commit(
    output: str,
    records: Sequence[SplitRecord],
    *,
    if_exists: str = "error",
    limit: RejectLimit | None = None,
    base: Base | None = None,
) -> Manifest:
    """Makes staged splits visible as one output.

    Args:
        output: path or URL of the folder.
        records: one record for each split of the plan, in any order.
        if_exists: what to do with an output that is there already: ``error``, ``overwrite`` or ``resume``.
        limit: how many rejects are allowed; None for any number.
        base: what ``begin`` found at the start of the job; None if the job begins now. What the plan of the records
            saw counts as well.

    Raises:
        OutputError: the records are not one complete plan, a file cannot be placed, or another job has committed
            meanwhile. In the last case nothing of this job stays visible.
        OutputExistsError: the folder holds what must stay.
        RejectLimitError: there are too many rejects. Nothing has become visible.
    """
    records = without_empty_shards(check_records(records))
    target = Manifest(tuple(final_record(record) for record in records))
    if len(target.files) < sum(len(record.files) for record in target.records):
        raise OutputError("two splits have the same file names; set `max_shard_bytes` to another value and run again")
    state = OutputState.read(output, replace=if_exists == "overwrite")
    # What the plan found finished, or did not find, was so when it looked, which may be before the job's own look.
    base = (base or state.base(uuid.uuid4().hex)).earliest(*(record.base for record in records))
    if _is_overtaken(state, base, target):
        raise other_job(output)
    check_rejects(output, records, limit or RejectLimit())
    if if_exists != "error" or state.manifest is None or state.manifest.digest != target.digest:
        state.refuse_existing(if_exists, {shard.path: shard.bytes for shard in target.shards})
    if if_exists == "resume":
        _refuse_other_model(state, target)
    warn_of_mixed_precision(target)
    warn_of_unread_keys(output, target)
    try:
        return _publish(state, base, records, target)
    except (InputError, OutputError) as error:
        # The same commit may run twice at once, as runners do, and the other one may have been quicker.
        now = OutputState.read(output, replace=if_exists == "overwrite")
        if _is_overtaken(now, base, target):
            raise other_job(output) from error
        if now.manifest is None or now.unfinished or now.manifest.digest != target.digest:
            raise
        _log.warning("the output is complete, but not all is as it should be: %s", error)
        return now.manifest


def _is_overtaken(state: OutputState, base: Base, target: Manifest) -> bool:
    """Whether the newest commit is neither the one that the job began with, nor its own, nor one that it finishes."""
    if (state.commit, state.newest) == base.seen:
        return False
    try:
        entry = state.unfinished[-1] if state.unfinished else load_entry(state.output, state.newest)
    except InputError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, FileNotFoundError):
            raise  # the store is out of reach
        return True
    return entry.target != target.digest or (entry.job != base.job and entry.commit != base.newest)


def _refuse_other_model(state: OutputState, manifest: Manifest) -> None:
    settings = [without_path(each) for each in settings_of(manifest.models)]  # its model is compared by hashes below
    state.refuse_other(settings=settings, writer=manifest.writer, reading=manifest.reading)
    before = state.manifest.models if state.manifest else ()
    if agree(settings_of(before), settings) and identity(before) != identity(manifest.models):
        raise OutputExistsError(
            f"{state.output!r} holds an output of another model: its weights or tokenizer differ; set "
            "`if_exists='overwrite'` to replace it"
        )


def _publish(state: OutputState, base: Base, records: Sequence[SplitRecord], target: Manifest) -> Manifest:
    """Claims a number, deletes, moves, writes the manifest, cleans up; in this order."""
    output = state.output
    if state.manifest is not None and _is_complete(state, target):
        clean_alone(state, base, target)
        return state.manifest
    _check_staged(state, records, target)
    claim = Claim.of(state, base, target, _garbage(state, target))
    try:
        manifest = _replace(claim, records)
    except (InputError, OutputError) as error:
        if is_superseded(output, claim.number):
            claim.withdraw()
            raise other_job(output) from error
        raise
    clean(state, claim.number, target)
    return manifest


def _replace(claim: Claim, records: Sequence[SplitRecord]) -> Manifest:
    """Puts the new output in place of the old one, the manifest last."""
    output, target = claim.output, claim.target
    # Once more: another job may have placed files until the fence, or cleaned up.
    state = OutputState.read(output, replace=True)
    _check_staged(state, records, target)
    garbage = _garbage(state, target)

    def delete(path: str) -> None:
        claim.check()
        filesystems.delete(filesystems.join(output, path))

    concurrently(delete, garbage)
    if garbage:
        _sync(output)  # so that no power cut brings them back beside the new ones
    moves = [
        (source, final)
        for record, placed in zip(records, target.records, strict=True)
        for source, final in zip(record.shards, placed.shards, strict=True)
        if source.path != final.path
    ]

    def place(move: tuple[FileRecord, FileRecord]) -> None:
        claim.check()
        _place(state, *move)

    concurrently(place, moves)
    _sync(output)  # the manifest must not outlive what it names
    before = first_lines(records)

    def place_rejects(pair: tuple[SplitRecord, SplitRecord]) -> FileRecord | None:
        if pair[0].rejects_file is not None:
            claim.check()
        return _place_rejects(state, *pair, before)

    rejects = concurrently(place_rejects, zip(records, target.records, strict=True))
    placed = [replace(record, rejects_file=file) for record, file in zip(target.records, rejects, strict=True)]
    manifest = replace(target, records=tuple(placed), commit=claim.number)
    claim.check()
    _check_placed(output, manifest)
    claim.save(manifest)
    return manifest


def _sync(output: str) -> None:
    """Makes the names of the shards, and of their folder, last through a power cut."""
    for folder in (filesystems.join(output, FEATURES), output):
        filesystems.sync(folder)


def _is_complete(state: OutputState, target: Manifest) -> bool:
    """Whether the output is what the commit leads to, with all files, and no other commit is under way."""
    made = state.manifest
    return (
        made is not None
        and made.digest == target.digest
        and not state.unfinished
        and all(state.present.get(file.path) == file.bytes for record in made.records for file in record.files)
    )


def _check_staged(state: OutputState, records: Sequence[SplitRecord], target: Manifest) -> None:
    """Raises OutputError unless every file is staged or in its place, whole; before anything is deleted."""
    for record, placed in zip(records, target.records, strict=True):
        for staged, final in zip(record.shards, placed.shards, strict=True):
            if state.present.get(staged.path) != staged.bytes and not state.holds(final):
                raise _lost(state.output, staged)
        staged_rejects, rejects = record.rejects_file, placed.rejects_file
        if staged_rejects and rejects and not {staged_rejects.path, rejects.path} & state.present.keys():
            raise _lost(state.output, staged_rejects)


def _lost(output: str, file: FileRecord) -> OutputError:
    return OutputError(
        f"the file {file.path!r} is no longer in {output!r}, or not whole; another job may have written to the same "
        "folder: run again with `if_exists='resume'`"
    )


def _garbage(state: OutputState, target: Manifest) -> list[str]:
    """Files of ours that the new output does not have, or has with other bytes.

    They go before any new file comes, so that no reader sees a row twice.
    """
    shards = {shard.path: shard for shard in target.shards}
    return sorted(
        path
        for path in state.owned & state.present.keys()
        if is_placed(path) and not (state.holds(shards[path]) if path in shards else path in target.files)
    )


def _check_placed(output: str, manifest: Manifest) -> None:
    """Raises OutputError unless all that the manifest names is there, so that none is written that lies."""
    there = listed(output)
    for record in manifest.records:
        for file in record.files:
            if file.path not in there or there[file.path].size != file.bytes:
                raise _lost(output, file)


def _place(state: OutputState, staged: FileRecord, final: FileRecord) -> None:
    if state.present.get(staged.path) != staged.bytes:
        return  # it is in its place
    try:
        filesystems.move(filesystems.join(state.output, staged.path), filesystems.join(state.output, final.path))
    except OutputError:
        if not _is_placed(state.output, final):
            raise


def _is_placed(output: str, file: FileRecord) -> bool:
    try:
        return sha256_of(output, file.path) == file.sha256
    except InputError:
        return False


def _place_rejects(
    state: OutputState, record: SplitRecord, placed: SplitRecord, before: Mapping[tuple[int, int], int]
) -> FileRecord | None:
    """Writes a split's rejects to their place with the line numbers of the whole file."""
    staged, final = record.rejects_file, placed.rejects_file
    if staged is None or final is None:
        return None
    url = filesystems.join(state.output, final.path)
    if staged.path == final.path or staged.path not in state.present:
        data = filesystems.read_bytes(url)
        if _count_rows(data) != staged.rows:
            raise _lost(state.output, final)
    else:
        table = pq.read_table(pa.BufferReader(filesystems.read_bytes(filesystems.join(state.output, staged.path))))
        data = parquet_bytes(_with_lines(table, record, before))
        filesystems.write_bytes(url, data)
    return FileRecord(final.path, staged.rows, len(data), hashlib.sha256(data).hexdigest())


def _count_rows(data: bytes) -> int:
    """Rows of a Parquet file; -1 if it is none."""
    try:
        rows: int = pq.read_metadata(pa.BufferReader(data)).num_rows
    except pa.ArrowException:
        return -1
    return rows


def _with_lines(table: pa.Table, record: SplitRecord, before: Mapping[tuple[int, int], int]) -> pa.Table:
    offsets = pa.array(
        [before[record.ordinal, position] if part.relative else 0 for position, part in enumerate(record.parts)],
        pa.int64(),
    )
    lines = pc.add(table["line"], pc.take(offsets, table[PART]))
    table = table.set_column(table.schema.get_field_index("line"), "line", lines)
    return table.select(REJECTS_SCHEMA.names)
