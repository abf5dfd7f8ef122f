"""``distilbeam demo``: the example reviews through the tiny model that comes along."""

from __future__ import annotations

import shlex
from importlib.resources import files
from typing import Any

from distilbeam.transforms.output.manifest import find_manifest, settings_of

__all__ = ["equivalent", "settings"]


def settings(output: str) -> dict[str, Any]:
    """What the demo runs, as arguments of ``featurize``. Its own earlier output is overwritten, no other is."""
    examples = files("distilbeam") / "examples"
    chosen = {
        "model": str(examples / "distilbert-tiny-sst2"),
        "features": ["embedding", "label", "score"],
        "input": [str(examples / "reviews.jsonl")],
        "text": ["text"],
        "id": "id",
        "output": output,
    }
    return {**chosen, "if_exists": "overwrite"} if _is_own(output, chosen) else chosen


def equivalent(settings: dict[str, Any]) -> str:
    """The command line that does the same."""
    words = ["distilbeam", "featurize"]
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), *(value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _is_own(output: str, chosen: dict[str, Any]) -> bool:
    """Whether a folder holds what the demo writes: made of its file, by its model, with its settings."""
    earlier = find_manifest(output)
    if earlier is None:
        return False
    from distilbeam.transforms.distilbert.checkpoint import Checkpoint
    from distilbeam.transforms.documents import ReadDocuments
    from distilbeam.transforms.inference import Featurize
    from distilbeam.transforms.output.shards import ShardSettings

    documents = ReadDocuments(chosen["input"], text=chosen["text"], id=chosen["id"])
    features = Featurize(chosen["model"], chosen["features"], text=chosen["text"], separator=documents.separator)
    return (
        {part.source for record in earlier.records for part in record.parts} == set(chosen["input"])
        and [model["weights_sha256"] for model in earlier.models] == [Checkpoint.open(chosen["model"]).weights_sha256]
        and settings_of(earlier.models) == [features.settings]
        and earlier.reading == documents.settings.digest
        and earlier.writer == ShardSettings().as_dict()
    )
