"""Whether an output was made with the settings of a job, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .manifest import Manifest
from .records import SplitRecord, agree, canonical, settings_of, without_path

__all__ = ["difference", "same", "unnamed"]

_SET_AS = {"format": "output_format", "max_bytes": "max_shard_bytes"}


def same(made: SplitRecord | Manifest, *, settings: Sequence[Any] | None, writer: Mapping[str, Any]) -> bool:
    """Whether something was made with these settings; None stands for any settings of the features."""
    as_asked = settings is None or agree(settings_of(made.models), settings)
    return as_asked and canonical(made.writer) == canonical(writer)


def unnamed(manifest: Manifest) -> list[Any]:
    """The settings of each stage; the hashes beside them tell which model it was."""
    return [without_path(each) for each in settings_of(manifest.models)]


def difference(manifest: Manifest, settings: Sequence[Any], writer: Mapping[str, Any]) -> str:
    """Which settings differ, with both values."""
    stages = settings_of(manifest.models)
    if len(stages) != len(settings):
        return f"it has features of {len(stages)} models, not of {len(settings)}"
    names_of_both = zip(stages, canonical(settings), strict=True)
    before, after = dict(manifest.writer), dict(writer)
    for was, now in names_of_both:
        was = was if "model" in (now or {}) else without_path(was)
        changed = [name for name in {*(was or {}), *(now or {})} if (was or {}).get(name) != (now or {}).get(name)]
        before |= {name: (was or {}).get(name) for name in changed}
        after |= {name: (now or {}).get(name) for name in changed}
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    told = (f"`{_SET_AS.get(name, name)}` was {before.get(name)!r}, is {after.get(name)!r}" for name in names[:3])
    return ", ".join(told) or "no settings"
