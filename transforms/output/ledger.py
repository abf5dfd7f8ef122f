"""What of a job is done already: the plan against an output, and the begins of work on each split."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distilbeam.transforms.errors import InputError, OutputError, OutputExistsError, SettingsError
from distilbeam.transforms.input.discovery import covers
from distilbeam.transforms.input.limits import plan_splits
from distilbeam.transforms.input.planning import numbered
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.splits import Part, Split
from distilbeam.transforms.storage.filesystems import FileInfo, NoFilesError, join, open_input

from . import attempts
from .agreement import difference
from .folders import concurrently
from .increments import COVERED, Misfit, files_of, holding, is_covered, plan_increment
from .manifest import (
    STAGING,
    FileRecord,
    Manifest,
    PartRecord,
    SplitRecord,
    Statistics,
    agree,
    canonical,
    find_manifest,
    fingerprint,
    identity,
    settings_of,
    without_path,
)
from .precision import check_dtypes, found_dtypes
from .shards import ShardSettings, ShardWriter
from .staging import OutputState, stage_record

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)

_MAX_COVERED = 50_000  # files in one record


@dataclass(frozen=True)
class Ledger:
    """Tells which splits a job has to read, and counts how often work on each was begun.

    ``WriteFeatures.ledger`` makes one, for ``ReadDocuments(ledger=...)``.

    Args:
        output: path or URL of the output folder.
        settings: settings of each stage with a model, in order, as in ``Provenance.models``.
        shards: settings of the writer.
        resume: whether what the output has, staged or committed, is used.
        incremental: whether the output is kept in step with a growing input, file by file.
        since: another output, whose files are passed over as long as they are unchanged.
        overwrite_changed: whether an output of another model or other settings is replaced rather than refused.
        models: gives the identity of each stage's model, as in ``Provenance.models``; asked on a worker, so that a
            model that has changed under its name is noticed before the work begins and not at the commit.
    """

    output: str
    settings: tuple[Mapping[str, Any], ...] = ()
    shards: ShardSettings = ShardSettings()  # noqa: RUF009 - it is frozen
    resume: bool = False
    incremental: bool = False
    since: str | None = None
    overwrite_changed: bool = False
    models: tuple[Callable[[], Mapping[str, Any]], ...] = ()

    @property
    def asked(self) -> list[Any]:
        """The settings that count: the model's name or path does not where its hashes tell which one it is."""
        return [without_path(each) if self.models else dict(each) for each in self.settings]

    def plan(self, settings: ReadSettings) -> list[tuple[Split, bool]]:
        """The splits of the input, each with whether it needs no reading.

        Raises:
            InputError: as ``plan_splits``; also for ``since`` without an output, and for new files whose columns do not
                fit into those of the output.
            OutputExistsError: the output, or that of ``since``, was made by another model or with other settings.
            SettingsError: a limit of rows together with ``incremental`` or ``since``.
        """
        if settings.limit is not None and (self.incremental or self.since is not None):
            raise SettingsError(
                "`limit` reads the first rows alone, which is no state to go on from; leave it out, or `incremental` "
                "and `since`"
            )
        return _Planning(self, settings).plan()

    def check(self, settings: ReadSettings) -> None:
        """Looks whether a job could go on from what the outputs have, and changes nothing.

        Raises:
            InputError, OutputExistsError: as ``plan``.
        """
        if self.resume or self.since is not None:
            _Planning(self, settings, dry=True).check()

    def finished(self, splits: Sequence[Split]) -> Collection[str]:
        """Ids of the splits that need no work; what is staged of them with other settings is forgotten.

        Raises:
            OutputExistsError: the folder holds a complete output made with other settings, of the input as well, or by
                another model.
        """
        if not self.resume:
            return frozenset()
        readings = {split.reading for split in splits}
        found = [_Planning(self, reading) for reading in readings]
        return frozenset(split.id for each in found for split in each.resumed(splits) if split.record)

    def begin(self, split: str) -> int:
        """Notes durably that work on a split begins; how often it was begun and not ended, this time included."""
        return attempts.begin(self.output, split)

    def end(self, split: str) -> None:
        """Notes that work on a split has ended, well or with an error, but not with the process."""
        attempts.end(self.output, split)


