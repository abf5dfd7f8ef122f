"""What a sentence-transformers folder says about pooling, normalization and length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbeam.transforms.errors import CheckpointError

__all__ = ["SentenceSettings", "read_sentence_settings"]

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
    if not (folder / "modules.json").is_file():
        return SentenceSettings()
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / 'modules.json'} is not a list of modules")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    paths = [str(module.get("path", "")) for module in modules]
    for path in paths:
        if path.startswith("/") or ".." in Path(path).parts:
            raise CheckpointError(f"{folder / 'modules.json'} names a folder outside the checkpoint")
    unsupported = None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        unsupported = f"its modules are {' > '.join(kinds)}; distilbeam runs Transformer > Pooling [> Normalize]"
    transformer = paths[kinds.index("Transformer")] if "Transformer" in kinds else ""
    pooling = "mean"
    if "Pooling" in kinds:
        found = _pooling(_object(folder / paths[kinds.index("Pooling")] / "config.json"))
        if found in ("mean", "cls", "max"):
            pooling = found
        else:
            unsupported = unsupported or f"it pools by {found or 'nothing'}; distilbeam pools by mean, cls or max"
    settings = _optional(folder / transformer / "sentence_bert_config.json")
    limit = settings.get("max_seq_length")
    if settings.get("do_lower_case") and not _optional(folder / transformer / "tokenizer_config.json").get(
        "do_lower_case", True
    ):
        unsupported = unsupported or "it lowercases texts before a cased tokenizer"
    prompt = _optional(folder / "config_sentence_transformers.json").get("default_prompt_name")
    if prompt is not None:
        unsupported = unsupported or f"it puts the prompt {prompt!r} before every text"
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
    return _object(path) if path.is_file() else {}


def _object(path: Path) -> dict[str, Any]:
    content = _read(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path} is missing or not valid JSON") from None
