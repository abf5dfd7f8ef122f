"""From texts to token ids, exactly as Hugging Face's tokenizers give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .distilbert.tokenizer import WordPieceTokenizer

__all__ = ["Tokens", "tokenize", "tokenize_each"]

# A text may be cut right before one of these without changing the tokens before the cut: the normalizer treats every
# one of them as a starter of its own (so no accent or decomposition reaches across), and the pre-tokenizer always
# begins a new word there.
_BOUNDARY = re.compile(r"[\x20\t\n\r!-/:-@\[-`{-~]")
_BOUNDARY_OR_IDEOGRAPH = re.compile(r"[\x20\t\n\r!-/:-@\[-`{-~\u4e00-\u9fff]")


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


def tokenize(texts: Sequence[str], tokenizer: WordPieceTokenizer, max_length: int) -> Tokens:
    """Tokenize texts and truncate each to ``max_length`` tokens, special tokens included.

    The ids equal those of ``transformers`` with ``truncation=True, max_length=max_length, split_special_tokens=True``:
    a ``[SEP]`` written in a text is text. A long text is read only as far as its kept tokens need.
    """
    room = max_length - 2
    contents = _encode_prefixes(texts, tokenizer, room)
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
    texts: Sequence[str], tokenizer: WordPieceTokenizer, max_length: int
) -> tuple[Tokens, npt.NDArray[np.int64], dict[int, str]]:
    """Tokenize texts of which some may break the tokenizer.

    A failing list is halved until the texts that fail stand alone, so that the others are unharmed.

    Returns:
        The tokens of the good rows, int64[good rows] with their positions in ``texts``, and the error class for each
        position that failed.
    """
    good: list[Tokens] = []
    positions: list[npt.NDArray[np.int64]] = []
    failed: dict[int, str] = {}
    pending = [np.arange(len(texts))]
    while pending:
        rows = pending.pop()
        try:
            tokens = tokenize([texts[row] for row in rows.tolist()], tokenizer, max_length)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # A panic of the Rust tokenizer is no Exception.
            if len(rows) == 1:
                failed[int(rows[0])] = type(error).__name__
            else:
                pending.extend(reversed(np.array_split(rows, 2)))
            continue
        good.append(tokens)
        positions.append(rows)
    if len(good) == 1:
        return good[0], positions[0], failed
    lengths = np.concatenate([tokens.lengths for tokens in good] or [np.zeros(0, np.int64)])
    merged = Tokens(
        ids=np.concatenate([tokens.ids for tokens in good] or [np.zeros(0, np.int32)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=np.concatenate([tokens.truncated for tokens in good] or [np.zeros(0, np.bool_)]),
    )
    return merged, np.concatenate(positions or [np.zeros(0, np.int64)]), failed


def _encode_prefixes(texts: Sequence[str], tokenizer: WordPieceTokenizer, room: int) -> list[list[int]]:
    """Ids of each text, or of a prefix of it that has more than ``room`` of them."""
    window = max(1024, 8 * room)
    contents = tokenizer.encode([_prefix(text, window, tokenizer) for text in texts])
    while short := [
        row
        for row, (text, ids) in enumerate(zip(texts, contents, strict=True))
        if len(text) > window and len(ids) <= room
    ]:
        window *= 8
        for row, ids in zip(
            short, tokenizer.encode([_prefix(texts[r], window, tokenizer) for r in short]), strict=True
        ):
            contents[row] = ids
    return contents


def _prefix(text: str, window: int, tokenizer: WordPieceTokenizer) -> str:
    if len(text) <= window or not tokenizer.splits_words:
        return text
    boundary = (_BOUNDARY_OR_IDEOGRAPH if tokenizer.splits_ideographs else _BOUNDARY).search(text, window)
    return text if boundary is None else text[: boundary.start()]
