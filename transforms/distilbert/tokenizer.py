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
from distilbeam.transforms.words import KnownWords

from .files import digest, is_there, parse_json, plain, read_json, read_whole, shown
from .tokenizer_rules import beyond, checked

__all__ = ["WordPieceTokenizer", "check_tokenizer_config", "tokenizer_files"]

# Of these classes Hugging Face takes the normalizer from tokenizer_config.json, whatever tokenizer.json says; no class
# stands for DistilBERT's own.
_BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")
# Of these a tokenizer.json says all there is to say.
_OTHER_CLASSES = (
    *("PreTrainedTokenizerFast", "TokenizersBackend", "ElectraTokenizer", "ElectraTokenizerFast"),
    *("MobileBertTokenizer", "MobileBertTokenizerFast", "MPNetTokenizer", "MPNetTokenizerFast"),
    *("RobertaTokenizer", "RobertaTokenizerFast", "XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
)
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
        longest_word: characters of a word that is looked up, at most; a longer one is unknown. None for no such limit.
        stop_id: id of a full stop, if it has one of its own and words are split.
        known_words: ids of words that were met.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Control tokens written in a user's text are text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        empty = tokenizer.encode("").ids
        word = tokenizer.encode("a", add_special_tokens=False).ids
        state = json.loads(tokenizer.to_str())
        # A template may take the text twice, which the ids of one word do not tell.
        once = all(
            sum("Sequence" in piece for piece in processor.get("single", ({"Sequence": {}},))) == 1
            for processor in _processors(state["post_processor"])
        )
        if not once or len(empty) != 2 or tokenizer.encode("a").ids != [empty[0], *word, empty[1]]:
            raise CheckpointError(
                f"the tokenizer in {shown(folder)} does not put one token before and one after a text, as DistilBERT's "
                "does; take the tokenizer that was published with the checkpoint"
            )
        self.cls_id, self.sep_id = empty
        for control in empty:
            if control in tokenizer.encode(f" {tokenizer.id_to_token(control)} ", add_special_tokens=False).ids:
                raise CheckpointError(
                    f"the tokenizer in {shown(folder)} takes {shown(tokenizer.id_to_token(control))} in a text for a "
                    "control token; take the tokenizer that was published with the checkpoint"
                )
        plain = all(token["special"] for token in state["added_tokens"])
        normalizer = state["normalizer"] or {}
        pre_tokenizer = state["pre_tokenizer"] or {}
        self.splits_words = (
            plain
            and normalizer.get("type") == "BertNormalizer"
            and bool(normalizer.get("clean_text"))
            and pre_tokenizer.get("type") == "BertPreTokenizer"
        )
        self.splits_ideographs = self.splits_words and bool(normalizer.get("handle_chinese_chars"))
        model = state["model"]
        self.longest_word: int | None = (
            model.get("max_input_chars_per_word") if model.get("type") == "WordPiece" else None
        )
        self.stop_id: int | None = self._stop_id() if self.splits_words else None
        self.known_words = KnownWords()

    def _stop_id(self) -> int | None:
        ids = self.encode(["."])[0]
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return ids[0] if len(ids) == 1 and vocabulary.get(".") == ids[0] else None

    @classmethod
    def load(cls, folder: Path, vocab_size: int, sha256: str | None = None) -> WordPieceTokenizer:
        """Load ``tokenizer.json``, else ``vocab.txt``; either with the settings of ``tokenizer_config.json``.

        Args:
            folder: the checkpoint.
            vocab_size: ids that the model knows.
            sha256: what the files' digest was when the checkpoint was verified; None for anything.

        Raises:
            CheckpointError: neither is there, one is damaged, asks for code or for what cannot be bounded, has changed,
                or an id lies beyond the model's ``vocab_size``.
        """
        files = tokenizer_files(folder)
        path = files[0]
        contents = [read_whole(file) for file in files]
        if sha256 is not None and digest(contents) != sha256:
            raise CheckpointError(f"{shown(path)} has changed since it was checked; start the job again")
        check_tokenizer_config(folder)
        config = parse_json(contents[1], files[1]) if len(files) > 1 else {}
        if config.get("truncation_side", "right") != "right":
            raise CheckpointError(
                f"{shown(files[1])} keeps the end of a long text (truncation_side); distilbeam keeps its beginning: "
                "set truncation_side to right if that will do"
            )
        reason = ""
        try:
            make = _from_json if path.suffix == ".json" else _from_vocab
            tokenizer = make(contents[0], config, path, vocab_size)
            found = cls(tokenizer, folder)
        except (CheckpointError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # A panic of the Rust tokenizer is no Exception.
            reason = plain(str(error) or type(error).__name__)
        if reason:
            raise CheckpointError(f"cannot read the tokenizer {shown(path)}: {reason}")
        largest = max(found.cls_id, found.sep_id, *tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocab_size:
            raise beyond(path, largest, vocab_size)
        return found

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without special tokens, untruncated."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _processors(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A post-processor taken apart, if it is a sequence of several."""
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [part for each in processor["processors"] for part in _processors(each)]
    return [processor]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that determine the tokenizer of a checkpoint folder, the main one first."""
    fast, vocabulary, config = folder / "tokenizer.json", folder / "vocab.txt", folder / "tokenizer_config.json"
    for main in (fast, vocabulary):
        if is_there(main):
            return [main, config] if is_there(config) else [main]
    raise CheckpointError(
        f"{shown(folder)} has neither tokenizer.json nor vocab.txt; copy one from the published checkpoint"
    )


def check_tokenizer_config(folder: Path) -> None:
    """Refuse a ``tokenizer_config.json`` that asks for code, or for a class whose ids cannot be had without it.

    Raises:
        CheckpointError: it does, or is no JSON object.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path) if is_there(path) else {}
    kind = config.get("tokenizer_class")
    known = kind in _BERT_CLASSES if kind is None or isinstance(kind, str) else False
    if not known and is_there(folder / "tokenizer.json"):
        known = kind in _OTHER_CLASSES
    if config.get("auto_map") or not known:
        what = "auto_map" if config.get("auto_map") else f"the class {shown(kind)}"
        raise CheckpointError(
            f"{shown(path)} asks for a tokenizer of its own ({what}); distilbeam never runs code from a checkpoint: "
            "give the folder a tokenizer.json and set tokenizer_class to PreTrainedTokenizerFast"
        )


def _from_json(content: bytes, config: dict[str, Any], path: Path, vocab_size: int) -> Tokenizer:
    try:
        state = parse_json(content, path, unique=True)
    except CheckpointError:
        raise CheckpointError(f"cannot read the tokenizer {shown(path)}: it is not valid JSON") from None
    control = {_content(config.get(role) or default) for role, default in _SPECIAL.items()} | {*_SPECIAL.values()}
    # What was checked is what is loaded: two parsers may understand one file differently.
    tokenizer = Tokenizer.from_str(json.dumps(checked(state, path, vocab_size, control)))
    if isinstance(tokenizer.normalizer, BertNormalizer) and config.get("tokenizer_class") in _BERT_CLASSES:
        tokenizer.normalizer = _normalizer(config)
    return tokenizer


def _from_vocab(content: bytes, config: dict[str, Any], path: Path, vocab_size: int) -> Tokenizer:
    count = content.count(b"\n") + (not content.endswith(b"\n"))
    if count > vocab_size:
        raise beyond(path, count - 1, vocab_size)
    lines = content.decode("utf-8").split("\n")
    vocabulary = {token.rstrip("\r"): index for index, token in enumerate(lines[: -1 if lines[-1] == "" else None])}
    special = {role: _content(config.get(role) or default) for role, default in _SPECIAL.items()}
    for role in ("unk_token", "sep_token", "cls_token"):
        if special[role] not in vocabulary:
            raise CheckpointError(f"{shown(path)} lacks the {role} {shown(special[role])}")
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
