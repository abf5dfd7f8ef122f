"""What this process has done so far, for one who watches it. The manifest, not this, says what a job did."""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["LIVE", "Live"]


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

    def reset(self) -> None:
        """Begin again from nothing."""
        with self._lock:
            self._counts.clear()


LIVE = Live()
"""The counts of this process."""
