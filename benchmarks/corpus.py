"""Texts to measure with: the mix of real corpora, or generated ones whose lengths are distributed as the mix's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .checkpoint import TINY

__all__ = ["LENGTHS", "SHARES", "Corpus", "draw_lengths", "generate", "load", "mix", "save"]

SHARES = {"tweets": 0.5, "agnews": 0.25, "imdb": 0.25}
"""Share of the rows that each corpus has in the mix."""

_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
LENGTHS = {
    "tweets": (1, 6, 9, 12, 16, 19, 22, 24, 26, 28, 30, 34, 37, 43, 73),
    "agnews": (16, 23, 29, 34, 39, 42, 45, 48, 52, 55, 59, 67, 77, 120, 275),
    "imdb": (8, 52, 78, 111, 148, 166, 188, 217, 255, 310, 398, 563, 741, 1136, 2873),
}
"""WordPiece tokens of a text, uncased, without special tokens and uncut, at the quantiles above."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts and what they are: ``mix`` or ``generated``, and from which seed."""

    texts: list[str]
    kind: str
    seed: int

    def __len__(self) -> int:
        return len(self.texts)


def load(kind: str, rows: int, seed: int = 0) -> Corpus:
    """A corpus of so many rows.

    Args:
        kind: ``mix``, ``generated``, or ``auto`` for the mix where DISTILBEAM_DATA is set.

    Raises:
        ValueError: the mix is asked for, and DISTILBEAM_DATA is not set.
    """
    data = os.environ.get("DISTILBEAM_DATA")
    if kind == "mix" and not data:
        raise ValueError("the corpus is 'mix', but DISTILBEAM_DATA is not set; set it, or take --corpus generated")
    if data and kind in ("mix", "auto"):
        return mix(Path(data), rows, seed)
    generator = np.random.default_rng(seed)
    return Corpus(generate(draw_lengths(rows, generator), generator), "generated", seed)


def mix(data: Path, rows: int, seed: int = 0) -> Corpus:
    """Rows of tweets, AG News and IMDB by their shares, in random order; a corpus that is used up begins again."""
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    for (name, count), read in zip(_counts(rows).items(), (_tweets, _agnews, _imdb), strict=True):
        found = list(read(data / name))
        order = generator.permutation(len(found)).tolist()
        texts += (found[position] for position in islice(cycle(order), count))
    return Corpus([texts[position] for position in generator.permutation(rows).tolist()], "mix", seed)


def draw_lengths(rows: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """int64[rows], tokens of each text as in the mix, without special tokens, in random order."""
    parts = [np.interp(generator.random(count), _QUANTILES, LENGTHS[name]) for name, count in _counts(rows).items()]
    return generator.permutation(np.rint(np.concatenate(parts)).astype(np.int64))


def generate(lengths: Sequence[int] | npt.NDArray[np.int64], generator: np.random.Generator) -> list[str]:
    """Texts of exactly so many WordPiece tokens each, of whole words, frequent ones more often.

    Args:
        lengths: int[rows], tokens without special tokens.
    """
    words = np.array(_words(), dtype=object)
    weights = 1 / np.arange(10, 10 + len(words))
    edges = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # Found by bisection, since Generator.choice with weights is several times slower.
    bounds = np.cumsum(weights / weights.sum())
    drawn = np.minimum(np.searchsorted(bounds, generator.random(int(edges[-1]))), len(words) - 1)
    return [" ".join(words[drawn[start:stop]]) for start, stop in pairwise(edges.tolist())]


def save(texts: Sequence[str], path: Path) -> Path:
    """Write texts as Parquet with the columns ``id`` and ``text``, as a data lake would hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=5000)
    return path


def _counts(rows: int) -> dict[str, int]:
    """Rows of each corpus, which sum up to ``rows``."""
    counts = {name: int(rows * share) for name, share in SHARES.items()}
    counts["tweets"] += rows - sum(counts.values())
    return counts


def _words() -> list[str]:
    """Plain words that are one token each, the frequent ones first, as the vocabulary has them."""
    pieces = (TINY / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 1]


def _tweets(folder: Path) -> Iterator[str]:
    for row in _json_lines(folder / "test.jsonl"):
        yield row["text"]


def _agnews(folder: Path) -> Iterator[str]:
    for row in _json_lines(folder / "test.jsonl"):
        yield f"{row['title']} {row['text']}"


def _imdb(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.parquet")):
        yield from pq.read_table(path, columns=["text"])["text"].to_pylist()


def _json_lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
