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
from .prefixes import Beginning
from .watchdog import WATCHDOG

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
    a ``[SEP]`` written in a text is text. A long text is read only as far as its kept tokens need.

    Args:
        texts: strings, or string[rows] of Arrow without nulls.
    """
    room = max_length - 2
    contents = _encode_beginnings(texts, tokenizer, room)
    counts = np.fromiter(map(len, contents), dtype=np.int64, count=len(contents))
    kept = np.minimum(counts, room)
    offsets = np.concatenate([[0], np.cumsum(kept + 2)])
    ids = np.empty(int(offsets[-1]), dtype=np.int32)
    for content, start, stop in zip(contents, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        ids[start] = tokenizer.cls_id
        ids[start + 1 : stop - 1] = content[: stop - start - 2]
        ids[stop - 1] = tokenizer.sep_id
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
        part = texts[int(rows[0]) : int(rows[-1]) + 1]  # of Arrow a view, so that nothing is copied
        try:
            tokens = tokenize(part, tokenizer, max_length)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # A panic of the Rust tokenizer is no Exception.
            return type(error).__name__
        good.append((rows, tokens))
        return None

    failed: dict[int, str] = {}
    for piece in _pieces(texts, max_length):
        failed |= find_failing(piece, attempt)
    if len(good) == 1:
        return good[0][1], good[0][0], failed
    parts = [tokens for _, tokens in good]
    lengths = np.concatenate([tokens.lengths for tokens in parts] or [np.zeros(0, np.int64)])
    merged = Tokens(
        ids=np.concatenate([tokens.ids for tokens in parts] or [np.zeros(0, np.int32)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=np.concatenate([tokens.truncated for tokens in parts] or [np.zeros(0, np.bool_)]),
    )
    return merged, np.concatenate([rows for rows, _ in good] or [np.zeros(0, np.int64)]), failed


def _pieces(texts: Sequence[str] | pa.Array, max_length: int) -> Iterator[npt.NDArray[np.int64]]:
    """The positions of the texts, cut into pieces of bounded bytes."""
    rows = np.arange(len(texts), dtype=np.int64)
    if not len(rows):
        return
    sizes = np.minimum(_sizes(texts), 2 * _window(max_length - 2))
    piece = np.maximum((np.cumsum(sizes) - 1) // _PIECE_BYTES, rows // _PIECE_ROWS)
    yield from np.split(rows, np.flatnonzero(np.diff(piece)) + 1)


def _sizes(texts: Sequence[str] | pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each text of Arrow's, characters of each string."""
    if isinstance(texts, pa.Array):
        return np.asarray(pc.binary_length(texts).to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def _window(room: int) -> int:
    """Characters of a long text that are read at first, in which ``room`` tokens are nearly always found."""
    return max(1024, 8 * room)


def _encode_beginnings(texts: Sequence[str] | pa.Array, tokenizer: WordPieceTokenizer, room: int) -> list[list[int]]:
    """Ids of each text, or of a beginning of it that has more than ``room`` of them."""
    window = _window(room)
    if not tokenizer.splits_words:
        return tokenizer.encode(_strings(texts))
    long = np.flatnonzero(_sizes(texts) > window).tolist()
    beginnings = {row: Beginning(_document(texts, row), tokenizer) for row in long}
    strings = _strings(texts, without=long)
    for row, beginning in beginnings.items():
        strings[row] = beginning.read(window)
    contents = tokenizer.encode(strings)
    while beginnings := {
        row: beginning for row, beginning in beginnings.items() if not beginning.whole and len(contents[row]) <= room
    }:
        window *= 8
        longer = tokenizer.encode([beginning.read(window) for beginning in beginnings.values()])
        for row, ids in zip(beginnings, longer, strict=True):
            contents[row] = ids
    return contents


def _document(texts: Sequence[str] | pa.Array, row: int) -> str | pa.Buffer:
    return texts[row].as_buffer() if isinstance(texts, pa.Array) else texts[row]


def _strings(texts: Sequence[str] | pa.Array, without: Sequence[int] = ()) -> list[str]:
    """The texts as strings, save for those of some rows."""
    if not isinstance(texts, pa.Array):
        return list(texts)
    if without:
        wanted = np.ones(len(texts), dtype=np.bool_)
        wanted[list(without)] = False
        texts = pc.if_else(pa.array(wanted), texts, pa.scalar("", pa.string()))
    return list(texts.to_pylist())
