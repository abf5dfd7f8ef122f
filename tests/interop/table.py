"""A table of readers: what each makes of the features of an output; printed by ``python -m tests.interop.table``.

Readers that are not installed here run in the environment whose Python ``DISTILBEAM_READERS`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from distilbeam.transforms.output.commit import commit
from distilbeam.transforms.output.shards import ShardSettings
from tests.interop.opening import APART, DISTRIBUTIONS, READERS, Rows, open_with
from tests.plans import Plan

__all__ = ["CASES", "NO_GLOBS", "REFUSED", "WAYS", "open_apart"]

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

_SECONDS = 300


def open_apart(python: str, reader: str, path: str) -> tuple[str, Rows] | str:
    """Version and rows of a reader in another environment, or the last line of its error.

    Args:
        python: the interpreter of that environment.
        reader: a key of ``APART``.
        path: a folder or a glob.
    """
    script = str(Path(__file__).with_name("opening.py"))
    done = subprocess.run(
        [python, script, reader, path], capture_output=True, text=True, timeout=_SECONDS, check=False, cwd="/"
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "Exception" in line]
        return " ".join(lines) or done.stderr or f"exit code {done.returncode}"
    found = json.loads(done.stdout.splitlines()[-1])
    return found["version"], [(key, vector) for key, vector in found["rows"]]


def main() -> int:
    """Prints the table; the exit code is 1 if a cell is not as expected."""
    python = os.environ.get("DISTILBEAM_READERS", "")
    wrong = 0
    cells = [(kind, way) for kind in CASES for way in WAYS]
    print("| reader | " + " | ".join(f"{kind}, {way}" for kind, way in cells) + " |")  # noqa: T201
    print("|---" * (len(cells) + 1) + "|")  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        expected: dict[str, Rows] = {}
        for kind, (dtype, vector_type, nulls) in CASES.items():
            plan = Plan(dtype=dtype, nulls=nulls)
            output = f"{folder}/{kind}"
            commit(output, plan.write_all(output, ShardSettings(vector_type=vector_type, max_bytes=9000)))
            expected[kind] = [(row["id"], row["embedding"]) for row in plan.rows]
        for reader in READERS:
            if reader in APART and not python:
                print(f"| {reader} | not installed |")  # noqa: T201
                continue
            name, row = reader, []
            for kind, way in cells:
                path = f"{folder}/{kind}/features{WAYS[way]}"
                try:
                    found = (
                        open_apart(python, reader, path)
                        if reader in APART
                        else (version(DISTRIBUTIONS[reader]), open_with(reader, path))
                    )
                except Exception as error:
                    found = type(error).__name__
                if isinstance(found, str):
                    row.append("no globs" if reader in NO_GLOBS and way == "glob" else "refused")
                    print(f"{reader}, {kind}, {way}: {found[:300]}", file=sys.stderr)  # noqa: T201
                else:
                    name = f"{reader} {found[0]}"
                    row.append(f"{len(found[1])} rows" if found[1] == expected[kind] else "OTHER ROWS")
                wrong += row[-1] == "OTHER ROWS"
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)  # noqa: T201
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
