"""Precision of the rows that an output has, which ``auto`` stands for when a job goes on from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .records import SplitRecord

__all__ = ["check_dtypes", "found_dtypes"]


def found_dtypes(settings: Sequence[Mapping[str, Any]], records: Iterable[SplitRecord]) -> tuple[str, ...]:
    """The dtype in which most splits were computed, by stage; empty where the user has set it, or nobody knows.

    Args:
        settings: settings of each stage with a model, in order.
        records: splits that are finished.
    """
    counts = [Counter[str]() for _ in settings]
    for record in records:
        for count, model in zip(counts, record.models, strict=False):
            compute = model.get("compute")
            dtype = compute.get("dtype") if isinstance(compute, Mapping) else None
            if isinstance(dtype, str):
                count[dtype] += 1
    most = [count.most_common(1)[0][0] if count else "" for count in counts]
    found = tuple(dtype if stage.get("dtype") == "auto" else "" for stage, dtype in zip(settings, most, strict=True))
    return found if any(found) else ()


def check_dtypes(models: Sequence[Callable[[], Mapping[str, Any]]], dtypes: Sequence[str]) -> None:
    """Looks whether this worker can compute in the dtypes.

    Raises:
        SettingsError: it cannot.
    """
    for model, dtype in zip(models, dtypes, strict=False):
        check = getattr(model, "check_dtype", None)
        if dtype and check is not None:
            check(dtype)
