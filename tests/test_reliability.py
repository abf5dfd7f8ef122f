"""The page on reliability names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_it_names_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 10
    for path, name in named:
        functions = {
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{path}::{name}"


def test_every_promise_names_its_test() -> None:
    promises = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(promises) > 10
    assert all("`tests/" in line.split("|")[3] for line in promises)


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"tests/[\w/]+(?:\.py)?", PAGE):
        assert (ROOT / path).exists(), path
