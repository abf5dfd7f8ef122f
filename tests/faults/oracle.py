"""Oracle O: committed and set-aside rows are exactly the input, and nothing else can be read.

It looks at files alone and shares no code with what it judges.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tests.faults.stores import Store

__all__ = ["MANIFEST", "Truth", "check_moment", "check_output", "is_readable", "newest_entry", "vectors"]

MANIFEST = "_distilbeam/manifest.json"

_ENTRY = re.compile(r"_distilbeam/history/(\d+)\.json")
_FILE = re.compile(r'"((?:_rejects|features)/part-[^"/]+)"')

Vectors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Truth:
    """What must come out.

    Attributes:
        vectors: embedding of each good row by its id, from an undisturbed run in fp32.
        rejects: file name (without folder) and position of each bad row: its line, or its row where rows are counted.
    """

    vectors: Vectors
    rejects: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    @property
    def ids(self) -> set[str]:
        return set(self.vectors)


def check_output(store: Store, truth: Truth, *, close: float = 1e-5) -> None:
    """Asserts all of O on an output at rest."""
    names = store.names()
    assert MANIFEST in names, "there is no manifest"
    manifest = json.loads(store.read(MANIFEST))
    files = {record["path"]: record for record in _records(manifest)}
    readable = {name for name in names if is_readable(name)}
    assert readable == set(files), f"readable and named differ in {sorted(readable ^ set(files))}"
    for name, record in files.items():
        data = store.read(name)
        assert len(data) == record["bytes"], name
        assert hashlib.sha256(data).hexdigest() == record["sha256"], name
    others = [name for name in names if name not in files and name != MANIFEST and not _ENTRY.fullmatch(name)]
    assert not others, f"left behind: {others}"
    entries = [int(match[1]) for name in names if (match := _ENTRY.fullmatch(name))]
    assert max(entries, default=0) == manifest.get("commit", 0), "an unfinished commit is left"

    found = vectors(store, (name for name in files if name.startswith("features/")))
    assert set(found) == truth.ids, f"{len(truth.ids - set(found))} lost, {len(set(found) - truth.ids)} invented"
    worst = max((float(np.abs(found[key] - truth.vectors[key]).max()) for key in found), default=0.0)
    assert worst <= close, f"vectors differ by {worst}"
    assert sorted(_rejects(store, files)) == sorted(truth.rejects), "other rejects than bad rows"


def check_moment(store: Store) -> None:
    """Asserts what must hold at every moment: no row is readable twice, and every readable file is named."""
    names = store.names()
    manifest = json.loads(store.read(MANIFEST)) if MANIFEST in names else {}
    named = {record["path"] for record in _records(manifest)}
    entry = newest_entry(names)
    if entry:
        named |= set(_FILE.findall(store.read(entry).decode()))
    readable = [name for name in names if is_readable(name)]
    assert set(readable) <= named, f"readable but not named: {sorted(set(readable) - named)}"
    vectors(store, (name for name in readable if name.startswith("features/")))


def is_readable(name: str) -> bool:
    """Whether a reader of the output, or of its rejects, would open the file."""
    folder, _, file = name.rpartition("/")
    # Many readers of a folder open all that lies in it, hidden or not, and in folders below.
    return name.startswith("features/") or (folder in ("", "_rejects") and file[:1] not in "._")


def newest_entry(names: Iterable[str]) -> str | None:
    """The newest commit in the history."""
    return max((name for name in names if _ENTRY.fullmatch(name)), default=None)


def vectors(store: Store, names: Iterable[str]) -> Vectors:
    """Embeddings by id of all rows in these files; asserts that no id comes twice."""
    found: Vectors = {}
    count: Counter[str] = Counter()
    for name in names:
        table = store.table(name)
        ids = [str(key) for key in table["id"].to_pylist()]
        count.update(ids)
        found.update(zip(ids, _matrix(table["embedding"]), strict=True))
    doubled = [key for key, times in count.items() if times > 1]
    assert not doubled, f"{len(doubled)} rows are readable more than once, such as {doubled[:3]}"
    return found


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(column), -1)


def _rejects(store: Store, files: Mapping[str, Any]) -> list[tuple[str, int]]:
    found = []
    for name in files:
        if name.startswith("_rejects/"):
            for row in store.table(name).select(["source", "row", "line"]).to_pylist():
                position = row["line"] if row["line"] is not None else row["row"]
                found.append((row["source"].rpartition("/")[2], position))
    return found


def _records(value: Any) -> list[dict[str, Any]]:
    """Every object with a path, a size and a digest, wherever it lies."""
    if isinstance(value, list):
        return [record for each in value for record in _records(each)]
    if isinstance(value, dict):
        if {"path", "bytes", "sha256"} <= value.keys():
            return [value]
        return [record for each in value.values() for record in _records(each)]
    return []
