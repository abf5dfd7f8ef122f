"""What is in an output folder besides a complete output: staged splits, and what of them can be used again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from distilbeam.transforms.errors import InputError, OutputError, OutputExistsError
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.storage import conditional, filesystems

from .agreement import difference, same, unnamed
from .folders import concurrently, listed, sha256_of
from .history import Base, Entry, load_entry, number_of
from .manifest import (
    MANIFEST,
    MAX_JSON_BYTES,
    STAGING,
    FileRecord,
    Manifest,
    SplitRecord,
    check_size,
    final_record,
    is_placed,
    parse_manifest,
    read_json,
    settings_of,
)
from .shards import ShardSettings

__all__ = ["OutputState", "finished_record", "stage_record"]

_LOOKS = 5

T = TypeVar("T")


def stage_record(output: str, record: SplitRecord) -> None:
    """Notes that a split is staged; written after its files, whole or not at all."""
    url = filesystems.join(output, STAGING, f"{record.name}.json")
    filesystems.write_bytes(url, json.dumps(record.as_dict()).encode())


@dataclass(frozen=True)
class OutputState:
    """An output folder as it is found.

    Attributes:
        output: path or URL of the folder.
        present: bytes of every file, by path below the folder.
        manifest: the committed output, if any.
        version: that of the manifest's file, as ``conditional.read`` gives it.
        entries: numbers of the entries in the history, ascending.
        unfinished: entries that are newer than the manifest, in order: each a commit that was cut off or is under way.
        damaged: whether the manifest, or an entry that is newer, is there and cannot be read.
    """

    output: str
    present: Mapping[str, int]
    manifest: Manifest | None
    version: str | None
    entries: tuple[int, ...]
    unfinished: tuple[Entry, ...]
    damaged: bool = False

    @classmethod
    def read(cls, output: str, *, replace: bool = False) -> OutputState:
        """Looks at a folder, which need not exist.

        Args:
            output: path or URL of the folder.
            replace: whether the output is to be replaced, so that a manifest or an entry that cannot be read is no
                obstacle: it is ``damaged`` then, and all files with names of ours are taken for its.

        Raises:
            InputError: the folder cannot be listed.
            OutputError: it is a file, or its manifest cannot be read.
        """
        for last in (*[False] * (_LOOKS - 1), True):
            try:
                if (state := cls._look(output, last, replace)) is not None:
                    return state
            except InputError as error:
                # It may have changed between the listing and the reading; a store out of reach stays so.
                changed = error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError)
                if last or not changed:
                    raise
        raise AssertionError

    @classmethod
    def _look(cls, output: str, last: bool, replace: bool) -> OutputState | None:
        """What is there, or None if another commit has ended meanwhile, whose files the listing may lack."""
        url = filesystems.join(output, MANIFEST)
        manifest, version = None, None
        damaged = False

        def bear(error: InputError) -> None:
            """Raises it unless it tells of damage to what is to be replaced."""
            gone = last and isinstance(error.__cause__, FileNotFoundError)  # a piece of the manifest
            if not replace or not (gone or error.__cause__ is None):
                raise error

        def load(number: int) -> Entry | None:
            try:
                return load_entry(output, number)
            except InputError as error:
                bear(error)
                return None

        try:
            before = filesystems.file_info(url) if filesystems.exists(url) else None
            if before is not None:
                try:
                    check_size(url, before.size)
                    data, version = conditional.read(url)
                    manifest = parse_manifest(output, data)
                except InputError as error:
                    bear(error)
                    damaged, version = True, conditional.version_of(url)
            found = listed(output)
            if "" in found:
                raise OutputExistsError(f"{output!r} is a file; choose a folder for the output, which need not exist")
            if not last and _version(before) != _version(found.get(MANIFEST)):
                return None
            present = {path: info.size for path, info in found.items()}
            entries = sorted(number for path in present if (number := number_of(path)) is not None)
            newer = [number for number in entries if manifest is None or number > manifest.commit]
            unfinished = concurrently(load, newer)
        except InputError as error:
            if error.__cause__ is not None:  # it could not be read
                raise
            raise OutputError(
                f"{error}; set `if_exists='overwrite'` to replace the output, or choose another folder"
            ) from None
        known = tuple(entry for entry in unfinished if entry is not None)
        damaged = damaged or len(known) < len(unfinished)
        return cls(output, present, manifest, version, tuple(entries), known, damaged)

    @property
    def commit(self) -> int:
        """Number of the commit in the manifest; 0 for none."""
        return self.manifest.commit if self.manifest else 0

    @property
    def newest(self) -> int:
        """Number of the newest commit, finished or not; 0 for none."""
        return max(self.commit, *self.entries[-1:], 0)

    def base(self, job: str) -> Base:
        """What a job that begins now commits on top of."""
        return Base(self.commit, self.newest, job)

    def is_made_by(self, job: str) -> bool:
        """Whether the newest commit, finished or not, is that of a job."""
        if self.newest not in self.entries:
            return False
        try:
            return load_entry(self.output, self.newest).job == job
        except InputError:
            return False

    @property
    def owned(self) -> frozenset[str]:
        """Files that a manifest names, or a commit that was not finished."""
        made = self.manifest.files if self.manifest else frozenset()
        placed = ({file.path for file in entry.added} for entry in self.abandoned)
        lost = filter(is_placed, self.present) if self.damaged else ()
        return made.union(*(entry.files for entry in self.unfinished), *placed, lost)

    @property
    def abandoned(self) -> tuple[Entry, ...]:
        """Entries of commits that another one has replaced, and has not cleaned up after."""
        # No cached_property: until Python 3.12 all folders of a process would wait for this one's store.
        if "_abandoned" not in vars(self):
            older = [number for number in self.entries if number < self.commit]
            try:
                base = load_entry(self.output, self.commit).base if older else 0
                found = concurrently(lambda number: load_entry(self.output, number), [n for n in older if n > base])
            except InputError:
                found = []
            vars(self)["_abandoned"] = tuple(found)
        return tuple(vars(self)["_abandoned"])

    def holds(self, file: FileRecord) -> bool:
        """Whether the file in its place is that of a record; it is read where an unfinished commit leaves it open."""
        if self.present.get(file.path) != file.bytes:
            return False
        return self._digests.get(file.path) == {file.sha256} or sha256_of(self.output, file.path) == file.sha256

    @cached_property
    def _digests(self) -> dict[str, set[str]]:
        """What each file may hold, as manifest and unfinished commits have it."""
        made = self.manifest.shards if self.manifest else ()
        digests: dict[str, set[str]] = {}
        for file in (*made, *(file for entry in self.unfinished for file in entry.added)):
            digests.setdefault(file.path, set()).add(file.sha256)
        return digests

    @property
    def visible(self) -> frozenset[str]:
        """Files that readers of the folder see: no name on their path begins with ``_`` or ``.``."""
        return frozenset(path for path in self.present if not any(name[:1] in "_." for name in path.split("/")))

    def refuse_existing(self, if_exists: str, targets: Mapping[str, int] | None = None) -> None:
        """Checks that a commit may make its files visible here.

        Args:
            if_exists: ``error``, ``overwrite`` or ``resume``.
            targets: bytes of the commit's own files, by path; they may be here already.

        Raises:
            OutputExistsError: it would mix with, or replace, what must stay.
        """
        targets = targets or {}
        ours = {path for path, size in targets.items() if self.present.get(path) == size}
        foreign = sorted(self.visible - ours - self.owned)
        begun = bool(self.unfinished) and bool(self.visible - ours)
        if if_exists == "error" and (self.manifest is not None or begun):
            raise OutputExistsError(
                f"{self.output!r} already holds an output; choose another folder, or set `if_exists='overwrite'` to "
                "replace it or `if_exists='resume'` to finish it"
            )
        if foreign:
            what = f"{len(foreign)} files that are" if len(foreign) > 1 else "1 file that is"
            raise OutputExistsError(
                f"{self.output!r} holds {what} not part of an output of distilbeam, such as {foreign[0]!r}; it "
                "would be read as features, and is never deleted: choose an empty folder, or move away what is there"
            )

    def refuse_other(self, *, settings: Sequence[Any], writer: Mapping[str, Any], reading: str) -> None:
        """Checks that what is committed here was made with these settings, so that it can be resumed.

        Args:
            settings: those of each stage with a model, in order.
            writer: those of the writer.
            reading: digest of those of the input.

        Raises:
            OutputExistsError: it was made with others.
        """
        made = self.manifest
        if made is None:
            return
        if same(made, settings=settings, writer=writer) and made.reading == reading:
            return
        if self.unfinished and self.unfinished[-1].intends(settings, writer, reading):
            return  # an overwrite with these settings was cut off in its commit
        if made.has_first_layout:
            raise OutputExistsError(
                f"{self.output!r} holds an output of an older version of distilbeam, with its files at the top of the "
                "folder; it can be read, and not be gone on with: set `if_exists='overwrite'` to replace it "
                "(`if_changed='overwrite'` where a job recurs), or choose another folder"
            )
        if same(made, settings=settings, writer=writer):
            what = (
                "settings of the input (`text`, `keep`, `nulls`, `id`, `separator`, `types`, `limit`, or what bounds a "
                "line)"
            )
        else:
            what = f"settings ({difference(made, settings, writer)})"
        raise OutputExistsError(
            f"{self.output!r} holds an output made with other {what}, which cannot be gone on with; set "
            "`if_exists='overwrite'` to replace it (`if_changed='overwrite'` where a job recurs), or "
            "choose another folder"
        )

    def refuse_other_input(self, splits: Collection[str]) -> None:
        """Checks that the output that is committed here shares at least one split with a plan.

        Args:
            splits: ids of the plan's splits.

        Raises:
            OutputExistsError: it shares none, so that to go on with it would be to replace it.
        """
        if self.manifest is None or self.unfinished or not self.manifest.records:
            return
        if not {record.split for record in self.manifest.records} & set(splits):
            raise OutputExistsError(
                f"{self.output!r} holds the output of another input, or of other split sizes: none of its "
                f"{len(self.manifest.records)} splits is in this one; set `if_exists='overwrite'` to replace it, or "
                "choose another folder"
            )

    def find(
        self, split: str, *, writer: Mapping[str, Any], settings: Sequence[Any] | None, record: str = ""
    ) -> list[SplitRecord]:
        """Records of a split whose files are all here; the committed one first.

        Args:
            split: id of the split.
            writer: settings of the writer.
            settings: settings of each stage with a model, in order; None for any.
            record: name of the record that is meant; empty for any.
        """
        for candidates in (self._committed.get(split, []), list(self._staged(split).values())):
            named = [each for each in candidates if record in ("", each.name)]
            usable = [each for each in named if same(each, settings=settings, writer=writer)]
            found = [located for each in usable if (located := self._locate(each)) is not None]
            if found:
                return found
        return []

    def forget_others(self, split: str, *, writer: Mapping[str, Any], settings: Sequence[Any]) -> None:
        """Deletes records of a split that was staged with other settings, so that only one can be meant."""
        for name, record in self._staged(split).items():
            if not same(record, settings=settings, writer=writer):
                filesystems.delete(filesystems.join(self.output, name))

    @cached_property
    def _committed(self) -> dict[str, list[SplitRecord]]:
        made = self.manifest
        newest = self.unfinished[-1] if self.unfinished else None
        if made is None or (newest and not newest.intends(unnamed(made), made.writer, made.reading)):
            return {}  # a commit that was cut off was about to replace it
        return _grouped((record.split, record) for record in made.records)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Names of the records of staged splits, by split."""
        names = (path for path in self.present if path.startswith(f"{STAGING}/") and path.endswith(".json"))
        return _grouped((path.rpartition("/")[2].partition("-")[0], path) for path in names)

    def _staged(self, split: str) -> dict[str, SplitRecord]:
        """Records of a staged split, by path."""
        found = {}
        for name in self._names.get(split, []):
            if self.present[name] > MAX_JSON_BYTES:
                continue
            try:
                record = SplitRecord.from_dict(read_json(filesystems.join(self.output, name)))
            except (TypeError, KeyError, ValueError, AttributeError):
                continue  # damaged or of another version: done again
            if record.split == split:
                found[name] = record
        return found

    def _locate(self, record: SplitRecord) -> SplitRecord | None:
        """The record with its files where they are: staged, or in place after a commit that was cut off."""
        placed = final_record(record)
        shards = []
        for staged, final in zip(record.shards, placed.shards, strict=True):
            if staged.path != final.path and self.present.get(staged.path) == staged.bytes:
                shards.append(staged)
            elif self.holds(final):
                shards.append(final)
            else:
                return None
        rejects: FileRecord | None = None
        if record.rejects_file is not None and placed.rejects_file is not None:
            if self.present.get(record.rejects_file.path) == record.rejects_file.bytes:
                rejects = record.rejects_file
            elif record.rejects_file.path != placed.rejects_file.path and placed.rejects_file.path in self.present:
                rejects = placed.rejects_file  # the commit rewrites rejects, so their size may have changed
            else:
                return None
        return replace(record, shards=tuple(shards), rejects_file=rejects)


def finished_record(state: OutputState, provenance: Provenance, shards: ShardSettings) -> SplitRecord:
    """The record of a split that was found finished, at its place in the present plan.

    Raises:
        OutputError: there is none, or there are several and the batch does not say which model is meant.
    """
    settings = settings_of(provenance.models) or None
    records = state.find(provenance.split, settings=settings, writer=shards.as_dict(), record=provenance.record)
    if not records:
        raise OutputError(
            f"split {provenance.ordinal} was found finished in {state.output!r} when the job began, but its files are "
            "no longer there; another job may be writing to the same folder"
        )
    if len({record.fingerprint for record in records}) > 1:
        raise OutputError(
            f"{state.output!r} holds split {provenance.ordinal} staged with several models; set "
            "`if_exists='overwrite'` to start anew"
        )
    return replace(records[0], ordinal=provenance.ordinal, splits=provenance.splits, base=provenance.base)


def _version(info: filesystems.FileInfo | None) -> tuple[int, str] | None:
    return (info.size, info.version) if info else None


def _grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
