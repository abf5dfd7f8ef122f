"""Rows that damaged files have lost: one reject stands for all that cannot be read, however many they are."""

from __future__ import annotations

from .splits import Part

__all__ = ["estimate_lost"]


def estimate_lost(part: Part, seen: int, position: int) -> int | None:
    """The rows that the rest of a damaged file may hold beside the one that its reject stands for.

    Args:
        part: the part that cannot be read on.
        seen: its rows before the damage.
        position: its bytes in the file before the damage.

    Returns:
        As many as bytes of the file are left, at the rate of those before; None where nothing was read, or nothing is
        left, since the file is cut off.

    Example:
        >>> estimate_lost(Part("a.jsonl.gz", "jsonl", 1000, "v"), seen=50, position=250)
        149
    """
    rest = (part.size if part.stop is None else part.stop) - part.start - position
    if not seen or position <= 0 or rest <= 0:
        return None
    return max(round(seen * rest / position) - 1, 0)
