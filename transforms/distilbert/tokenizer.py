"""Building the tokenizer of a checkpoint from ``tokenizer.json`` or ``vocab.txt``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from distilbeam.transforms.errors import CheckpointError
from distilbeam.transforms.markers import Markers
from distilbeam.transforms.words import KnownWords

from .added_tokens import CONTROL_ROLES, DeclaredToken, control_tokens, declared_tokens, merged, tells_more
from .files import digest, is_there, parse_json, parse_object, plain, read_json, read_whole, shown
from .tokenizer_rules import beyond, checked

__all__ = ["WordPieceTokenizer", "check_tokenizer_config"]

# Of these classes Hugging Face takes the normalizer from tokenizer_config.json, whatever tokenizer.json says; no class
# stands for DistilBERT's own.
_BERT_CLASSES = (None, "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")
# Of these a tokenizer.json says all there is to say.
_OTHER_CLASSES = (
    *("PreTrainedTokenizerFast", "TokenizersBackend", "ElectraTokenizer", "ElectraTokenizerFast"),
    *("MobileBertTokenizer", "MobileBertTokenizerFast", "MPNetTokenizer", "MPNetTokenizerFast"),
    *("RobertaTokenizer", "RobertaTokenizerFast", "XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
)


class WordPieceTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        cls_id, sep_id: ids put before and after each text.
        splits_words: whether words always end at white space and ASCII punctuation, as BERT's pre-tokenizer makes it.
        splits_ideographs: whether each CJK ideograph is a word.
        longest_word: characters of a word that is looked up, at most; a longer one is unknown. None for no such limit.
        stop_id: id of a full stop, if it has one of its own and words are split.
        known_words: ids of words that were met.
        markers: tokens added to the vocabulary that are found in texts before words are, control tokens not among them.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        _as_text(tokenizer)
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
        own = [token for token in state["added_tokens"] if not token["special"]]
        self.markers = Markers([(token["content"], token["normalized"]) for token in own], tokenizer.normalizer)
        # The tokenizer of texts without markers, whose tokens are those of their words.
        self._unmarked: Tokenizer | None = None
        if own:
            state["added_tokens"] = [token for token in state["added_tokens"] if token["special"]]
            self._unmarked = _as_text(Tokenizer.from_str(json.dumps(state)))
        normalizer = state["normalizer"] or {}
        pre_tokenizer = state["pre_tokenizer"] or {}
        self.splits_words = (
            normalizer.get("type") == "BertNormalizer"
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
        ids = self.encode_unmarked(["."])[0]
        vocabulary = (self._unmarked or self._tokenizer).get_vocab(with_added_tokens=True)
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
        files = TokenizerFiles.read(folder)
        path, config = files.paths[0], files.config
        if sha256 is not None and files.sha256 != sha256:
            raise CheckpointError(f"{shown(path)} has changed since it was checked; start the job again")
        check_tokenizer_config(folder)
        if config.get("truncation_side", "right") != "right":
            raise CheckpointError(
                f"{shown(folder / 'tokenizer_config.json')} keeps the end of a long text (truncation_side); distilbeam "
                "keeps its beginning: set truncation_side to right if that will do"
            )
        reason = ""
        try:
            make = _from_json if path.suffix == ".json" else _from_vocab
            tokenizer = make(files, vocab_size)
            found = cls(tokenizer, folder)
        except (CheckpointError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # A panic of the Rust tokenizer is no Exception.
            reason = plain(str(error) or type(error).__name__)
        if reason:
            raise CheckpointError(f"cannot read the tokenizer {shown(path)}: {reason}")
        largest = max(
            found.cls_id,
            found.sep_id,
            *tokenizer.get_vocab(with_added_tokens=False).values(),
            *(tokenizer.token_to_id(content) or 0 for content, _ in found.markers.tokens),
        )
        if largest >= vocab_size:
            raise beyond(path, largest, vocab_size)
        return found

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without special tokens, untruncated."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_unmarked(self, texts: Sequence[str]) -> list[list[int]]:
        """As ``encode``, of texts that have no markers; neither do several of them joined have any."""
        if self._unmarked is None:
            return self.encode(texts)
        encodings = self._unmarked.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _as_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Control tokens written in a user's text are text; they alone are said to be special.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _processors(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A post-processor taken apart, if it is a sequence of several."""
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [part for each in processor["processors"] for part in _processors(each)]
    return [processor]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files that determine a tokenizer, as they were read.

    Attributes:
        paths: where they lie, the main one first.
        contents: their bytes.
        config: what tokenizer_config.json and special_tokens_map.json say.
        numbers: ids of added tokens by their content, as added_tokens.json has them.
    """

    paths: tuple[Path, ...]
    contents: tuple[bytes, ...]
    config: dict[str, Any]
    numbers: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read them.

        Raises:
            CheckpointError: there are none, or one is damaged.
        """
        main = next((path for name in ("tokenizer.json", "vocab.txt") if is_there(path := folder / name)), None)
        if main is None:
            raise CheckpointError(
                f"{shown(folder)} has neither tokenizer.json nor vocab.txt; copy one from the published checkpoint"
            )
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        read = {name: read_whole(folder / name) for name in names if is_there(folder / name)}
        objects = {name: parse_object(content, folder / name) for name, content in read.items()}
        config, special, numbers = (objects.get(name, {}) for name in names)
        # Those that say nothing do not count, so that what is in both of them, as usual, is read from one.
        if not tells_more(config, special):
            read.pop(names[1], None)
        if not numbers or "added_tokens_decoder" in config:
            read.pop(names[2], None)
            numbers = {}
        paths = (main, *(folder / name for name in read))
        return cls(paths, (read_whole(main), *read.values()), merged(config, special), numbers)

    @property
    def sha256(self) -> str:
        """SHA-256 over all of them, one after the other."""
        return digest(self.contents)


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


