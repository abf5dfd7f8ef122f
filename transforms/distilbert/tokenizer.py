"""Building the tokenizer of a checkpoint from ``tokenizer.json`` or ``vocab.txt``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from distilbeam.transforms.errors import CheckpointError

__all__ = ["WordPieceTokenizer", "tokenizer_files"]

# Of these classes Hugging Face takes the normalizer from tokenizer_config.json, whatever tokenizer.json says; no class
# stands for DistilBERT's own.
_BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")
_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


class WordPieceTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        cls_id, sep_id: ids put before and after each text.
        splits_words: whether words always end at white space and ASCII punctuation, as BERT's pre-tokenizer makes it.
        splits_ideographs: whether each CJK ideograph is a word.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Control tokens written in a user's text are text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        empty = tokenizer.encode("").ids
        word = tokenizer.encode("a", add_special_tokens=False).ids
        if len(empty) != 2 or tokenizer.encode("a").ids != [empty[0], *word, empty[1]]:
            raise CheckpointError(
                f"the tokenizer in {folder} does not put one token before and one after a text, as DistilBERT's does; "
                "take the tokenizer that was published with the checkpoint"
            )
        self.cls_id, self.sep_id = empty
        state = json.loads(tokenizer.to_str())
        plain = all(token["special"] for token in state["added_tokens"])
        normalizer = state["normalizer"] or {}
        pre_tokenizer = state["pre_tokenizer"] or {}
        self.splits_words = (
            plain and normalizer.get("type") == "BertNormalizer" and pre_tokenizer.get("type") == "BertPreTokenizer"
        )
        self.splits_ideographs = self.splits_words and bool(normalizer.get("handle_chinese_chars"))

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> WordPieceTokenizer:
        """Load ``tokenizer.json``, else ``vocab.txt``; either with the settings of ``tokenizer_config.json``.

        Raises:
            CheckpointError: neither is there, one is damaged, or an id lies beyond the model's ``vocab_size``.
        """
        path = tokenizer_files(folder)[0]
        try:
            tokenizer = _from_json(folder) if path.suffix == ".json" else _from_vocab(folder)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"cannot read the tokenizer {path}: {error}") from None
        if _config(folder).get("truncation_side", "right") != "right":
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'} keeps the end of a long text (truncation_side); distilbeam keeps "
                "its beginning: set truncation_side to right if that will do"
            )
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest < vocab_size:
            raise CheckpointError(
                f"the tokenizer {path} has ids up to {largest}, the model's vocabulary ends at {vocab_size - 1}; "
                "take the tokenizer that was published with the checkpoint"
            )
        return cls(tokenizer, folder)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without special tokens, untruncated."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that determine the tokenizer of a checkpoint folder, the main one first."""
    fast, vocabulary, config = folder / "tokenizer.json", folder / "vocab.txt", folder / "tokenizer_config.json"
    for main in (fast, vocabulary):
        if main.is_file():
            return [main, config] if config.is_file() else [main]
    raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.txt; copy one from the published checkpoint")


def _from_json(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = _config(folder)
    if isinstance(tokenizer.normalizer, BertNormalizer) and config.get("tokenizer_class") in _BERT_CLASSES:
        tokenizer.normalizer = _normalizer(config)
    return tokenizer


def _from_vocab(folder: Path) -> Tokenizer:
    config = _config(folder)
    lines = (folder / "vocab.txt").read_bytes().decode("utf-8").split("\n")
    vocabulary = {token.rstrip("\r"): index for index, token in enumerate(lines[: -1 if lines[-1] == "" else None])}
    special = {role: _content(config.get(role) or default) for role, default in _SPECIAL.items()}
    for role in ("unk_token", "sep_token", "cls_token"):
        if special[role] not in vocabulary:
            raise CheckpointError(f"{folder / 'vocab.txt'} lacks the {role} {special[role]!r}")
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=special["unk_token"], max_input_chars_per_word=100))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special.values() if token in vocabulary]
    )
    tokenizer.normalizer = _normalizer(config)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    cls, sep = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}", pair=None, special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    return tokenizer


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _normalizer(config: dict[str, Any]) -> BertNormalizer:
    lowercase = config.get("do_lower_case")
    ideographs = config.get("tokenize_chinese_chars")
    return BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True if ideographs is None else bool(ideographs),
        strip_accents=config.get("strip_accents"),
        lowercase=True if lowercase is None else bool(lowercase),
    )


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
