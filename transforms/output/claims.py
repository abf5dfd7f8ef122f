"""Which of several jobs may commit: the one that has created the next entry of the history, until a later one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distilbeam.transforms.errors import InputError, OutputError
from distilbeam.transforms.storage import conditional, filesystems

from .folders import concurrently
from .history import Base, Entry, entry_path, is_superseded, list_entries, load_entry
from .manifest import MANIFEST, MAX_JSON_BYTES, Manifest, fenced, parse_manifest
from .staging import OutputState

__all__ = ["Claim", "other_job"]

_TRIES = 5


def other_job(output: str) -> OutputError:
    """What a job fails with that was overtaken."""
    return OutputError(
        f"another job has committed to {output!r} since this one began, so nothing of this one was committed; run it "
        "again with `if_exists='resume'` or `if_exists='overwrite'`, and give jobs that run at the same time "
        "folders of their own"
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """The number that a job has for its commit, until a later job takes it for dead.

    Attributes:
        output: path or URL of the folder.
        number: of the commit.
        target: what it leads to.
        version: of the manifest that it replaces; None where there is none.
    """

    output: str
    number: int
    target: Manifest
    version: str | None

    @classmethod
    def of(cls, state: OutputState, base: Base, target: Manifest, garbage: Sequence[str]) -> Claim:
        """The claim of a job, or that of a commit under way that leads to the same output.

        Args:
            state: the folder as the job has found it.
            base: what the job began with.
            target: the new output.
            garbage: files that are to go.

        Raises:
            OutputError: another job was first.
        """
        number = _number(state, base, target, garbage)
        return cls(state.output, number, target, _fence(state, number, target))

    def check(self) -> None:
        """Raises OutputError if a later commit has begun; looked at before each file that goes or comes."""
        if is_superseded(self.output, self.number):
            raise other_job(self.output)

    def save(self, manifest: Manifest) -> None:
        """Writes the manifest, or raises OutputError if that which was to be replaced is no longer there."""
        manifest = manifest.save_pieces(self.output)
        if not _write(filesystems.join(self.output, MANIFEST), manifest.to_json(), self.version):
            raise other_job(self.output)

    def withdraw(self) -> None:
        """Deletes what the commit has placed, save for what another one has too.

        As long as the manifest is the one that this commit was to replace, the later job has deleted nothing, and
        will see what lies here: nothing is deleted then, since the commit may still be finished by a twin.
        """
        state = OutputState.read(self.output, replace=True)
        if state.version == self.version:
            return
        theirs = {file.path for entry in state.unfinished if entry.target != self.target.digest for file in entry.added}
        theirs |= state.manifest.files if state.manifest else frozenset()
        later = filesystems.join(self.output, entry_path(state.newest + 1))

        def delete(path: str) -> None:
            if not filesystems.exists(later):
                filesystems.delete(filesystems.join(self.output, path))

        concurrently(delete, sorted((self.target.files & state.present.keys()) - theirs))


def _number(state: OutputState, base: Base, target: Manifest, garbage: Sequence[str]) -> int:
    """The number of the commit, once it is ours; that of the commit that is there if it leads to the same output."""
    newest = state.unfinished[-1] if state.unfinished else None
    if newest is not None and newest.target == target.digest:
        return newest.commit
    made = {(file.path, file.sha256) for file in state.manifest.shards} if state.manifest else set()
    rejects = state.manifest.files if state.manifest else frozenset()
    added = [
        file
        for record in target.records
        for file in record.files
        if (file.path not in rejects if file is record.rejects_file else (file.path, file.sha256) not in made)
    ]
    number = state.newest + 1
    entry = Entry.of(number, replace(base, commit=state.commit), target, added, garbage)
    url = filesystems.join(state.output, entry_path(number))
    data = entry.to_json()
    if len(data) > MAX_JSON_BYTES:
        raise OutputError(
            f"the commit adds and removes {len(entry.files)} files, more than its entry in the history can name; set a "
            "larger `split_bytes`, or write parts of the input to outputs of their own"
        )
    if not conditional.create(url, data):
        try:
            there = load_entry(state.output, number)
        except InputError as error:  # its job has taken it back
            raise other_job(state.output) from error
        if (there.job, there.target) != (base.job, target.digest):
            raise other_job(state.output)
    elif list_entries(state.output)[-1:] != [number]:
        # Entries of commits that were never finished are removed in the end, so a number may be free again.
        filesystems.delete(url)
        raise other_job(state.output)
    return number


def _fence(state: OutputState, number: int, target: Manifest) -> str | None:
    """The version of the manifest that the commit replaces.

    The job of an unfinished commit may be alive. So that it cannot name files that this one deletes, the manifest gets
    a version first that the other has not read.
    """
    if all(entry.target == target.digest for entry in state.unfinished):
        return state.version
    url, data = filesystems.join(state.output, MANIFEST), fenced(state.manifest, number)
    version = state.version
    for _ in range(_TRIES):
        _write(url, data, version)
        there, version = conditional.read(url)
        if there == data:
            return version
        manifest = parse_manifest(state.output, there)
        if (manifest.commit if manifest else 0) != state.commit or is_superseded(state.output, number):
            break
        # Another one that is over has fenced it off meanwhile.
    if manifest is None or manifest.commit != number:
        filesystems.delete(filesystems.join(state.output, entry_path(number)))
    raise other_job(state.output)


def _write(url: str, data: bytes, version: str | None) -> bool:
    """Writes it in place of a version; False if it is another one now."""
    return conditional.create(url, data) if version is None else conditional.replace(url, data, version)
