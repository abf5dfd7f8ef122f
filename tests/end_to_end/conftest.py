"""The command line as a user meets it: real processes, real files, the model that ships with the project."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

MODEL = Path(__file__).parents[2] / "examples" / "distilbert-tiny-sst2"


@pytest.fixture(scope="session")
def tiny() -> str:
    return str(MODEL)


@pytest.fixture
def distilbeam() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        import os

        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "distilbeam", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **environment},
        )
        assert done.returncode == code, done.stderr
        return done

    return run


def table(folder: Path | str) -> pa.Table:
    """All committed rows, in the order of the input."""
    return ds.dataset(str(folder), format="parquet").to_table()


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_distilbeam" / "manifest.json").read_text())
    return found
