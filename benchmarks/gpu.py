"""Roofline and peers on CUDA, as one report."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .compare import TITLE, compare
from .corpus import Corpus
from .report import Report
from .roofline import roofline

__all__ = ["gpu"]


def gpu(model: Path, corpus: Corpus, options: Namespace, folder: Path, tell: Callable[[str], object] = print) -> Report:
    """Both on ``options.device``; see ``roofline`` and ``compare`` for the arguments."""
    first = roofline(model, corpus, options, folder / "roofline", tell)
    second = compare(model, corpus, options, folder / "peers", tell)
    rows = first.rows + [row for row in second.rows if row.group == TITLE]
    return replace(first, benchmark="gpu", rows=rows, notes=list(dict.fromkeys(first.notes + second.notes)))
