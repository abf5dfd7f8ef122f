"""What commits remove at their end: all that attempts have left, and nothing that a live job may need."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import replace

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage import conditional, filesystems

from .history import Base, Entry, entry_path, list_entries, load_entry
from .manifest import Manifest
from .records import STAGING, is_placed
from .staging import OutputState, concurrently

__all__ = ["clean", "clean_alone"]

_TEMPORARY = re.compile(r"(_distilbeam(/history)?|_rejects)/\.[^/]+\.tmp")


def clean(state: OutputState, number: int, target: Manifest) -> None:
    """Removes what attempts have left: temporary files, staged splits, and entries that led nowhere.

    Only what lay there when the folder was listed, before the commit had its number, and nothing once there is a later
    number: whatever came later may be of a job that can still commit.
    """
    if max(list_entries(state.output), default=0) > number:
        return

    def remove(paths: Iterable[str]) -> None:
        concurrently(lambda path: filesystems.delete(filesystems.join(state.output, path)), sorted(paths))

    abandoned = _abandoned(state, number)
    # A job that was taken for dead may have placed files since its folder was listed.
    added = {file.path for entry in state.unfinished if entry.commit in abandoned for file in entry.added}
    remove(path for path in added - target.files if is_placed(path))
    remove(_leftovers(state))
    remove(entry_path(entry) for entry in abandoned)
    filesystems.delete_empty(filesystems.join(state.output, STAGING))


def clean_alone(state: OutputState, base: Base, target: Manifest) -> None:
    """Cleans up where there is nothing to commit, under a number of its own, so that no other job commits meanwhile."""
    if not _leftovers(state):
        return
    # Not the job's own id: of two workers that are at this at once, only one may take the number back.
    number, own = state.newest + 1, replace(base, commit=state.commit, job=uuid.uuid4().hex)
    url = filesystems.join(state.output, entry_path(number))
    if conditional.create(url, Entry.of(number, own, target, [], []).to_json()):
        clean(state, number, target)
        filesystems.delete(url)


def _leftovers(state: OutputState) -> list[str]:
    """Staged and temporary files."""
    return [path for path in state.present if path.startswith(f"{STAGING}/") or _TEMPORARY.fullmatch(path)]


def _abandoned(state: OutputState, number: int) -> list[int]:
    """Numbers of entries before a commit, and after the one that it has replaced."""
    base = state.commit
    if number == state.commit:
        if not any(entry < number for entry in state.entries):
            return []
        try:
            base = load_entry(state.output, number).base
        except InputError:
            return []
    return [entry for entry in state.entries if base < entry < number]
