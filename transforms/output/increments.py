"""What a growing input needs beyond what an output has: new and changed files, read into the same columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from distilbeam.transforms.input.column_types import can_cast, holds, reads_as, settled_type, shown_type, shown_types
from distilbeam.transforms.input.formats import jsonl
from distilbeam.transforms.input.formats.base import is_text_type, reading, unify
from distilbeam.transforms.input.formats.compression import open_stream
from distilbeam.transforms.input.formats.lines import BadLine, parse, read_blocks
from distilbeam.transforms.input.planning import UNTYPED, InputFile, cut, find_misfit, list_inputs, look, wanted
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.splits import Part, Split
from distilbeam.transforms.input.text_columns import warn_of_absent
from distilbeam.transforms.storage.filesystems import FileInfo, NoFilesError

from .manifest import PartRecord, SplitRecord

__all__ = ["COVERED", "Changes", "Misfit", "compare", "files_of", "holding", "is_covered", "plan_increment"]

COVERED = "covered"
"""Begins the id of the split that stands for the files whose rows are in an earlier output; others are hexadecimal."""

_SAMPLE_BYTES = 1 << 20


class Misfit(Exception):  # noqa: N818 - the ledger decides whether it is an error
    """A file has columns that do not fit into those of the output; the message says which."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How an output differs from the one before it.

    Attributes:
        files_kept: files of the input that are as they were.
        files_added: files that are new.
        files_replaced: files that have changed.
        files_removed: files that are gone.
        splits_kept: splits that stand as they were written.
        splits_added: splits that were written.
        splits_removed: splits that have left the output.
        splits_redone: splits that were there and were computed again all the same, as where an output is overwritten.
    """

    files_kept: int
    files_added: int
    files_replaced: int
    files_removed: int
    splits_kept: int
    splits_added: int
    splits_removed: int
    splits_redone: int = 0


def is_covered(split: str) -> bool:
    """Whether the split of this id only names files whose rows are in an earlier output."""
    return split.startswith(COVERED)


def holding(records: Iterable[SplitRecord]) -> list[SplitRecord]:
    """The records of splits that were read."""
    return [record for record in records if not is_covered(record.split)]


def files_of(records: Iterable[SplitRecord]) -> dict[str, tuple[int, str]]:
    """Size and version of every file that these records name, covered ones too."""
    return {part.source: (part.size, part.version) for record in records for part in record.parts}


def compare(
    before: Sequence[SplitRecord],
    after: Sequence[SplitRecord],
    since: Sequence[SplitRecord] = (),
    finished: Collection[str] | None = None,
) -> Changes:
    """What has changed from one output to the next.

    Args:
        before: records that the output had.
        after: records that it has now.
        since: records of an earlier output whose files are covered.
        finished: ids of the splits that the run did not have to do; None if that is not known, so that a split counts
            as kept if its files are the same.
    """
    old, new = {**files_of(since), **files_of(before)}, files_of(after)
    kept = sum(old.get(source) == version for source, version in new.items())
    both = len(old.keys() & new.keys())
    was, now = ({record.name: record for record in holding(records)} for records in (before, after))
    same = was.keys() & now.keys()
    if finished is None:
        again = {name for name in same if was[name].shards != now[name].shards}
    else:
        again = {name for name in same if now[name].split not in finished}
    return Changes(
        files_kept=kept,
        files_added=len(new) - both,
        files_replaced=both - kept,
        files_removed=len(old) - both,
        splits_kept=len(same - again),
        splits_added=len(now.keys() - same),
        splits_removed=len(was.keys() - same),
        splits_redone=len(again),
    )


def plan_increment(
    settings: ReadSettings,
    records: Sequence[SplitRecord],
    schema: bytes,
    *,
    lost: Collection[str] = (),
    covered: Mapping[str, tuple[int, str]],
) -> tuple[list[Split], list[FileInfo]]:
    """Splits of the input as it is now, of which those that stand as they were written are not looked into.

    Such a split is kept if all of its files are as they were. All else is read file by file: new and changed files,
    and of unchanged files the ranges that were written together with one that has changed or gone.

    Args:
        settings: what to read and how.
        records: splits of the output.
        schema: Arrow IPC of the schema that they were read with.
        lost: names of records that cannot be kept, since their files are damaged.
        covered: size and version of files that need no reading since an earlier output has them.

    Returns:
        The splits in the order of their files, still without position in the plan; those that are kept have a
        ``record``. And the covered files that are still there as they were.

    Raises:
        NoFilesError: nothing matches, or there are only files of 0 bytes and the output has rows.
        InputError: a file cannot be read.
        Misfit: a file has columns that do not fit into the schema.
    """
    files = {info.url: info for info in list_inputs(settings)}
    if any(record.seen for record in records) and not any(info.size for info in files.values()):
        raise NoFilesError(f"all files of the input are empty, with 0 bytes, such as {min(files)!r}")
    there = [info for url, info in files.items() if _is_same(covered.get(url), info)]
    todo = files.keys() - {info.url for info in there}

    def same(part: PartRecord) -> bool:
        return part.source in todo and _is_same((part.size, part.version), files[part.source])

    kept, dropped = [], []
    for record in records:
        if record.name not in lost and all(map(same, record.parts)):
            kept.append(record)
        else:
            dropped += [part for part in record.parts if same(part)]
    again: dict[str, list[PartRecord]] = {}
    for part in dropped:
        again.setdefault(part.source, []).append(part)
    known = {part.source for record in kept for part in record.parts} | again.keys()
    looked, schemas = look(settings, [files[url] for url in sorted((todo - known) | again.keys())], known=True)
    columns = pa.ipc.read_schema(pa.py_buffer(schema))
    _check_outgrown(columns)
    _check_fit(settings, columns, looked, schemas)
    formats = {file.info.url: file.format for file in looked}
    warn_of_absent(settings, schemas, formats, {name for file in looked for name, _ in file.partitions})
    digest = settings.digest
    partitions = frozenset(columns.names)
    splits = [Split((_first(record),), 0, 0, schema, 0, record=record.name, seen=record.seen) for record in kept]
    for file in looked:
        ranges = again.get(file.info.url)
        pieces = _same_ranges(file, ranges, partitions) if ranges else cut(file, partitions, settings)
        splits += [Split((part,), 0, 0, schema, size, digest) for part, size in pieces]
    return sorted(splits, key=lambda split: (split.parts[0].source, split.parts[0].start)), there


def _is_same(known: tuple[int, str] | None, info: FileInfo) -> bool:
    """Whether a file is as it was; where the store tells no version nobody knows, so it is not."""
    return known == (info.size, info.version) and info.version != ""


def _first(record: SplitRecord) -> Part:
    part = record.parts[0]
    return Part(part.source, "", part.size, part.version, start=part.start, stop=part.stop)


def _same_ranges(
    file: InputFile, ranges: Iterable[PartRecord], partitions: Collection[str]
) -> Iterator[tuple[Part, int]]:
    """The ranges of a file in which it was read before, and their bytes."""
    whole = file.part(partitions)
    rows = max((stop or 0 for _, stop, _ in file.rows), default=0)
    weight = sum(size for _, _, size in file.rows) if rows else file.info.size
    length = rows or file.info.size
    for part in sorted(ranges, key=lambda part: part.start):
        share = (length if part.stop is None else part.stop) - part.start
        yield replace(whole, start=part.start, stop=part.stop), weight * share // max(length, 1)


def _check_fit(
    settings: ReadSettings, columns: pa.Schema, files: Sequence[InputFile], schemas: Sequence[tuple[str, pa.Schema]]
) -> None:
    """Raises Misfit for the first column of the files that cannot be read as the schema has it."""
    looked = {file.info.url: file for file in files}
    for url, schema in schemas:
        for name in wanted(settings, schema.names):
            if name not in columns.names:
                raise _surplus(url, name)
            if not _fits(settings, looked[url], columns.field(name), schema.field(name)):
                tell = looked[url].format != "jsonl"
                found, kind = shown_types(schema.field(name).type, columns.field(name).type, tell=tell)
                raise Misfit(
                    f"column {name!r} is {kind} in the output, but {found} in {url!r}; convert the file, or set "
                    "`if_exists='overwrite'` to start anew, where `types` can give the column a type that suits all "
                    "files and `keep` can leave it out"
                )
    for file in files:
        for name in wanted(settings, [name for name, _ in file.partitions]):
            if name not in columns.names:
                raise _surplus(file.info.url, name)
    if (misfit := find_misfit(files, columns)) is not None:
        url, column = misfit
        raise Misfit(
            f"column {column.name!r} is {shown_type(column.type, tell=False)} in the output, but the value that the "
            f"folders of {url!r} give for it is none; rename the folders, or set `if_exists='overwrite'` to start anew"
        )


def _check_outgrown(columns: pa.Schema) -> None:
    """Raises Misfit for a column of which earlier versions made what new rows may not fit into."""
    for column in columns:
        if holds(column.type, _is_outgrown):
            raise Misfit(
                f"column {column.name!r} is {shown_type(column.type, tell=False)} in the output, as earlier versions "
                f"wrote it, where {shown_type(settled_type(column.type), tell=False)} is needed so that all files open "
                "as one; set `if_exists='overwrite'` to start anew"
            )


def _is_outgrown(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # with indices that tell the categories of one file apart, but hardly of all
        return bool(kind.index_type.bit_width < 32)
    return settled_type(kind) != kind and not pa.types.is_nested(kind)


def _surplus(url: str, name: str) -> Misfit:
    return Misfit(
        f"{url!r} has a column {name!r} that the output does not have; leave it out of the file, or set "
        "`if_exists='overwrite'` to start anew, with it in all rows or with `keep` listing the columns to keep"
    )


def _fits(settings: ReadSettings, file: InputFile, column: pa.Field, found: pa.Field) -> bool:
    if column.name in settings.text:
        return is_text_type(found.type) or pa.types.is_null(found.type) or column.name in settings.types
    if column.name in settings.types:
        return file.format in UNTYPED or can_cast(found.type, column.type)
    if file.format != "jsonl":
        return reads_as(found.type, column.type)
    try:
        return bool(unify([column, found]).type == column.type)
    except pa.ArrowException:
        # Inferred types tell too little: nulls alone pass for strings.
        return _reads_as(file.info.url, file.compression, column, settings)


def _reads_as(url: str, compression: str | None, column: pa.Field, settings: ReadSettings) -> bool:
    """Whether the first lines of JSON have values of this type, or none, in a column."""
    schema = pa.schema([column])
    parser, diagnose = jsonl.parser(schema), jsonl.diagnoser(schema, None)
    with reading(url), open_stream(url, compression, settings.decode_bytes) as stream:
        most = settings.max_line_bytes
        for block in read_blocks(stream, 0, _SAMPLE_BYTES, max_line_bytes=most, block_bytes=_SAMPLE_BYTES):
            if isinstance(block, BadLine):
                continue
            _, _, rejects = parse(jsonl.without_blank(block), parser, diagnose, include_text=False)
            if any(reject.error == "TypeError" for reject in rejects):
                return False
    return True
