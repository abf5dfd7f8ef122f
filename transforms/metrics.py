"""Counts of what the jobs of this process have done so far, for one who watches them; the manifest says what they did.

Each job has counts of its own, under a name that its stages carry: so two jobs of one process, or an encoder that is
used beside one, stay apart. Work of no job is counted nowhere.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Live", "count", "counting", "counting_for", "named"]


class Live:
    """Counts that any thread may raise and any thread may read. Work that Beam repeats is counted again."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **amounts: int) -> None:
        """Raise counts."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def read(self) -> Counter[str]:
        """A copy of all counts."""
        with self._lock:
            return self._counts.copy()


_current: ContextVar[Live | None] = ContextVar("distilbeam_counts", default=None)
_jobs: dict[str, Live] = {}


def count(**amounts: int) -> None:
    """Raise the counts of whatever this thread works for."""
    live = _current.get()
    if live is not None:
        live.add(**amounts)


@contextmanager
def counting(live: Live | None = None) -> Iterator[Live]:
    """Count what this thread does in the block, by default where it is counted already, else in counts of its own."""
    live = live or _current.get() or Live()
    before = _current.set(live)
    try:
        yield live
    finally:
        _current.reset(before)


@contextmanager
def named(live: Live) -> Iterator[str]:
    """A name by which ``counting_for`` finds these counts while the block runs."""
    name = uuid.uuid4().hex
    _jobs[name] = live
    try:
        yield name
    finally:
        del _jobs[name]


@contextmanager
def counting_for(job: str) -> Iterator[None]:
    """Count what this thread does in the block for a job, if it is one of this process."""
    live = _jobs.get(job)
    if live is None:
        yield
        return
    with counting(live):
        yield
