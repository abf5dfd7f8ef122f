"""What a sentence-transformers folder says about pooling, normalization and length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbeam.transforms.errors import CheckpointError

from .files import is_there, parse_json, plain, read_json, read_whole, shown

__all__ = ["SENTENCE_FILES", "SentenceSettings", "read_sentence_settings"]

SENTENCE_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names that versions of sentence-transformers gave to the settings of a transformer; the first that is there holds."""

_OTHER = "set `pooling` to have the plain model's vectors, which differ from the published ones"
_OTHER_MODULES = "take a model that is made so, or set `pooling` to have the plain transformer's vectors"
_MAX_MODULES = 16
_FOLDER = re.compile(r"[\w.-][\w. -]*(/[\w.-][\w. -]*)*")
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """Settings from ``modules.json`` and the files it names.

    Attributes:
        transformer: folder of the transformer relative to the checkpoint, often empty.
        pooling: ``mean``, ``cls`` or ``max``, or several of them joined by ``+``, whose vectors lie end to end.
        normalize: whether vectors are scaled to unit length.
        max_length: tokens of a text at most; None where it is not said.
        dimensions: how many of a vector are kept, after it was normalized; None for all.
        unsupported: why the folder's embedding cannot be computed; None where it can.
        cure: what to do about that.
    """

    transformer: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    dimensions: int | None = None
    unsupported: str | None = None
    cure: str = ""


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Settings of a sentence-transformers folder; plain defaults (mean pooling) for any other."""
    path = folder / "modules.json"
    if not is_there(path):
        return SentenceSettings()
    kinds, paths = _modules(path)
    problems: list[tuple[str, str]] = []
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        cure = _OTHER_MODULES
        if kinds[:2] == ["Transformer", "Pooling"]:
            cure = "`pooling` gives the vectors before those modules, which are another model's"
        problems.append(
            (f"its modules are {' > '.join(kinds)}; distilbeam runs Transformer > Pooling [> Normalize]", cure)
        )
    place = paths[kinds.index("Transformer")] if "Transformer" in kinds else ""
    pooling = "mean"
    if "Pooling" in kinds:
        config = folder / paths[kinds.index("Pooling")] / "config.json"
        if not is_there(config):
            raise CheckpointError(f"{shown(config)} is missing; copy the whole folder")
        modes = _pooling(read_json(config), config)
        if set(modes) <= {"mean", "cls", "max"} and len(set(modes)) == len(modes):
            pooling = "+".join(modes)
        else:
            named = plain("+".join(modes), 60)
            problems.append((f"it pools by {named}; distilbeam pools by mean, cls or max, or several of them", _OTHER))
    transformer = folder / place
    name = next((name for name in SENTENCE_FILES if is_there(transformer / name)), SENTENCE_FILES[0])
    settings, tokenizer = _optional(transformer / name), _optional(transformer / "tokenizer_config.json")
    if settings.get("do_lower_case") and not tokenizer.get("do_lower_case", True):
        problems.append(("it lowercases texts before a cased tokenizer", _OTHER))
    length = _length(settings, transformer / name, problems)
    whole = _optional(folder / "config_sentence_transformers.json")
    prompt = whole.get("default_prompt_name")
    if prompt is not None:
        problems.append((f"it puts the prompt {shown(prompt, 60)} before every text", _OTHER))
    unsupported, cure = problems[0] if problems else (None, "")
    return SentenceSettings(
        transformer=place,
        pooling=pooling,
        normalize="Normalize" in kinds,
        max_length=length,
        dimensions=_dimensions(whole, folder / "config_sentence_transformers.json"),
        unsupported=unsupported,
        cure=cure,
    )


def _modules(path: Path) -> tuple[list[str], list[str]]:
    """Class and folder of each module."""
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
    paths = [str(module.get("path", "")).rstrip("/") for module in modules]
    for name in paths:
        if (name and not _FOLDER.fullmatch(name)) or ".." in name.split("/"):
            raise CheckpointError(
                f"{shown(path)} names a folder outside the checkpoint, {shown(name)}; take it as it was published"
            )
    return [plain(kind.rpartition(".")[2], 40) for kind in types], paths


def _pooling(config: dict[str, Any], path: Path) -> list[str]:
    """Names of the poolings in the order of their vectors; that of sentence-transformers, mean, where none is named."""
    named = config.get("pooling_mode")
    if isinstance(named, str):
        named = [named]
    if named is None:
        named = [mode for key, mode in _MODES.items() if config.get(key)] or ["mean"]
    if not isinstance(named, list) or not named or not all(isinstance(mode, str) for mode in named):
        raise CheckpointError(f"{shown(path)}: pooling_mode is {shown(named)}; it must be a name or a list of names")
    return named


def _length(settings: dict[str, Any], path: Path, problems: list[tuple[str, str]]) -> int | None:
    """Tokens of a text at most, by what sentence-transformers 1 to 6 have called it; the last that is said wins."""
    limit = settings.get("max_seq_length")
    for old in ("tokenizer_args", "processor_kwargs"):
        arguments = settings.get(old)
        if isinstance(arguments, dict):
            limit = arguments.get("model_max_length", limit)
            _unheeded(arguments, {"model_max_length", "local_files_only", "trust_remote_code"}, old, problems)
    harmless = {"dtype", "torch_dtype", "attn_implementation", "local_files_only", "trust_remote_code"}
    for part in ("model_args", "model_kwargs", "config_args", "config_kwargs"):
        arguments = settings.get(part)
        if isinstance(arguments, dict):
            _unheeded(arguments, harmless, part, problems)
    calls = settings.get("processing_kwargs")
    for part in ("common", "text"):
        arguments = calls.get(part) if isinstance(calls, dict) else None
        if not isinstance(arguments, dict):
            continue
        limit = arguments.get("max_length", limit)
        if arguments.get("truncation", True) not in (True, "longest_first", "only_first"):
            problems.append((f"its processing_kwargs set truncation to {shown(arguments['truncation'], 40)}", _OTHER))
        harmless = {"max_length", "truncation", "padding", "return_tensors", "pad_to_multiple_of"}
        _unheeded(arguments, harmless, f"processing_kwargs.{part}", problems)
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        problems.append((f"its transformer_task is {shown(task, 60)}", _OTHER))
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 3:
        raise CheckpointError(f"{shown(path)}: a text's most tokens are {shown(limit)}; it must be a number from 3")
    return int(min(limit, 1 << 31))


def _unheeded(arguments: dict[str, Any], harmless: set[str], where: str, problems: list[tuple[str, str]]) -> None:
    others = sorted(set(arguments) - harmless)
    if others:
        problems.append((f"its {where} set {plain(', '.join(others), 60)}, which distilbeam does not heed", _OTHER))


def _dimensions(settings: dict[str, Any], path: Path) -> int | None:
    found = settings.get("truncate_dim")
    if found is not None and (type(found) is not int or found < 1):
        raise CheckpointError(f"{shown(path)}: truncate_dim is {shown(found)}; it must be a whole number from 1")
    return found


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if is_there(path) else {}
