"""Output folders in tests: what lies in them, a process that dies at a call to the store, and what must hold then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.output.commit import begin, commit
from distilbeam.transforms.output.ledger import Ledger
from distilbeam.transforms.output.manifest import Manifest
from distilbeam.transforms.output.records import SplitRecord
from distilbeam.transforms.output.shards import ShardSettings
from distilbeam.transforms.output.staging import OutputState, finished_record
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.storage import filesystems
from tests.plans import Plan

SHARDS = ShardSettings(max_bytes=700)
MANIFEST = "_distilbeam/manifest.json"
HISTORY = "_distilbeam/history/"


def files(output: str) -> dict[str, bytes]:
    """All files, by path below the folder."""
    filesystem, root = filesystems.resolve(output)
    filesystem.invalidate_cache()
    found = filesystem.find(root)
    return {name.removeprefix(root).lstrip("/"): filesystem.cat_file(name) for name in found}


def put(output: str, wanted: Mapping[str, bytes]) -> None:
    """Makes the folder hold these files and no others."""
    forget(output)
    for path, data in wanted.items():
        if filesystems.is_local(output):
            target = Path(output, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        else:
            filesystem, root = filesystems.resolve(output)
            filesystem.pipe_file(f"{root}/{path}", data)


def forget(output: str) -> None:
    """Removes the folder."""
    filesystem, root = filesystems.resolve(output)
    filesystem.invalidate_cache()
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


def settled(output: str | Mapping[str, bytes]) -> dict[str, bytes]:
    """All files save for the history, whose entries hold the time."""
    found = files(output) if isinstance(output, str) else output
    return {path: data for path, data in found.items() if not path.startswith(HISTORY)}


def without_number(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, as if the manifest were of the first commit."""
    return {**found, MANIFEST: replace(Manifest.from_json(found[MANIFEST]), commit=1).to_json()}


def commits(output: str) -> list[int]:
    """Numbers of the entries in the history."""
    names = (path[len(HISTORY) :] for path in files(output) if path.startswith(HISTORY))
    return sorted(int(name[:-5]) for name in names if is_visible(name))


def is_visible(path: str) -> bool:
    """Whether readers of the folder see the file; those of the features see all that lies among them."""
    return path.startswith("features/") or not any(name[:1] in "_." for name in path.split("/"))


def visible_rows(output: str) -> list[dict[str, Any]]:
    """Rows of all files that readers of the folder see; each must be whole."""
    tables = [pq.read_table(pa.BufferReader(data)) for path, data in files(output).items() if is_visible(path)]
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["id"])


def check_invariant(output: str) -> None:
    """What must hold at every moment: no row is read twice, and each file that is read is named."""
    found = files(output)
    ids = [row["id"] for row in visible_rows(output)]
    assert len(set(ids)) == len(ids)
    named: set[str] = set()
    if MANIFEST in found:
        document = json.loads(found[MANIFEST])
        named |= {shard["path"] for split in document["splits"] for shard in split["shards"]}
    entries = sorted(path for path in found if path.startswith(HISTORY) and is_visible(path[len(HISTORY) :]))
    if entries:
        entry = json.loads(found[entries[-1]])
        named |= {file["path"] for file in entry["added"]} | set(entry["removed"])
    assert {path for path in found if is_visible(path)} <= named


def check_settled(output: str) -> None:
    """What must hold after a commit: nothing is there that the manifest does not name, save for the history."""
    check_invariant(output)
    found = settled(output)
    assert set(found) == {*Manifest.from_json(found[MANIFEST]).files, MANIFEST}


def stage_rest(output: str, plan: Plan, shards: ShardSettings = SHARDS) -> tuple[list[SplitRecord], int]:
    """Records of a job that resumes, and the number of splits that it had to do."""
    finished = Ledger(output, (plan.settings,), shards, resume=True).finished(plan.splits)
    state = OutputState.read(output)
    records = [
        finished_record(state, Provenance.of(plan.finished(split.ordinal)), shards)
        if split.id in finished
        else plan.write(output, split.ordinal, shards)
        for split in plan.splits
    ]
    return records, len(plan.splits) - len(finished)


def resume(output: str, plan: Plan, shards: ShardSettings = SHARDS) -> int:
    """What a second run does; gives the number of splits that it had to do again."""
    base = begin(output, "resume")
    records, redone = stage_rest(output, plan, shards)
    commit(output, records, if_exists="resume", base=base)
    return redone


class Killed(BaseException):
    """The process is gone: nothing that it does afterwards has an effect."""


class _Store:
    """A file system of which some calls may be the last."""

    def __init__(self, filesystem: Any, mortal: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._filesystem = filesystem
        self._mortal = mortal

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._filesystem, name)
        return self._mortal(value) if name in _CALLS else value


_CALLS = ("cp_file", "rm_file", "pipe_file", "put_file", "cat_file", "find", "exists", "info", "rm")


@contextmanager
def mortal_process() -> Iterator[Callable[[int], None]]:
    """Gives a function that lets the process die at a call to the store, from 0; at a negative number it lives."""
    state = {"left": -1, "dead": False}

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if state["dead"] or state["left"] == 0:
                state["dead"] = True
                raise Killed
            state["left"] -= 1
            return function(*args, **kwargs)

        return call

    def die_at(call: int) -> None:
        state.update(left=call, dead=False)

    whole = filesystems.resolve

    def resolve(url: Any) -> tuple[Any, str]:
        filesystem, path = whole(url)
        return (filesystem if filesystems.is_local(str(url)) else _Store(filesystem, mortal)), path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystems, "resolve", resolve)
        for module, name in ((os, "replace"), (os, "link"), (shutil, "rmtree"), (Path, "unlink"), (os, "open")):
            patch.setattr(module, name, mortal(getattr(module, name)))
        patch.setattr(os, "fsync", mortal(lambda descriptor: None))  # slow, and of no use without a power cut
        yield die_at
