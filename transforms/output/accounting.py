"""Whether the records of splits are one complete plan, and how many rows may be missing from the output."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from distilbeam.transforms.errors import OutputError, RejectLimitError
from distilbeam.transforms.rejects import RejectLimit, told_cause
from distilbeam.transforms.storage import filesystems

from .losses import lost_rows
from .manifest import Manifest
from .records import STAGING, SplitRecord, identity

__all__ = [
    "check_records",
    "check_rejects",
    "first_lines",
    "warn_of_mixed_precision",
    "warn_of_unread_keys",
    "without_empty_shards",
]

_log = logging.getLogger(__name__)

_ONE_PLAN = (
    "nothing was committed. Each ReadDocuments makes a plan of its own: read all files by one with a list of paths, or "
    "write each to its own folder"
)


def check_records(records: Sequence[SplitRecord]) -> list[SplitRecord]:
    """The records in the order of the plan, if they are one complete plan.

    Raises:
        OutputError: a split is missing or doubled, lost rows, or differs from the others in schema, models, or settings
            of the writer or the input.
    """
    if not records:
        raise OutputError("no batch reached WriteFeatures, so there is nothing to commit; the input may be empty")
    records = sorted(_numbered(records), key=lambda record: record.ordinal)
    sizes = sorted({record.splits for record in records})
    if len(sizes) > 1:
        raise OutputError(f"batches of several plans were mixed: plans of {_some(sizes)} splits; {_ONE_PLAN}")
    counts = Counter(record.ordinal for record in records)
    missing = [ordinal for ordinal in range(sizes[0]) if ordinal not in counts]
    if missing:
        raise OutputError(
            f"{len(missing)} of {sizes[0]} splits did not arrive complete: {_some(missing)}; nothing was committed. A "
            "step between reading and writing may drop batches"
        )
    doubled = [ordinal for ordinal, count in counts.items() if count > 1]
    if len({(record.ordinal, record.split) for record in records}) > len(counts):
        raise OutputError(f"batches of several plans of {sizes[0]} splits were mixed; {_ONE_PLAN}")
    if doubled:
        raise OutputError(
            f"{len(doubled)} of {sizes[0]} splits arrived more than once: {_some(doubled)}; nothing was committed. A "
            "step between reading and writing may double batches, such as a Flatten of one PCollection with itself"
        )
    unknown = [ordinal for ordinal in counts if not 0 <= ordinal < sizes[0]]
    if unknown:
        raise OutputError(f"splits {_some(unknown)} are not in a plan of {sizes[0]} splits")
    for record in records:
        if record.seen + record.added != record.rows + record.rejects + record.dropped:
            raise OutputError(
                f"split {record.ordinal} read {record.seen} rows, but {record.rows} were written and {record.rejects} "
                f"set aside, and steps in between have dropped {record.dropped} and added {record.added}; nothing was "
                "committed, since rows are missing or doubled that nothing accounts for"
            )
    written = [record for record in records if record.rows]
    for first, record in _differing(written, lambda record: record.schema):
        columns = sorted({name for name, _ in set(first.schema) ^ set(record.schema)}) or ["their order"]
        raise OutputError(f"splits {first.ordinal} and {record.ordinal} have different columns: {_some(columns)}")
    modelled = [record for record in records if record.rows or record.models]
    for first, record in _differing(modelled, lambda record: identity(record.models)):
        raise OutputError(
            f"splits {first.ordinal} and {record.ordinal} were made by different models or settings; set "
            "`if_exists='overwrite'` to start anew"
        )
    for first, record in _differing(records, lambda record: record.writer):
        raise OutputError(f"splits {first.ordinal} and {record.ordinal} were written with different settings")
    for first, record in _differing(records, lambda record: record.reading):
        raise OutputError(f"splits {first.ordinal} and {record.ordinal} were read with different settings")
    return records


def _numbered(records: Sequence[SplitRecord]) -> Sequence[SplitRecord]:
    """The records, those of ``UnitWriter`` as one plan in the order of their ids.

    Raises:
        OutputError: some are units, and some are not.
    """
    units = sorted((record for record in records if not record.splits), key=lambda record: record.split)
    if not units:
        return records
    if len(units) < len(records):
        raise OutputError(
            "batches of ReadDocuments and others came to one WriteFeatures; write each kind to its own folder"
        )
    return [replace(record, ordinal=ordinal, splits=len(units)) for ordinal, record in enumerate(units)]


def without_empty_shards(records: Sequence[SplitRecord]) -> list[SplitRecord]:
    """The records without shards that have no rows; an output without rows keeps one, which tells its columns."""
    rows = any(record.rows for record in records)
    kept = None if rows else next((shard for record in records for shard in record.shards), None)
    return [
        replace(record, shards=tuple(shard for shard in record.shards if shard.rows or shard is kept))
        for record in records
    ]


def first_lines(records: Sequence[SplitRecord]) -> dict[tuple[int, int], int]:
    """How many lines of its file lie before each part, by ordinal of the split and position of the part."""
    lines: Counter[str] = Counter()
    before = {}
    for record in records:
        for position, part in enumerate(record.parts):
            before[record.ordinal, position] = lines[part.source]
            lines[part.source] += part.lines
    return before


def check_rejects(output: str, records: Sequence[SplitRecord], limit: RejectLimit) -> None:
    """Raises RejectLimitError if more rows were set aside than the limit allows; names the most frequent causes."""
    rejects, seen = sum(record.rejects for record in records), sum(record.seen for record in records)
    losses = lost_rows(records)
    if losses.unknown is not None and limit.fraction is not None:
        raise RejectLimitError(
            f"{losses.unknown!r} is damaged, and nothing tells how many rows it has lost, so they are within no share "
            f"of {limit}; nothing was committed. Repair the file, or set `max_rejects` to a number of rows or to none "
            "and run again with `if_exists='resume'`, which keeps the finished work"
        )
    rejects, seen = rejects + losses.rows, seen + losses.rows
    if limit.exceeded(rejects, seen):
        told = f", about {losses.rows} of them lost in damaged files" if losses.rows else ""
        raise RejectLimitError(
            f"{rejects} of {seen} rows were set aside{told}, more than the {limit} that `max_rejects` allows; nothing "
            f"was committed. Most frequent: {_causes(output, records)}. All reasons are in "
            f"{filesystems.join(output, STAGING, '*-rejects.parquet')!r}{_cure(records)}"
        )


def _cure(records: Sequence[SplitRecord]) -> str:
    if not any(part.source for record in records for part in record.parts):
        return "; repair the rows, or raise `max_rejects`"  # rows from anywhere, of which none is kept
    return (
        ", with lines counted from the start of each split; repair the input, or raise `max_rejects` and run again "
        "with `if_exists='resume'`, which keeps the finished work"
    )


def _causes(output: str, records: Sequence[SplitRecord]) -> str:
    """The most frequent stages and error classes of staged rejects, each with a reason, from the first few files."""
    causes: Counter[tuple[str, str]] = Counter()
    reasons: dict[tuple[str, str], str] = {}
    for record in [record for record in records if record.rejects_file][:16]:
        assert record.rejects_file
        data = filesystems.read_bytes(filesystems.join(output, record.rejects_file.path))
        table = pq.read_table(pa.BufferReader(data), columns=["stage", "error", "reason"])
        for stage, error, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
            causes[stage, error] += 1
            reasons.setdefault((stage, error), reason)
    return "; ".join(told_cause(*cause, count, reasons[cause]) for cause, count in causes.most_common(3))


def warn_of_mixed_precision(manifest: Manifest) -> None:
    """``auto`` lets each machine choose; what is written should say so where they chose differently."""
    for stage in range(len(manifest.models)):
        computes = [compute for compute in manifest.computes if compute["stage"] == stage]
        if len({compute.get("dtype") for compute in computes}) > 1:
            _log.warning(
                "the rows of this output were not all computed alike: %s; set `dtype` and run again with "
                "`if_exists='overwrite'` to have all in one precision",
                ", ".join(
                    f"{each.get('dtype')} on {each.get('device')} ({each['splits']} splits)" for each in computes
                ),
            )


def warn_of_unread_keys(output: str, manifest: Manifest) -> None:
    """What the plan had not met is not in the output, which should be said; the names are data, so not in a log."""
    if manifest.unread:
        _log.warning(
            "%d keys of JSON objects are no columns of the output, since the plan had not met them; the manifest in %r "
            "names them as unread; to read them give their types with `types`, or list the columns to keep",
            *(len(manifest.unread), output),
        )


def _differing(
    records: Sequence[SplitRecord], key: Callable[[SplitRecord], object]
) -> Iterator[tuple[SplitRecord, SplitRecord]]:
    for record in records[1:]:
        if key(record) != key(records[0]):
            yield records[0], record


def _some(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values[:5]) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
