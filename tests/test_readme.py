"""What the README shows is run here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distilbeam.pipelines.options import parse
from tests.faults.jobs import Runner

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder beside the examples; later blocks read what earlier ones have written."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_python_blocks_run(block: str, folder: Path, runner: Runner) -> None:
    done = runner([], code=block, folder=folder)
    assert done.code == 0, done.said


@pytest.mark.slow
def test_shell_blocks_run(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block, news in zip(blocks("bash"), ["1 unchanged, 1 added", "1 added"], strict=True):
        done = subprocess.run(
            ["bash", "-ec", block],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ | {"PATH": path},
        )
        assert done.returncode == 0, done.stderr
        assert news in done.stdout + done.stderr


def test_first_pipeline_is_short() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 5


def test_commands_are_understood() -> None:
    script = "".join(blocks("sh")).replace("\\\n", " ")
    commands = [shlex.split(line) for line in script.splitlines() if line.startswith("distilbeam")]
    assert commands
    for _, *arguments in commands:
        options, beam = parse(arguments)
        assert options.command == arguments[0]
        assert beam == []


def test_make_targets_exist() -> None:
    targets = {
        line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if re.match(r"[a-z]+:", line)
    }
    shown = {line.split()[2] for block in blocks("console") for line in block.splitlines()}
    assert shown
    assert shown <= targets
