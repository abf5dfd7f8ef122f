"""Tokens that were added to a vocabulary, such as ``[E1]`` or ``<url>``, and the texts that may hold one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

__all__ = ["Markers"]

_MAX_PATTERN = 8192  # characters, which RE2 compiles in a millisecond
# Of any other character BERT's normalizer may make another one, or none.
_ASCII = r"[^\t\n\r\x20-\x7e]"
_WHITE = re.compile(r"(?:\\?[ \t\n\r])+")


class Markers:
    """Added tokens, which are looked for in a text before it is split into words.

    Most texts have none: their ids are put together from words, and long ones are read only in part.

    Args:
        tokens: content of each, and whether it is looked for in the normalized text rather than in the text itself.
        normalizer: that of the tokenizer.
    """

    def __init__(self, tokens: Sequence[tuple[str, bool]], normalizer: Normalizer | None) -> None:
        self.tokens = list(tokens)
        self._pattern: str | None = None
        contents = [content for content, _ in tokens]
        for content, is_normalized in tokens:
            if is_normalized and normalizer is not None:
                contents.append(normalizer.normalize_str(content))
        parts = [_WHITE.sub(r"[ \\t\\n\\r]+", re.escape(content)) for content in dict.fromkeys(contents)]
        if any(is_normalized for _, is_normalized in tokens):
            parts.append(_ASCII)
        pattern = "|".join(parts)
        if all(contents) and len(pattern) <= _MAX_PATTERN:
            self._pattern = pattern
            self._search = re.compile(pattern, re.IGNORECASE).search

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def possible(self, texts: Sequence[str] | pa.Array) -> npt.NDArray[np.bool_]:
        """Whether a text may hold one, bool[rows]; a few that hold none are among them.

        Args:
            texts: strings, or string[rows] of Arrow without nulls.
        """
        if not self.tokens:
            return np.zeros(len(texts), dtype=np.bool_)
        if self._pattern is None:
            return np.ones(len(texts), dtype=np.bool_)
        if isinstance(texts, pa.Array):
            found = pc.match_substring_regex(texts, self._pattern, ignore_case=True)
            return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.bool_)
        return np.fromiter((self._search(text) is not None for text in texts), np.bool_, len(texts))
