"""What a tokenizer.json may ask for: parts whose cost is bounded by the text, and no tokens the model does not know."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from distilbeam.transforms.errors import CheckpointError

from .files import shown

__all__ = ["checked"]

# Left out: what replaces by a pattern of the checkpoint's (which can take for ever, or make a text endless) and what
# maps characters to strings of its own.
_ALLOWED = {
    "normalizer": {
        *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Strip", "StripAccents", "Sequence"),
    },
    "pre_tokenizer": {
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence"),
        *("Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
    },
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
}
_MEMBERS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}
_MAX_MEMBERS = 8
# The cost of a word grows with the cube of its characters. Published checkpoints have 100, BERT's own code 200.
_MAX_WORD = 200
_PUBLISHED = "take the tokenizer that was published with the checkpoint"


def checked(state: Any, path: Path, vocab_size: int, control: Collection[str]) -> dict[str, Any]:
    """The parts of a tokenizer.json that encode a text, each held to be harmless.

    Args:
        state: the file's content.
        path: its name, for messages.
        vocab_size: ids that the model knows.
        control: tokens that are text where a text has them, whatever the file says; no others are.

    Raises:
        CheckpointError: it asks for something else, or does not fit the model.
    """
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise _unreadable(path, "it has no model")
    for part in _ALLOWED:
        _check_part(part, state.get(part), path)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(
            state.get("added_tokens"), path, vocab_size, {*control, *_framing(state.get("post_processor"))}
        ),
        **{part: state.get(part) for part in _ALLOWED},
        "decoder": None,
        "model": _model(state["model"], path, vocab_size),
    }


def _check_part(part: str, content: Any, path: Path, depth: int = 0) -> None:
    if content is None:
        return
    if not isinstance(content, dict):
        raise _unreadable(path, f"its {part} is no object")
    kind = content.get("type")
    if not isinstance(kind, str) or kind not in _ALLOWED[part]:
        allowed = ", ".join(sorted(_ALLOWED[part]))
        raise CheckpointError(
            f"the tokenizer {shown(path)} has a {part} of type {shown(kind)}; distilbeam runs {allowed}: {_PUBLISHED}"
        )
    if kind == "Split" and not (isinstance(content.get("pattern"), dict) and set(content["pattern"]) == {"String"}):
        raise CheckpointError(
            f"the tokenizer {shown(path)} splits by a regular expression of its own, which can take for ever; "
            f"{_PUBLISHED}"
        )
    if kind == "Sequence":
        members = content.get(_MEMBERS[part])
        if depth or not isinstance(members, list) or len(members) > _MAX_MEMBERS:
            raise _unreadable(path, f"its {part} is no list of at most {_MAX_MEMBERS}")
        for member in members:
            _check_part(part, member, path, depth + 1)


def _model(model: dict[str, Any], path: Path, vocab_size: int) -> dict[str, Any]:
    kind = model.get("type") or _untold(model)
    if kind not in ("WordPiece", "WordLevel", "BPE", "Unigram"):
        raise CheckpointError(
            f"the tokenizer {shown(path)} is of type {shown(kind)}; distilbeam runs WordPiece, WordLevel, BPE, Unigram"
        )
    vocabulary = model.get("vocab")
    if kind == "Unigram":
        if not isinstance(vocabulary, list):
            raise _unreadable(path, "its vocabulary is no list")
        largest, unknown = len(vocabulary) - 1, model.get("unk_id")
        known = isinstance(unknown, int) and 0 <= unknown <= largest
    else:
        if not isinstance(vocabulary, dict):
            raise _unreadable(path, "its vocabulary is no object")
        if not all(type(number) is int and number >= 0 for number in vocabulary.values()):
            raise _unreadable(path, "an id of its vocabulary is no whole number")
        largest, unknown = max(vocabulary.values(), default=-1), model.get("unk_token")
        known = (isinstance(unknown, str) and unknown in vocabulary) or (kind == "BPE" and unknown is None)
    if not 0 <= largest < vocab_size:
        raise beyond(path, largest, vocab_size)
    if not known:
        raise CheckpointError(
            f"the tokenizer {shown(path)} has no token for unknown words: {shown(unknown)} is not in its vocabulary; "
            f"{_PUBLISHED}"
        )
    longest = model.get("max_input_chars_per_word", 100)
    if kind == "WordPiece" and (type(longest) is not int or not 0 < longest <= _MAX_WORD):
        raise CheckpointError(
            f"the tokenizer {shown(path)}: max_input_chars_per_word is {shown(longest)}; it must be 1 to {_MAX_WORD}"
        )
    if kind == "BPE" and model.get("dropout"):
        raise CheckpointError(f"the tokenizer {shown(path)} drops merges at random (dropout); set it to null")
    return {**model, "type": kind}


def _untold(model: dict[str, Any]) -> str:
    """The type of a model from the time when files did not name it."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _added(tokens: Any, path: Path, vocab_size: int, control: Collection[str]) -> list[dict[str, Any]]:
    if tokens is None:
        return []
    if not isinstance(tokens, list):
        raise _unreadable(path, "its added_tokens are no list")
    for token in tokens:
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int):
            raise _unreadable(path, "one of its added_tokens has no content or id")
        if not 0 <= token["id"] < vocab_size:
            raise beyond(path, token["id"], vocab_size)
    # What is special is passed over in a text: only the control tokens are to be.
    return [{**token, "special": token["content"] in control} for token in tokens]


def _framing(processor: Any) -> set[str]:
    """The tokens that a post-processor puts around texts."""
    found: set[str] = set()
    if isinstance(processor, dict):
        for member in processor.get("processors") or ():
            found |= _framing(member)
        for end in ("cls", "sep"):  # of BertProcessing and RobertaProcessing: token and id
            pair = processor.get(end)
            found |= {pair[0]} if isinstance(pair, list) and pair and isinstance(pair[0], str) else set()
        special = processor.get("special_tokens")
        if isinstance(special, dict):
            for name, entry in special.items():
                tokens = entry.get("tokens") if isinstance(entry, dict) else None
                found |= {name, *(token for token in tokens or () if isinstance(token, str))}
    return found


def beyond(path: Path, largest: int, vocab_size: int) -> CheckpointError:
    """What is said of ids that the model does not know."""
    return CheckpointError(
        f"the tokenizer {shown(path)} has ids up to {shown(largest)}, the model's vocabulary ends at {vocab_size - 1}; "
        f"{_PUBLISHED}"
    )


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"cannot read the tokenizer {shown(path)}: {reason}; {_PUBLISHED}")
