"""Tokens that a checkpoint adds to its vocabulary, from every file that transformers has ever kept them in.

transformers 2 and 3 wrote ``added_tokens.json`` and ``special_tokens_map.json``, 4 put ``added_tokens_decoder`` and
``additional_special_tokens`` into ``tokenizer_config.json``, 5 calls the latter ``extra_special_tokens``. What is read,
in which order and which file wins is as in transformers 5, since the order decides about ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from distilbeam.transforms.errors import CheckpointError

from .files import shown

__all__ = ["CONTROL_ROLES", "DeclaredToken", "control_tokens", "declared_tokens", "merged", "tells_more"]

CONTROL_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
"""Roles of the tokens that frame, fill and mask texts, each with BERT's own name for it.

Written in a text they are text; every other special token is the user's own and means in a text what it says.
"""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_LISTS = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True, slots=True)
class DeclaredToken:
    """A token that a file declares.

    Attributes:
        token: content and flags.
        id: its id as declared; None where only its place in the order tells.
        file: name of the file.
    """

    token: AddedToken
    id: int | None
    file: str


def tells_more(config: Mapping[str, Any], special: Mapping[str, Any]) -> bool:
    """Whether a special_tokens_map.json says what tokenizer_config.json, or BERT by default, does not."""
    if "added_tokens_decoder" in config:
        return False
    for key, value in special.items():
        if key in _LISTS:
            known = [_content(token) for name in _LISTS for token in _listed(config.get(name))]
            if any(_content(token) not in known for token in _listed(value)):
                return True
        elif key.endswith("_token") and _content(value) != _content(config.get(key) or CONTROL_ROLES.get(key)):
            return True
    return False


def merged(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with the tokens of special_tokens_map.json, which win; all named special tokens in it."""
    found = dict(config)
    if "added_tokens_decoder" not in config:
        for key, value in special.items():
            if key in _LISTS:
                known = _listed(found.get("extra_special_tokens")) or _listed(found.get("additional_special_tokens"))
                contents = [_content(token) for token in known]
                more = [token for token in _listed(value) if _content(token) not in contents]
                found["extra_special_tokens"] = [*known, *more]
            elif key.endswith("_token"):
                found[key] = value
    return found


def control_tokens(config: Mapping[str, Any]) -> frozenset[str]:
    """The tokens in the roles of ``CONTROL_ROLES``."""
    return frozenset(_content(config.get(role) or default) for role, default in CONTROL_ROLES.items())


def declared_tokens(
    config: Mapping[str, Any], numbers: Mapping[str, Any], folder: Path, *, defaults: bool
) -> list[DeclaredToken]:
    """What the files beside the vocabulary declare, in the order in which transformers adds it.

    Args:
        config: tokenizer_config.json, ``merged``.
        numbers: added_tokens.json, ids by token.
        folder: the checkpoint, for messages.
        defaults: whether roles that nobody names are BERT's, as where vocab.txt is read.

    Raises:
        CheckpointError: an entry cannot be read.
    """
    path = folder / "tokenizer_config.json"
    found: dict[str, DeclaredToken] = {}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    named = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)}
    if isinstance(extra, dict):
        named, extra = named | extra, None
    special = [*named.values(), *_listed(extra)]
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise CheckpointError(f"{shown(path)}: added_tokens_decoder is not an object; copy the file again")
        for number, token in decoder.items():
            _put(found, token, number, path)
    else:
        path = folder / "added_tokens.json"
        contents = {_content(token) for token in special}
        for content, number in numbers.items():
            flag = content in contents
            _put(found, {"content": content, "normalized": not flag, "special": flag}, number, path)
    ordered = sorted(found.values(), key=lambda declared: declared.id or 0)
    if defaults:
        named = {**{role: token for role, token in CONTROL_ROLES.items() if role not in config}, **named}
    order = ("bos_token", "eos_token", *CONTROL_ROLES)
    rest = [named[role] for role in order if role in named]
    rest += [token for role, token in named.items() if role not in order]
    path = folder / "tokenizer_config.json"
    for token in [*rest, *_listed(extra)]:
        content = _content(token)
        if content and content not in found:
            found[content] = DeclaredToken(_token(token, path, special=True), None, path.name)
            ordered.append(found[content])
    return ordered


def _put(found: dict[str, DeclaredToken], token: Any, number: Any, path: Path) -> None:
    try:
        place = int(number)
        if isinstance(number, bool | float) or place < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise CheckpointError(f"{shown(path)}: an added token has the id {shown(number)}; copy it again") from None
    made = _token(token, path)
    if made.content in found and found[made.content].id != place:
        raise CheckpointError(f"{shown(path)} gives the added token {shown(made.content)} two ids; copy it again")
    found[made.content] = DeclaredToken(made, place, path.name)


def _token(token: Any, path: Path, *, special: bool = False) -> AddedToken:
    """A token with its flags; one that is special is not normalized unless it says so."""
    if isinstance(token, str):
        return AddedToken(token, special=special)
    content = token.get("content") if isinstance(token, dict) else None
    if not isinstance(content, str):
        raise CheckpointError(f"{shown(path)}: an added token has no content: {shown(token)}; copy the file again")
    flags = {name: bool(token[name]) for name in _FLAGS if token.get(name) is not None}
    return AddedToken(content, special=bool(token.get("special", special)), **flags)


def _listed(tokens: Any) -> Sequence[Any]:
    if isinstance(tokens, dict):
        return list(tokens.values())
    return tokens if isinstance(tokens, list) else []


def _content(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
