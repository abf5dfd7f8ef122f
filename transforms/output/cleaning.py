"""What commits remove at their end: all that attempts have left, and nothing that a live job may need."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace

from distilbeam.transforms.storage import conditional, filesystems

from .folders import concurrently
from .history import Base, Entry, entry_path, is_superseded
from .manifest import Manifest
from .pieces import piece_number
from .records import REJECTS, STAGING, is_placed
from .staging import OutputState

__all__ = ["clean", "clean_alone"]

_TEMPORARY = re.compile(r"(_distilbeam(/history|/manifest)?|_rejects)/\.[^/]+\.tmp")


def clean(state: OutputState, number: int, target: Manifest, kept: int | None = None) -> None:
    """Removes what attempts have left: temporary files, staged splits, entries that led nowhere, old pieces.

    Only what lay there when the folder was listed, before the commit had its number, and nothing once there is a later
    number: whatever came later may be of a job that can still commit.

    Args:
        state: the folder as it was found.
        number: of the commit, under which it is cleaned.
        target: the output.
        kept: number of the commit whose manifest stands; ``number`` by default.
    """

    def remove(path: str) -> None:
        if not is_superseded(state.output, number):
            filesystems.delete(filesystems.join(state.output, path))

    abandoned = [*state.abandoned, *(entry for entry in state.unfinished if entry.commit < number)]
    # A job that was taken for dead may have placed files since its folder was listed.
    added = {file.path for entry in abandoned for file in entry.added}
    concurrently(remove, sorted(path for path in added - target.files if is_placed(path)))
    concurrently(remove, _leftovers(state, target, number if kept is None else kept))
    # Last, for the next run needs them if this one is cut off.
    concurrently(remove, [entry_path(entry.commit) for entry in abandoned])
    filesystems.delete_empty(filesystems.join(state.output, STAGING))


def clean_alone(state: OutputState, base: Base, target: Manifest) -> None:
    """Cleans up where there is nothing to commit, under a number of its own, so that no other job commits meanwhile."""
    if not _leftovers(state, target, state.commit) and not state.abandoned:
        return
    # Not the job's own id: of two workers that are at this at once, only one may take the number back.
    number, own = state.newest + 1, replace(base, commit=state.commit, job=uuid.uuid4().hex)
    url = filesystems.join(state.output, entry_path(number))
    if conditional.create(url, Entry.of(number, own, target, [], []).to_json()):
        clean(state, number, target, kept=state.commit)
        filesystems.delete(url)


def _leftovers(state: OutputState, target: Manifest, kept: int) -> list[str]:
    """Staged files, temporary files, pieces of other manifests, and rejects that the output does not name."""

    def is_left(path: str) -> bool:
        stray = path.startswith(f"{REJECTS}/") and is_placed(path) and path not in target.files
        old = (piece_number(path) or kept) < kept  # later ones may be of a job that can still commit
        return old or stray or path.startswith(f"{STAGING}/") or _TEMPORARY.fullmatch(path) is not None

    return sorted(filter(is_left, state.present))
