"""Roofline, peers and the ways of attention on CUDA, as one report."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distilbeam.transforms import Encoder
from distilbeam.transforms.distilbert.compute import choose_compute
from distilbeam.transforms.distilbert.engine import GPU_TOKENS

from .attention import compare_attention
from .checkpoint import read_shape
from .compare import TITLE, compare
from .corpus import Corpus
from .report import Report
from .roofline import roofline

__all__ = ["gpu"]


def gpu(model: Path, corpus: Corpus, options: Namespace, folder: Path, tell: Callable[[str], object] = print) -> Report:
    """All on ``options.device``; see ``roofline`` and ``compare`` for the arguments."""
    first = roofline(model, corpus, options, folder / "roofline", tell)
    second = compare(model, corpus, options, folder / "peers", tell)
    shape, lengths = read_shape(model), Encoder.load(str(model)).tokenize(corpus.texts).lengths
    ways = [
        row
        for dtype in options.dtype
        for row in compare_attention(
            lengths,
            shape.n_heads,
            shape.dim,
            device=options.device,
            dtype=choose_compute(options.device, dtype).dtype,
            token_budget=options.token_budget or GPU_TOKENS,
            repeats=options.repeats,
            tell=tell,
        )
    ]
    rows = first.rows + [row for row in second.rows if row.group == TITLE] + ways
    return replace(first, benchmark="gpu", rows=rows, notes=list(dict.fromkeys(first.notes + second.notes)))
