"""Timing: every candidate once before it counts, then all in turns, so that a busy machine harms all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

__all__ = ["interleave", "spread", "timed"]


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleave(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    tell: Callable[[str], object] = lambda _: None,
    timer: Callable[[Callable[[], object]], float] = timed,
) -> dict[str, list[float]]:
    """Seconds of each of some pieces of work, in turns: A B C A B C ...

    Args:
        works: what to time, by name. They have run once before, or their first run counts.
        repeats: rounds, at least 1.
        tell: is told what runs next.
        timer: seconds of a call.

    Returns:
        ``repeats`` numbers for each name; the same position is the same round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats):
        for name, work in works.items():
            tell(f"round {turn + 1} of {repeats}: {name}")
            seconds[name].append(timer(work))
    return seconds


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Median, least and most, as ``median``, ``least`` and ``most``."""
    return {"median": median(numbers), "least": min(numbers), "most": max(numbers)}
