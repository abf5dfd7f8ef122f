"""The history of an output: one entry for each commit, created before anything of the commit becomes visible.

``OUT/_distilbeam/history/000001.json`` is entry 1. Of two jobs that reach for the same number only one can create its
entry, so entries decide who commits. An entry that is newer than the manifest is an unfinished commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from distilbeam import __version__
from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage import filesystems

from .manifest import Manifest, check_size
from .records import FileRecord, agree, canonical, is_count, is_placed, settings_of

__all__ = ["HISTORY", "Base", "Entry", "entry_path", "is_superseded", "list_entries", "load_entry", "number_of"]

HISTORY = "_distilbeam/history"
VERSION = 1
_MAX_INDENTED = 50_000  # files; blanks would take a fifth of an entry with more
_NAME = re.compile(rf"{HISTORY}/(\d{{6,12}})\.json")


@dataclass(frozen=True, slots=True)
class Base:
    """What a job found when it began, to tell at its end whether another job has committed meanwhile.

    Attributes:
        commit: number of the commit in the manifest; 0 for none.
        newest: number of the newest entry, finished or not; 0 for none.
        job: what tells this run of the job from all others.
    """

    commit: int
    newest: int
    job: str

    @property
    def seen(self) -> tuple[int, int]:
        """``commit`` and ``newest``, which only grow."""
        return self.commit, self.newest

    def earliest(self, *seen: tuple[int, int] | None) -> Base:
        """The base of a job of which other parts have looked too, each at a time of its own."""
        commit, newest = min([self.seen, *filter(None, seen)])
        return replace(self, commit=commit, newest=newest)


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit.

    Attributes:
        commit: its number, from 1.
        base: number of the commit that it replaces, as the manifest had it; 0 for none. Numbers in between belong to
            commits that were never finished.
        job: ``Base.job`` of the job that made it.
        time: when it was begun, in UTC, as ISO 8601.
        distilbeam: version of distilbeam.
        target: digest of the output that it leads to, as ``digest_of``.
        settings: settings of each stage with a model.
        writer: settings of the writer.
        reading: digest of the settings of the input.
        added: files that the manifest before it did not have, or had with other bytes.
        removed: paths of files that are to go.
        rows: rows of the whole output.
        rejects: rows set aside.
        splits: splits of the whole output.
    """

    commit: int
    base: int
    job: str
    time: str
    distilbeam: str
    target: str
    settings: tuple[Any, ...]
    writer: dict[str, Any]
    reading: str
    added: tuple[FileRecord, ...]
    removed: tuple[str, ...]
    rows: int
    rejects: int
    splits: int

    @classmethod
    def of(
        cls, commit: int, base: Base, manifest: Manifest, added: Iterable[FileRecord], removed: Iterable[str]
    ) -> Entry:
        """The entry of a commit that begins now."""
        return cls(
            commit=commit,
            base=base.commit,
            job=base.job,
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            distilbeam=__version__,
            target=manifest.digest,
            settings=tuple(settings_of(manifest.models)),
            writer=canonical(manifest.writer),
            reading=manifest.reading,
            added=tuple(added),
            removed=tuple(removed),
            rows=manifest.rows,
            rejects=manifest.rejects,
            splits=len(manifest.records),
        )

    @property
    def files(self) -> frozenset[str]:
        """Paths of all files that it may have made visible or is about to remove."""
        return frozenset(file.path for file in self.added) | frozenset(self.removed)

    def intends(self, settings: Sequence[Any], writer: Any, reading: str) -> bool:
        """Whether its output was made with these settings."""
        return agree(self.settings, settings) and (self.writer, self.reading) == (canonical(writer), reading)

    def to_json(self) -> bytes:
        """The entry as JSON."""
        indent = None if len(self.added) + len(self.removed) > _MAX_INDENTED else 1
        return (json.dumps({"version": VERSION, **asdict(self)}, indent=indent) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Entry:
        """The inverse of ``to_json``.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, RecursionError: it is not an entry of this version.
        """
        fields = json.loads(data)
        if fields.pop("version") != VERSION:
            raise ValueError("another version")
        fields["added"] = tuple(FileRecord(**file) for file in fields["added"])
        fields["removed"], fields["settings"] = tuple(fields["removed"]), tuple(fields["settings"])
        entry = cls(**fields)
        for file in entry.added:
            file.check()
        if not (
            all(map(is_count, (entry.commit, entry.base, entry.rows, entry.rejects, entry.splits)))
            and entry.base < entry.commit
            and all(isinstance(text, str) for text in (entry.job, entry.time, entry.distilbeam, entry.target))
            and isinstance(entry.reading, str)
            and isinstance(entry.writer, dict)
            and all(is_placed(path) for path in entry.files)
        ):
            raise ValueError("not an entry")
        return entry


def entry_path(commit: int) -> str:
    """Path of an entry from the output folder."""
    return f"{HISTORY}/{commit:06d}.json"


def number_of(path: str) -> int | None:
    """The number in the path of an entry; None if it is not one."""
    match = _NAME.fullmatch(path)
    number = int(match[1]) if match else None
    return number if number and entry_path(number) == path else None


def list_entries(output: str) -> list[int]:
    """Numbers of the entries of an output folder, ascending.

    Raises:
        InputError: the folder cannot be listed.
    """
    _, root = filesystems.resolve(filesystems.join(output, HISTORY))
    paths = (filesystems.resolve(info.url)[1] for info in filesystems.list_files(filesystems.join(output, HISTORY)))
    numbers = (number_of(f"{HISTORY}/{path.removeprefix(root).lstrip('/')}") for path in paths)
    return sorted(number for number in numbers if number is not None)


def is_superseded(output: str, commit: int) -> bool:
    """Whether a later commit has begun since this one took its number, or has ended and removed its entry.

    Raises:
        InputError: the store cannot be reached.
    """
    own, later = (filesystems.join(output, entry_path(number)) for number in (commit, commit + 1))
    return filesystems.exists(later) or not filesystems.exists(own)


def load_entry(output: str, commit: int) -> Entry:
    """An entry of the history.

    Raises:
        InputError: there is none, or it is damaged, of another version or cannot be read.
    """
    url = filesystems.join(output, entry_path(commit))
    check_size(url, filesystems.file_info(url).size)
    try:
        entry = Entry.from_json(filesystems.read_bytes(url))
        if entry.commit != commit:
            raise ValueError("another number")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{url!r} is no entry of a history that this version of distilbeam can read ({type(error).__name__}); it "
            "may be damaged or written by a newer version"
        ) from None
    return entry
