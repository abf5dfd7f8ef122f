"""A table of readers: what each makes of the features of an output; printed by ``python -m tests.interop.table``.

Readers that are not installed here run in the environment whose Python ``DISTILBEAM_READERS`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distilbeam.transforms.output.commit import commit
from distilbeam.transforms.output.shards import ShardSettings
from tests.interop.opening import APART, READERS, Rows
from tests.plans import Plan

__all__ = ["CASES", "NO_GLOBS", "REFUSED", "WAYS", "make", "open_apart"]

CASES = {
    "float32": ("float32", "fixed", False),
    "float16": ("float16", "fixed", False),
    "list": ("float32", "list", False),
    "nulls": ("float32", "fixed", True),
}
"""Kinds of vectors: stored type, ``vector_type``, and whether they may be null."""

WAYS = {"folder": "", "glob": "/*.parquet"}
"""What follows the folder of the features."""

REFUSED = {("Spark", "float16")}
"""What cannot be opened, as help and documents say."""

NO_GLOBS = ("pandas", "pyarrow")
"""Readers that take folders alone."""

_SECONDS = 900


def open_apart(python: str, reader: str, paths: Sequence[str]) -> tuple[str, dict[str, Rows | str]]:
    """Version of a reader in another environment, and for each path its rows or the text of its error.

    Args:
        python: the interpreter of that environment.
        reader: a key of ``APART``.
        paths: folders or globs.
    """
    script = str(Path(__file__).with_name("opening.py"))
    done = subprocess.run(
        [python, script, reader, *paths], capture_output=True, text=True, timeout=_SECONDS, check=False, cwd="/"
    )
    if done.returncode:
        return "", dict.fromkeys(paths, done.stderr or f"exit code {done.returncode}")
    told = json.loads(done.stdout.splitlines()[-1])
    rows = {
        path: each if isinstance(each, str) else [(key, vector) for key, vector in each]
        for path, each in told["found"].items()
    }
    return told["version"], rows


def make(folder: str | Path, kind: str) -> Rows:
    """Writes an output of a kind of vectors, with rejects and several shards, and gives its rows."""
    dtype, vector_type, nulls = CASES[kind]
    plan = Plan(dtype=dtype, nulls=nulls)
    commit(str(folder), plan.write_all(folder, ShardSettings(vector_type=vector_type, max_bytes=9000)))
    return [(row["id"], row["embedding"]) for row in plan.rows]


def main() -> int:
    """Prints the table; the exit code is 1 if a cell is not as expected."""
    python = os.environ.get("DISTILBEAM_READERS", "")
    wrong = 0
    cells = [(kind, way) for kind in CASES for way in WAYS]
    print("| reader | " + " | ".join(f"{kind}, {way}" for kind, way in cells) + " |")  # noqa: T201
    print("|---" * (len(cells) + 1) + "|")  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        expected = {kind: make(f"{folder}/{kind}", kind) for kind in CASES}
        paths = {(kind, way): f"{folder}/{kind}/features{WAYS[way]}" for kind, way in cells}
        for reader in READERS:
            if reader in APART and not python:
                print(f"| {reader} | not installed |")  # noqa: T201
                continue
            number, found = open_apart(python if reader in APART else sys.executable, reader, list(paths.values()))
            row = []
            for (kind, way), path in paths.items():
                rows = found[path]
                if isinstance(rows, str):
                    row.append("no globs" if reader in NO_GLOBS and way == "glob" else "refused")
                    sys.stderr.write(f"{reader}, {kind}, {way}: {rows[:300]}\n")
                else:
                    row.append(f"{len(rows)} rows" if rows == expected[kind] else "OTHER ROWS")
                wrong += row[-1] == "OTHER ROWS"
            print(f"| {reader} {number} | " + " | ".join(row) + " |", flush=True)  # noqa: T201
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