class _Planning:
    """One look at the output, and what follows from it."""

    def __init__(self, ledger: Ledger, reading: ReadSettings | str, *, dry: bool = False) -> None:
        self._ledger = ledger
        self._dry = dry  # whether nothing is written or deleted
        self._state = OutputState.read(ledger.output, replace=not ledger.resume)
        if isinstance(reading, ReadSettings) and ledger.resume and self._state.manifest:
            reading = reading.as_made_by(self._state.manifest.reading)
        self._reading = reading
        self._digest = reading if isinstance(reading, str) else reading.digest
        self._anew = False
        self._identities: list[Mapping[str, Any]] | None = None
        self._lock = Lock()

    def check(self) -> None:
        self._splits()

    def plan(self) -> list[tuple[Split, bool]]:
        seen = self._state.commit, self._state.newest
        splits = self._splits()
        dtypes = self._dtypes(splits)
        try:
            check_dtypes(self._ledger.models, dtypes)
        except SettingsError as error:
            self._start_anew(
                OutputExistsError(
                    f"{self._where} holds rows that were computed in {', '.join(filter(None, dtypes))}, in which this "
                    f"worker cannot go on ({error}); go on where it can, or set `if_exists='overwrite'` to replace it "
                    "(`if_changed` where a job recurs)"
                )
            )
            self._anew, dtypes = True, ()
            splits = self._splits()
        return [(replace(split, base=seen, dtypes=dtypes), bool(split.record)) for split in splits]

    @property
    def _where(self) -> str:
        return repr(self._ledger.output if self._state.manifest or not self._ledger.since else self._ledger.since)

    def _dtypes(self, splits: Sequence[Split]) -> tuple[str, ...]:
        """The precision of the rows that the output has, for each stage that leaves it to the worker.

        So that no output holds bfloat16 of one day and float32 of the next.
        """
        if self._anew or all(split.record for split in splits):
            return ()
        made = (self._made if self._ledger.resume else None) or self._earlier
        records = made.records if made else ()
        if not made:
            staged = next(((split.id, split.record) for split in splits if split.record), None)
            records = tuple(self._find(*staged)) if staged else ()
        return found_dtypes(self._ledger.settings, records)

    def _splits(self) -> list[Split]:
        assert isinstance(self._reading, ReadSettings)
        apart = self._ledger.incremental or self._ledger.since is not None
        # A state that is missing is told even where nothing is kept.
        earlier = self._earlier
        if self._anew or (not self._ledger.resume and earlier is None):
            return plan_splits(self._reading, apart=apart)
        made = self._made if self._ledger.resume else None
        base = made or earlier
        if not apart or base is None:
            return self.resumed(plan_splits(self._reading, apart=apart))
        return self._increment(made, earlier, base)

    def resumed(self, splits: Sequence[Split]) -> list[Split]:
        """The splits of a plan that is the same whatever the output has, each with its record if there is one."""
        made = None if self._anew else self._made
        if made is not None and not self._ledger.incremental:
            try:
                self._state.refuse_other_input([split.id for split in splits])
            except OutputExistsError as error:
                self._start_anew(error)
        return self._with_records(splits)

    def _increment(self, made: Manifest | None, earlier: Manifest | None, base: Manifest) -> list[Split]:
        """The splits of a plan that goes on from what there is."""
        assert isinstance(self._reading, ReadSettings)
        if made is not None and earlier is not None and made.input != earlier.input:
            raise OutputExistsError(
                f"{self._ledger.output!r} holds an output of other columns than {self._ledger.since!r}; set "
                "`if_exists='overwrite'` to replace it"
            )
        if not base.input:
            raise OutputExistsError(
                f"{self._ledger.output if made else self._ledger.since!r} was written by an older version, which did "
                "not note the columns of its input; set `if_exists='overwrite'` to start anew"
            )
        records = holding(made.records) if made else []
        lost = {record.name for record in records if not self._find(record.split, record.name)}
        try:
            splits, covered = plan_increment(
                self._reading,
                records,
                base.schema_of_input,
                lost=lost,
                covered=files_of(earlier.records) if earlier else {},
            )
        except NoFilesError as error:
            raise InputError(
                f"{error}; {self._ledger.output!r} stays as it is, since an input without any file is more often out "
                "of sight than empty"
            ) from None
        except Misfit as error:
            if any(record.seen or is_covered(record.split) for record in base.records):
                raise InputError(str(error)) from None
            # There are no rows yet that have the columns of before.
            return self.resumed(plan_splits(self._reading, apart=True))
        if made is not None and earlier is None and self._is_other_input(made, splits):
            return self._with_records(plan_splits(self._reading, apart=True))
        splits = self._with_records(splits)
        if earlier is not None and not self._dry:
            some = (covered[first : first + _MAX_COVERED] for first in range(0, len(covered), _MAX_COVERED))
            splits += [self._cover(earlier, files) for files in some]
        return numbered(splits)

    def _is_other_input(self, made: Manifest, splits: Sequence[Split]) -> bool:
        """Whether the output is that of an input elsewhere; if so, and it is not to be replaced, raises.

        An inbox that others empty may hold other files each time, in the same place.
        """
        assert isinstance(self._reading, ReadSettings)
        before = files_of(made.records)
        if not {part.source for split in splits for part in split.parts}.isdisjoint(before):
            return False
        if any(covers(path, url) for path in self._reading.path for url in before):
            return False
        self._start_anew(
            OutputExistsError(
                f"{self._ledger.output!r} holds the output of another input: none of its {len(before)} files is in "
                "this one or lies where it does; set `if_exists='overwrite'` to replace it, or choose another folder"
            )
        )
        return True

    def _cover(self, earlier: Manifest, files: Sequence[FileInfo]) -> Split:
        """The split that stands for the files that an earlier output has, with its record staged."""
        record = SplitRecord(
            split="",
            ordinal=0,
            splits=1,
            parts=tuple(PartRecord(info.url, 0, 0, size=info.size, version=info.version) for info in files),
            reading=self._digest,
            shards=(),
            rejects_file=None,
            statistics=Statistics(),
            schema=earlier.schema,
            models=tuple({**model, "compute": None} for model in earlier.models),
            writer=self._ledger.shards.as_dict(),
            input=earlier.input,
        )
        digest = hashlib.sha256(json.dumps(record.as_dict(), sort_keys=True).encode()).hexdigest()
        record = replace(record, split=COVERED + digest[: 32 - len(COVERED)])
        if not self._find(record.split, record.name):
            stage_record(self._ledger.output, replace(record, shards=self._stage_empty(record.split, earlier)))
        part = Part(files[0].url, "", files[0].size, files[0].version)
        return Split((part,), 0, 0, earlier.schema_of_input, 0, self._digest, record.name, seen=0)

    def _stage_empty(self, split: str, earlier: Manifest) -> tuple[FileRecord, ...]:
        """A shard without rows and with the columns of an earlier output, in case that nothing is new."""
        ledger = self._ledger
        if not earlier.shards:
            return ()
        schema = pa.schema([])
        if ledger.shards.format == "parquet":
            with open_input(join(str(ledger.since), earlier.shards[0].path)) as file:
                schema = pq.read_schema(file)
        stem = f"{STAGING}/{split}-{uuid.uuid4().hex[:12]}"
        return ShardWriter(ledger.output, stem, schema, ledger.shards).close(empty=True)

    def _with_records(self, splits: Sequence[Split]) -> list[Split]:
        """The splits, those that are finished with their record; staged ones made otherwise are forgotten."""
        if self._dry or not self._ledger.resume:
            return list(splits)
        return concurrently(self._with_record, splits)

    def _with_record(self, split: Split) -> Split:
        if split.record:
            return split
        id = split.id
        if not (name := self._finished(id)):
            return split
        return replace(split, record=name, seen=next((each.seen for each in self._find(id, name)), None))

    def _finished(self, split: str) -> str:
        """Name of the record of a split that can be used; empty if there is none."""
        ledger, writer = self._ledger, self._ledger.shards.as_dict()
        self._state.forget_others(split, settings=ledger.asked, writer=writer)
        names = {record.name for record in self._find(split)}
        if names and ledger.models:
            # The committed record may be of a model that has changed, and a staged one of the model as it is.
            wanted = f"{split}-{fingerprint(split, self._models, writer)}"
            return wanted if wanted in names or self._find(split, wanted) else ""
        if len(names) > 1:
            raise OutputError(
                f"{ledger.output!r} holds a split staged with several models; set `if_exists='overwrite'` to start anew"
            )
        return next(iter(names), "")

    def _find(self, split: str, record: str = "") -> list[SplitRecord]:
        writer, settings = self._ledger.shards.as_dict(), self._ledger.asked
        return self._state.find(split, writer=writer, settings=settings, record=record)

    def _start_anew(self, error: OutputExistsError) -> None:
        """Says why, or raises the error."""
        if not self._ledger.overwrite_changed:
            raise error
        _log.warning("starting anew: %s", str(error).partition("; ")[0])

    @cached_property
    def _made(self) -> Manifest | None:
        """What the output holds, if that can be gone on from."""
        made, ledger = self._state.manifest, self._ledger
        if made is None:
            return None
        try:
            self._state.refuse_other(settings=ledger.asked, writer=ledger.shards.as_dict(), reading=self._digest)
            if self._other_settings(made):
                return None  # an overwrite with the settings of now was cut off in its commit
            if self._other_model(made):
                raise OutputExistsError(
                    f"{ledger.output!r} holds an output of another model: its weights or tokenizer differ; set "
                    "`if_exists='overwrite'` to replace it"
                )
        except OutputExistsError as error:
            self._start_anew(error)
            return None
        return made

    @cached_property
    def _earlier(self) -> Manifest | None:
        """What the output of ``since`` holds, if its files can be passed over."""
        since = self._ledger.since
        if since is None:
            return None
        earlier = find_manifest(since)
        if earlier is None:
            raise InputError(
                f"`since` is {since!r}, which holds no finished output of distilbeam; give the folder of an earlier "
                "run, or leave it out to process all files"
            )
        if earlier.has_first_layout:
            reason = "by an older version of distilbeam, whose settings cannot be compared"
        elif self._other_settings(earlier):
            if earlier.reading != self._digest:
                what = (
                    "of the input (`text`, `keep`, `nulls`, `id`, `separator`, `types`, `columns`, those of CSV, or "
                    "what bounds a line)"
                )
            else:
                what = f"({difference(earlier, self._ledger.asked, self._ledger.shards.as_dict())})"
            reason = f"with other settings {what}"
        elif self._other_model(earlier):
            reason = "by another model: its weights or tokenizer differ"
        else:
            return earlier
        if not self._ledger.overwrite_changed:
            raise OutputExistsError(
                f"the output of `since`, {since!r}, was made {reason}; set `if_changed='overwrite'` to process "
                "all files"
            )
        _log.warning("processing all files, since %r was made %s", since, reason)
        return None

    def _other_settings(self, manifest: Manifest) -> bool:
        ledger = self._ledger
        before = canonical(manifest.writer), manifest.reading
        same = before == (canonical(ledger.shards.as_dict()), self._digest)
        return not (same and agree(settings_of(manifest.models), ledger.asked))

    def _other_model(self, manifest: Manifest) -> bool:
        """Whether weights, tokenizer or configuration differ, which only a worker can tell."""
        return bool(self._ledger.models) and identity(manifest.models) != identity(self._models)

    @property
    def _models(self) -> list[Mapping[str, Any]]:
        with self._lock:
            if self._identities is None:
                self._identities = [model() for model in self._ledger.models]
            return self._identities
