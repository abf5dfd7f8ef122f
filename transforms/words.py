"""Token ids by the word: those that were met before are looked up, and all are put together as arrays."""

from __future__ import annotations

import threading
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from .distilbert.tokenizer import WordPieceTokenizer

__all__ = ["KnownWords", "Ragged", "encode_by_word", "gather", "offsets_of", "ragged"]

Ragged = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Values end to end, and int64[rows + 1] where each row begins."""

# What a byte of UTF-8 is: part of a word, a word of its own, or what stands between words. The tokens of a text are
# those of its words one after another: see ``prefixes`` for why nothing reaches across.
_PART, _ALONE, _BETWEEN = range(3)
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[[*range(0x21, 0x30), *range(0x3A, 0x41), *range(0x5B, 0x61), *range(0x7B, 0x7F)]] = _ALONE
_KINDS[[0x20, 0x09, 0x0A, 0x0D]] = _BETWEEN
# Between words that are encoded together. No other character becomes a full stop, whatever the normalizer does to it.
_STOP = "."
_TOGETHER = 256  # words
_LONGEST = 64  # bytes of a word that is kept
_MOST = 1 << 17  # words that are kept
_MANY = 1 << 14  # distinct words of a call, after which it matters whether they repeat


class KnownWords:
    """The ids of words that have been met, for any number of threads. It only grows.

    Attributes:
        numbers: by word, its row in ``table``.
    """

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}
        self._ids = np.empty(1024, dtype=np.int32)
        self._offsets = np.zeros(1024, dtype=np.int64)
        self._rows = 0
        self._lock = threading.Lock()

    @property
    def table(self) -> Ragged:
        """The ids, which stay as they are while more are added."""
        with self._lock:
            offsets = self._offsets[: self._rows + 1]
            return self._ids[: offsets[-1]], offsets

    def add(self, words: list[bytes], ids: list[list[int]]) -> None:
        """Keep some words."""
        more, offsets = ragged(ids)
        with self._lock:
            row, filled = self._rows, int(self._offsets[self._rows])
            self._ids = _roomy(self._ids, filled + len(more))
            self._offsets = _roomy(self._offsets, row + len(offsets))
            self._ids[filled : filled + len(more)] = more
            self._offsets[row : row + len(offsets)] = filled + offsets
            self._rows += len(words)
            self.numbers.update(zip(words, range(row, row + len(words)), strict=True))


def _roomy(values: npt.NDArray[Any], needed: int) -> npt.NDArray[Any]:
    """The same array, or one with twice the room that begins alike, so that to add a little costs little."""
    if needed <= len(values):
        return values
    larger = np.empty(2 * needed, dtype=values.dtype)
    larger[: len(values)] = values
    return larger


def offsets_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of some rows begins once they lie end to end, and where the last one ends; int64[rows + 1]."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ragged(rows: list[list[int]]) -> Ragged:
    """Lists of ids end to end."""
    offsets = offsets_of(np.fromiter(map(len, rows), np.int64, len(rows)))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets


def encode_by_word(data: npt.NDArray[np.uint8], edges: npt.NDArray[np.int64], tokenizer: WordPieceTokenizer) -> Ragged:
    """Ids of texts without special tokens, untruncated; those of ``tokenizer.encode_unmarked``.

    Args:
        data: uint8[bytes], UTF-8 of the texts end to end.
        edges: int64[rows + 1], where each text begins in ``data``, from 0 to its end.
        tokenizer: one that splits words as BERT's does.

    Raises:
        UnicodeDecodeError: a text is no UTF-8.
    """
    kinds = _KINDS[data]
    begins = kinds == _PART
    begins[1:] &= kinds[:-1] != _PART
    starts = edges[:-1][np.diff(edges) > 0]
    begins[starts] |= kinds[starts] == _PART
    begins |= kinds == _ALONE
    positions = np.flatnonzero(begins)
    # A word together with what follows up to the next one, which has no tokens.
    offsets = np.append(positions, len(data)).astype(np.int64)
    words = pa.Array.from_buffers(pa.large_binary(), len(positions), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    encoded = words.dictionary_encode()
    if len(encoded.dictionary) > max(_MANY, len(positions) // 4):
        # They hardly repeat, so there is little to spare.
        whole = data.tobytes()
        texts = [whole[start:stop].decode() for start, stop in pairwise(edges.tolist())]
        return ragged(tokenizer.encode_unmarked(texts))
    distinct = [word.rstrip(b" \t\n\r") for word in encoded.dictionary.to_pylist()]
    (table, table_offsets), numbers = _look_up(distinct, tokenizer)
    rows = numbers[encoded.indices.to_numpy()]
    ids, ends = gather(table, table_offsets[rows], table_offsets[rows + 1])
    return ids, ends[np.searchsorted(positions, edges)]


def gather(ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> Ragged:
    """Some stretches of ids end to end.

    Args:
        ids: int32[n].
        starts: int64[rows], where each stretch begins.
        stops: int64[rows], where it ends.
    """
    counts = stops - starts
    offsets = offsets_of(counts)
    return ids[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)], offsets


def _look_up(words: list[bytes], tokenizer: WordPieceTokenizer) -> tuple[Ragged, npt.NDArray[np.int64]]:
    """A table of ids, and the row of each word in it."""
    known = tokenizer.known_words
    missing = [word for word in dict.fromkeys(words) if word not in known.numbers]
    if len(known.numbers) + len(missing) > _MOST:
        known, missing = KnownWords(), list(dict.fromkeys(words))
        tokenizer.known_words = known
    kept = [word for word in missing if len(word) <= _LONGEST][:_MOST]
    if kept:
        known.add(kept, _encode([word.decode() for word in kept], tokenizer))
    rows = np.array([known.numbers.get(word, -1) for word in words], dtype=np.int64)
    table = known.table  # after the numbers: a word may get another one, of a row that is new
    others = np.flatnonzero(rows < 0)
    if len(others):
        rows[others] = np.arange(len(others)) + len(table[1]) - 1
        table = _end_to_end(table, ragged(_encode([words[row].decode() for row in others.tolist()], tokenizer)))
    return table, rows


def _encode(words: list[str], tokenizer: WordPieceTokenizer) -> list[list[int]]:
    """Ids of each word; of most together, since every call to the tokenizer costs as much as ten words."""
    ids: list[list[int] | None] = [None] * len(words)
    stop = tokenizer.stop_id
    if stop is not None:
        joined = [number for number, word in enumerate(words) if word != _STOP]
        groups = [joined[start : start + _TOGETHER] for start in range(0, len(joined), _TOGETHER)]
        texts = [f" {_STOP} ".join([words[number] for number in group]) for group in groups]
        for group, found in zip(groups, tokenizer.encode_unmarked(texts) if texts else (), strict=True):
            parts = _split(found, stop)
            if len(parts) == len(group):
                for number, part in zip(group, parts, strict=True):
                    ids[number] = part
    rest = [number for number, part in enumerate(ids) if part is None]
    if rest:
        for number, part in zip(rest, tokenizer.encode_unmarked([words[number] for number in rest]), strict=True):
            ids[number] = part
    return [part for part in ids if part is not None]


def _split(ids: list[int], stop: int) -> list[list[int]]:
    """The ids between those of a certain value."""
    ends = [place for place, value in enumerate(ids) if value == stop]
    return [ids[start:end] for start, end in zip([0, *(end + 1 for end in ends)], [*ends, len(ids)], strict=True)]


def _end_to_end(first: Ragged, second: Ragged) -> Ragged:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], first[1][-1] + second[1][1:]])
