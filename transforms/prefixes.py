"""Reading a long text only as far as its first tokens need, without ever holding all of it as a string."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from .distilbert.tokenizer import WordPieceTokenizer

__all__ = ["Beginning", "buffer_of", "bytes_of", "shortened"]

# A text may be cut right before one of these without changing the tokens before the cut: the normalizer treats every
# one of them as a starter of its own (so no accent or decomposition reaches across), and the pre-tokenizer always
# begins a new word there.
_BOUNDARY = re.compile(r"[\x20\t\n\r!-/:-@\[-`{-~]")
_BOUNDARY_OR_IDEOGRAPH = re.compile(r"[\x20\t\n\r!-/:-@\[-`{-~\u4e00-\u9fff]")
# What may be shortened: letters and digits each of which stays at least one character of the same word, whatever the
# normalizer does to it; white space; and NUL, which the normalizer drops.
_RUN = re.compile(
    "[0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0400-\u0481\u048a-\u052f\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3]+"
    "|[\x20\t\n\r]+|\0+"
)
_FIRST, _MOST = 4096, 1 << 20  # characters or bytes of a text that are read at once, at first and later


class Beginning:
    """The beginning of a text, as long as one asks for.

    Args:
        text: a string, or its UTF-8.
        tokenizer: one that splits words as BERT's does.

    Attributes:
        whole: whether what was given last is all of the text.
    """

    def __init__(self, text: str | pa.Buffer, tokenizer: WordPieceTokenizer) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._length = len(text) if isinstance(text, str) else text.size
        self._position = 0
        self._read = ""
        self._boundary = _BOUNDARY_OR_IDEOGRAPH if tokenizer.splits_ideographs else _BOUNDARY
        self._longest_word = tokenizer.longest_word
        self.whole = False

    def read(self, window: int) -> str:
        """At least ``window`` characters, up to a place that changes no token before it; fewer if there are no more.

        Words longer than any the tokenizer looks up, and white space, are shortened, which changes no token.

        Raises:
            UnicodeDecodeError: what was read is no UTF-8.
        """
        searched = window
        step = max(_FIRST, window + 256 - len(self._read))
        while (boundary := self._boundary.search(self._read, searched)) is None:
            if self._position >= self._length:
                self.whole = True
                return self._read
            searched = max(window, len(self._read))
            # At first as it is: it is short, and nearly every text has a boundary soon.
            self._read += shortened(self._next(step), self._longest_word) if self._read else self._next(step)
            step = min(2 * step, _MOST)
        return self._read[: boundary.start()]

    def _next(self, step: int) -> str:
        start, stop = self._position, min(self._position + step, self._length)
        self._position = stop
        if isinstance(self._text, str):
            return self._text[start:stop]
        return self._decoder.decode(bytes(self._text[start:stop]), final=stop == self._length)


def buffer_of(texts: pa.Array, row: int) -> pa.Buffer:
    """The UTF-8 of one text in place, where a scalar of Arrow's would hold a copy.

    Args:
        texts: string[rows] or large_string[rows].
    """
    offsets, data = bytes_of(texts.slice(row, 1))
    return data.slice(offsets[0], offsets[1] - offsets[0])


def bytes_of(texts: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Buffer]:
    """Where each text begins in the UTF-8 of all, int64[rows + 1], the first not always at 0; and that.

    Args:
        texts: string[rows] or large_string[rows] without nulls.
    """
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return np.zeros(len(texts) + 1, dtype=np.int64), pa.py_buffer(b"")
    small = pa.types.is_string(texts.type) or pa.types.is_binary(texts.type)
    found = np.frombuffer(offsets, np.int32 if small else np.int64)
    return found[texts.offset : texts.offset + len(texts) + 1].astype(np.int64), data


def shortened(text: str, longest_word: int | None) -> str:
    """A text that has the same tokens, with its overlong words and runs of white space cut short.

    A word of more than ``longest_word`` characters is one unknown token, whatever its length; None if there is no such
    limit.
    """

    def cut(run: re.Match[str]) -> str:
        found = run.group()
        if found[0] in "\x20\t\n\r\0":
            return found[-1]  # what follows may depend on it
        return found if longest_word is None or len(found) <= longest_word + 1 else found[: longest_word + 1]

    return _RUN.sub(cut, text)
