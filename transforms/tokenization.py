"""From texts to token ids, exactly as Hugging Face's tokenizers give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .halving import find_failing
from .prefixes import Beginning, buffer_of, bytes_of
from .watchdog import WATCHDOG
from .words import Ragged, encode_by_word, gather, offsets_of, ragged

if TYPE_CHECKING:
    from .distilbert.tokenizer import WordPieceTokenizer

__all__ = ["Tokens", "tokenize", "tokenize_each"]

# Of what is handed to the tokenizer at once: enough for all cores, little enough that its own buffers stay small.
_PIECE_BYTES = 2 << 20
_PIECE_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of many rows, end to end.

    Attributes:
        ids: int32[tokens], with the special tokens at both ends of each row.
        offsets: int64[rows + 1], where each row begins in ``ids``.
        truncated: bool[rows], whether the text had more tokens than were kept.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64[rows], tokens in each row."""
        return np.diff(self.offsets)

    def first_equal(self) -> npt.NDArray[np.int64] | None:
        """The position of the first row with the same tokens for each row, int64[rows]; None where no two are equal."""
        buffers = [None, pa.py_buffer(4 * self.offsets), pa.py_buffer(self.ids)]
        encoded = pa.Array.from_buffers(pa.large_binary(), len(self), buffers).dictionary_encode()
        if len(encoded.dictionary) == len(self):
            return None
        codes = encoded.indices.to_numpy()
        first = np.empty(len(encoded.dictionary), dtype=np.int64)
        first[codes[::-1]] = np.arange(len(self))[::-1]  # of equal indices numpy keeps the last
        return first[codes]


def tokenize(texts: Sequence[str] | pa.Array, tokenizer: WordPieceTokenizer, max_length: int) -> Tokens:
    """Tokenize texts and truncate each to ``max_length`` tokens, special tokens included.

    The ids equal those of ``transformers`` with ``truncation=True, max_length=max_length, split_special_tokens=True``:
    a ``[SEP]`` written in a text is text. So they do for special tokens of the checkpoint's own, such as ``[E1]``, but
    without ``split_special_tokens``: they are tokens in a text too. A long text is read only as far as its kept tokens
    need.

    Args:
        texts: strings, or string[rows] of Arrow without nulls.
    """
    pieces = _pieces(texts, max_length)
    return _joined([(rows, _tokenize(_slice(texts, rows), tokenizer, max_length)) for rows in pieces])[0]


def _tokenize(texts: Sequence[str] | pa.Array, tokenizer: WordPieceTokenizer, max_length: int) -> Tokens:
    """As ``tokenize``, all texts at once."""
    room = max_length - 2
    contents, edges = _encode_beginnings(texts, tokenizer, room)
    counts = np.diff(edges)
    kept = np.minimum(counts, room)
    if (counts > room).any():
        contents, _ = gather(contents, edges[:-1], edges[:-1] + kept)
    offsets = offsets_of(kept + 2)
    ids = np.empty(int(offsets[-1]), dtype=np.int32)
    inside = np.ones(len(ids), dtype=np.bool_)
    for ends, control in ((offsets[:-1], tokenizer.cls_id), (offsets[1:] - 1, tokenizer.sep_id)):
        ids[ends] = control
        inside[ends] = False
    ids[inside] = contents
    return Tokens(ids=ids, offsets=offsets, truncated=counts > room)


def tokenize_each(
    texts: Sequence[str] | pa.Array, tokenizer: WordPieceTokenizer, max_length: int
) -> tuple[Tokens, npt.NDArray[np.int64], dict[int, str]]:
    """Tokenize texts of which some may break the tokenizer.

    Pieces that fail are halved until the texts that fail stand alone, so that the others are unharmed.

    Returns:
        The tokens of the good rows, int64[good rows] with their positions in ``texts``, and the error class for each
        position that failed.
    """
    good: list[tuple[npt.NDArray[np.int64], Tokens]] = []

    def attempt(rows: npt.NDArray[np.int64]) -> str | None:
        WATCHDOG.beat()
        try:
            tokens = _tokenize(_slice(texts, rows), tokenizer, max_length)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # A panic of the Rust tokenizer is no Exception.
            return type(error).__name__
        good.append((rows, tokens))
        return None

    failed: dict[int, str] = {}
    for piece in _pieces(texts, max_length):
        failed |= find_failing(piece, attempt)
    return *_joined(good), failed