def _from_json(files: TokenizerFiles, vocab_size: int) -> Tokenizer:
    path, config = files.paths[0], files.config
    try:
        state = parse_json(files.contents[0], path, unique=True)
    except CheckpointError:
        raise CheckpointError(f"cannot read the tokenizer {shown(path)}: it is not valid JSON") from None
    declared = declared_tokens(config, files.numbers, path.parent, defaults=False)
    control = control_tokens(config) | {*CONTROL_ROLES.values()}
    if isinstance(state, dict) and config.get("split_special_tokens"):
        control |= {entry.token.content for entry in declared if entry.token.special}
        stored_tokens = state.get("added_tokens")
        for token in stored_tokens if isinstance(stored_tokens, list) else ():
            if isinstance(token, dict) and token.get("special") and isinstance(token.get("content"), str):
                control |= {token["content"]}
    cut = state.get("truncation") if isinstance(state, dict) else None
    if isinstance(cut, dict) and cut.get("direction") == "Left" and "truncation_side" not in config:
        raise CheckpointError(
            f"{shown(path)} keeps the end of a long text (truncation); distilbeam keeps its beginning: set its "
            "direction to Right if that will do"
        )
    state = checked(state, path, vocab_size, control)
    bert = config.get("tokenizer_class") in _BERT_CLASSES
    if bert and "added_tokens_decoder" in config:
        known = {token.token.content for token in declared}
        for token in state["added_tokens"]:
            if not token["special"] and token["content"] not in known:
                raise CheckpointError(
                    f"{shown(path)} has the added token {shown(token['content'])}, and added_tokens_decoder in "
                    "tokenizer_config.json has not: transformers 4 and 5 read such a folder differently; take the "
                    "token out of the one, or put it into the other"
                )
    # What was checked is what is loaded: two parsers may understand one file differently.
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if isinstance(tokenizer.normalizer, BertNormalizer) and bert:
        tokenizer.normalizer = _normalizer(config)
    stored = {token["content"]: AddedToken(**_without_id(token)) for token in state["added_tokens"]}
    _declare(tokenizer, declared, control, path, vocab_size, stored)
    return tokenizer


def _without_id(token: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in token.items() if name != "id"}


def _from_vocab(files: TokenizerFiles, vocab_size: int) -> Tokenizer:
    path, content, config = files.paths[0], files.contents[0], files.config
    count = content.count(b"\n") + (not content.endswith(b"\n"))
    if count > vocab_size:
        raise beyond(path, count - 1, vocab_size)
    lines = content.decode("utf-8").split("\n")
    vocabulary = {token.rstrip("\r"): index for index, token in enumerate(lines[: -1 if lines[-1] == "" else None])}
    special = {role: _content(config.get(role) or default) for role, default in CONTROL_ROLES.items()}
    for role in ("unk_token", "sep_token", "cls_token"):
        if special[role] not in vocabulary:
            raise CheckpointError(f"{shown(path)} lacks the {role} {shown(special[role])}")
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=special["unk_token"], max_input_chars_per_word=100))
    tokenizer.normalizer = _normalizer(config)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    cls, sep = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}", pair=None, special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    declared = declared_tokens(config, files.numbers, path.parent, defaults=True)
    control = set(special.values())
    if config.get("split_special_tokens"):
        control |= {entry.token.content for entry in declared if entry.token.special}
    _declare(tokenizer, declared, control, path, vocab_size, {})
    return tokenizer


def _declare(
    tokenizer: Tokenizer,
    declared: Sequence[DeclaredToken],
    control: Collection[str],
    path: Path,
    vocab_size: int,
    stored: Mapping[str, AddedToken],
) -> None:
    """Add the tokens of other files than the main one, each with the id that they declare."""
    if len(declared) > vocab_size:
        raise beyond(path, len(declared), vocab_size)
    added = []
    for entry in declared:
        token = entry.token
        token.special = token.content in control
        if token.content and not (token.special and token.content in stored) and token != stored.get(token.content):
            added.append(token)
    tokenizer.add_tokens(added)
    for entry in declared:
        content = entry.token.content
        found = tokenizer.token_to_id(content) if content else None
        if entry.id is not None and entry.id >= vocab_size and not entry.token.special:
            raise beyond(path.with_name(entry.file), entry.id, vocab_size)
        if entry.id is not None and content and found != entry.id and not entry.token.special:
            raise CheckpointError(
                f"{shown(path.with_name(entry.file))} gives the added token {shown(content)} the id {entry.id}, and "
                f"after the vocabulary of {path.name} it comes to {found}: versions of transformers read such a folder "
                "differently; save its tokenizer with the version that it was trained with, as tokenizer.json"
            )


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
