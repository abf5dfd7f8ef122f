"""The command line as a user meets it, with real files and the model that ships with the project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from distilbeam.pipelines.cli import main

MODEL = Path(__file__).parents[2] / "examples" / "distilbert-tiny-sst2"


class Done(NamedTuple):
    """What a command has printed."""

    stdout: str
    stderr: str


@pytest.fixture
def tiny() -> str:
    return str(MODEL)


@pytest.fixture
def distilbeam(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str | Path, code: int = 0) -> Done:
        found = main([*map(str, arguments), "--progress", "none"])
        done = Done(*capsys.readouterr())
        assert found == code, done.stderr
        return done

    return run
