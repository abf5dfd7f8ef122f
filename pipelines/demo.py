"""``distilbeam demo``: the example reviews through the tiny model that comes along."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from distilbeam.transforms.manifest import find_manifest

__all__ = ["equivalent", "settings"]


def settings(output: str) -> dict[str, Any]:
    """What the demo runs, as arguments of ``featurize``. Its own earlier output is overwritten, no other is."""
    examples = files("distilbeam") / "examples"
    earlier = find_manifest(output)
    own = earlier is not None and all(
        PurePath(part.source).name == "reviews.jsonl" for record in earlier.records for part in record.parts
    )
    return {
        "model": str(examples / "distilbert-tiny-sst2"),
        "features": ["embedding", "label", "score"],
        "input": [str(examples / "reviews.jsonl")],
        "text": ["text"],
        "id": "id",
        "output": output,
        **({"if_exists": "overwrite"} if own else {}),
    }


def equivalent(settings: dict[str, Any]) -> str:
    """The command line that does the same."""
    words = ["distilbeam", "featurize"]
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), *(value if isinstance(value, list) else [value])]
    return shlex.join(words)
