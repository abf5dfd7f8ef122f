"""What a sentence-transformers folder says about pooling, normalization and length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbeam.transforms.errors import CheckpointError

from .files import is_there, parse_json, plain, read_json, read_whole, shown

__all__ = ["SentenceSettings", "read_sentence_settings"]

_MAX_MODULES = 16
_FOLDER = re.compile(r"[\w.-][\w. -]*(/[\w.-][\w. -]*)*")
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """Settings from ``modules.json`` and the files it names.

    Attributes:
        transformer: folder of the transformer relative to the checkpoint, often empty.
        pooling: ``mean``, ``cls`` or ``max``.
        normalize: whether vectors are scaled to unit length.
        max_length: tokens of a text at most; None where it is not said.
        unsupported: why the folder's embedding cannot be computed; None where it can.
    """

    transformer: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    unsupported: str | None = None


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Settings of a sentence-transformers folder; plain defaults (mean pooling) for any other."""
    path = folder / "modules.json"
    if not is_there(path):
        return SentenceSettings()
    try:
        modules = parse_json(read_whole(path), path)
    except FileNotFoundError:
        raise CheckpointError(f"{shown(path)} is a link to nothing; copy the checkpoint again") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{shown(path)} is not a list of modules; copy it again")
    if len(modules) > _MAX_MODULES:
        raise CheckpointError(f"{shown(path)} is a list of {len(modules)} modules; at most {_MAX_MODULES} are read")
    types = [str(module.get("type", "")) for module in modules]
    for kind in types:
        if not kind.startswith("sentence_transformers."):
            raise CheckpointError(
                f"{shown(path)} asks for code of its own, the module {shown(kind)}; distilbeam never runs code from a "
                "checkpoint: take a model made of sentence_transformers' modules"
            )
    kinds = [plain(kind.rpartition(".")[2], 40) for kind in types]
    paths = [str(module.get("path", "")).rstrip("/") for module in modules]
    for name in paths:
        if (name and not _FOLDER.fullmatch(name)) or ".." in name.split("/"):
            raise CheckpointError(
                f"{shown(path)} names a folder outside the checkpoint, {shown(name)}; take it as it was published"
            )
    unsupported = None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        unsupported = f"its modules are {' > '.join(kinds)}; distilbeam runs Transformer > Pooling [> Normalize]"
    transformer = paths[kinds.index("Transformer")] if "Transformer" in kinds else ""
    pooling = "mean"
    if "Pooling" in kinds:
        place = folder / paths[kinds.index("Pooling")] / "config.json"
        if not is_there(place):
            raise CheckpointError(f"{shown(place)} is missing; copy the whole folder")
        found = _pooling(read_json(place))
        if found in ("mean", "cls", "max"):
            pooling = found
        else:
            unsupported = (
                unsupported or f"it pools by {plain(found, 60) or 'nothing'}; distilbeam pools by mean, cls or max"
            )
    settings = _optional(folder / transformer / "sentence_bert_config.json")
    limit = settings.get("max_seq_length")
    if settings.get("do_lower_case") and not _optional(folder / transformer / "tokenizer_config.json").get(
        "do_lower_case", True
    ):
        unsupported = unsupported or "it lowercases texts before a cased tokenizer"
    prompt = _optional(folder / "config_sentence_transformers.json").get("default_prompt_name")
    if prompt is not None:
        unsupported = unsupported or f"it puts the prompt {shown(prompt, 60)} before every text"
    return SentenceSettings(
        transformer=transformer,
        pooling=pooling,
        normalize="Normalize" in kinds,
        max_length=limit if isinstance(limit, int) else None,
        unsupported=unsupported,
    )


def _pooling(config: dict[str, Any]) -> str:
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return named
    return "+".join(mode for key, mode in _MODES.items() if config.get(key))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if is_there(path) else {}
