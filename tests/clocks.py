"""Clocks that belong to one module: other threads of the process read and sleep by the real ones."""

from __future__ import annotations

import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def replace_clock(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **functions: Any) -> None:
    """Have a module see other functions of ``time``, such as ``sleep``; nothing else of the process does."""
    known = {"monotonic": time.monotonic, "sleep": time.sleep}
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**known, **functions}))