def _joined(parts: list[tuple[npt.NDArray[np.int64], Tokens]]) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Tokens end to end, and their rows."""
    if len(parts) == 1:
        return parts[0][1], parts[0][0]
    lengths = np.concatenate([tokens.lengths for _, tokens in parts] or [np.zeros(0, np.int64)])
    merged = Tokens(
        ids=np.concatenate([tokens.ids for _, tokens in parts] or [np.zeros(0, np.int32)]),
        offsets=offsets_of(lengths),
        truncated=np.concatenate([tokens.truncated for _, tokens in parts] or [np.zeros(0, np.bool_)]),
    )
    return merged, np.concatenate([rows for rows, _ in parts] or [np.zeros(0, np.int64)])


def _pieces(texts: Sequence[str] | pa.Array, max_length: int) -> Iterator[npt.NDArray[np.int64]]:
    """The positions of the texts, cut into pieces of bounded bytes."""
    rows = np.arange(len(texts), dtype=np.int64)
    if not len(rows):
        return
    sizes = np.minimum(_sizes(texts), 2 * _window(max_length - 2))
    piece = np.maximum((np.cumsum(sizes) - 1) // _PIECE_BYTES, rows // _PIECE_ROWS)
    yield from np.split(rows, np.flatnonzero(np.diff(piece)) + 1)


def _slice(texts: Sequence[str] | pa.Array, rows: npt.NDArray[np.int64]) -> Sequence[str] | pa.Array:
    """Neighbouring texts by their positions; of Arrow a view, so that nothing is copied."""
    return texts[int(rows[0]) : int(rows[-1]) + 1]


def _sizes(texts: Sequence[str] | pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each text of Arrow's, characters of each string."""
    if isinstance(texts, pa.Array):
        return np.asarray(pc.binary_length(texts).to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def _window(room: int) -> int:
    """Characters of a long text that are read at first, in which ``room`` tokens are nearly always found."""
    return max(1024, 8 * room)


def _encode_beginnings(texts: Sequence[str] | pa.Array, tokenizer: WordPieceTokenizer, room: int) -> Ragged:
    """Ids of texts, or of beginnings of them that have more than ``room``."""
    if not tokenizer.splits_words:
        return ragged(tokenizer.encode([part.decode() for part in _parts(texts, np.arange(len(texts)))]))
    if not tokenizer.markers or not (marked := tokenizer.markers.possible(texts)).any():
        return _encode_unmarked(texts, tokenizer, room, np.zeros(len(texts), dtype=np.bool_))
    ids, edges = _encode_unmarked(texts, tokenizer, room, marked)
    rows = np.flatnonzero(marked)
    more, more_edges = ragged(tokenizer.encode([part.decode() for part in _parts(texts, rows)]))
    starts, stops = edges[:-1].copy(), edges[1:].copy()
    starts[rows], stops[rows] = len(ids) + more_edges[:-1], len(ids) + more_edges[1:]
    return gather(np.concatenate([ids, more]), starts, stops)


def _encode_unmarked(
    texts: Sequence[str] | pa.Array, tokenizer: WordPieceTokenizer, room: int, omitted: npt.NDArray[np.bool_]
) -> Ragged:
    """As ``_encode_beginnings`` for texts without markers; those of bool[rows] get no ids."""
    window = _window(room)
    long = (_sizes(texts) > window) & ~omitted
    if not long.any() and not omitted.any():
        return encode_by_word(*_bytes(texts), tokenizer)
    beginnings = {row: Beginning(_document(texts, row), tokenizer) for row in np.flatnonzero(long).tolist()}
    short = iter(_parts(texts, np.flatnonzero(~long & ~omitted)))
    parts = [
        beginnings[row].read(window).encode() if row in beginnings else b"" if omitted[row] else next(short)
        for row in range(len(texts))
    ]
    ids, edges = encode_by_word(*_end_to_end(parts), tokenizer)
    while beginnings := {
        row: beginning
        for row, beginning in beginnings.items()
        if not beginning.whole and edges[row + 1] - edges[row] <= room
    }:
        window *= 8
        starts, stops, longer = edges[:-1].copy(), edges[1:].copy(), list(beginnings)
        # A few at a time, since what is read has grown.
        for some in np.array_split(longer, min(len(longer), -(-len(longer) * window // _PIECE_BYTES))):
            parts = [beginnings[row].read(window).encode() for row in some.tolist()]
            more, more_edges = encode_by_word(*_end_to_end(parts), tokenizer)
            starts[some], stops[some] = len(ids) + more_edges[:-1], len(ids) + more_edges[1:]
            ids = np.concatenate([ids, more])
        ids, edges = gather(ids, starts, stops)
    return ids, edges


def _document(texts: Sequence[str] | pa.Array, row: int) -> str | pa.Buffer:
    return buffer_of(texts, row) if isinstance(texts, pa.Array) else texts[row]


def _bytes(texts: Sequence[str] | pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """UTF-8 of texts end to end, and where each begins."""
    if isinstance(texts, pa.Array):
        edges, data = bytes_of(texts)
        return np.frombuffer(data, np.uint8)[edges[0] : edges[-1]], edges - edges[0]
    return _end_to_end([text.encode() for text in texts])


def _end_to_end(parts: list[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    edges = offsets_of(np.fromiter(map(len, parts), np.int64, len(parts)))
    return np.frombuffer(b"".join(parts), np.uint8), edges


def _parts(texts: Sequence[str] | pa.Array, rows: npt.NDArray[np.int64]) -> list[bytes]:
    """UTF-8 of some texts. Not by Arrow's take, which makes room as if they were as long as all are on average."""
    if not isinstance(texts, pa.Array):
        return [texts[row].encode() for row in rows.tolist()]
    edges, data = bytes_of(texts)
    whole = memoryview(data)
    return [
        bytes(whole[start:stop]) for start, stop in zip(edges[rows].tolist(), edges[rows + 1].tolist(), strict=True)
    ]
