"""Rows that are missing from an output since files of the input are damaged, beside those that rejects name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .records import PartRecord, SplitRecord

__all__ = ["Losses", "lost_rows"]


@dataclass(frozen=True, slots=True)
class Losses:
    """About how many rows are lost.

    Attributes:
        rows: rows lost beside the rejects, about.
        files: damaged files of which more is lost than rejects tell.
        unknown: one of them of which nothing tells how much, if there is one.
    """

    rows: int = 0
    files: int = 0
    unknown: str | None = None


def lost_rows(records: Iterable[SplitRecord]) -> Losses:
    """What damaged files have lost.

    A file that is cut off, or of which nothing can be read, is taken to have had as many rows as the sound files have
    on average; without such a file nobody knows.
    """
    files: dict[str, list[PartRecord]] = {}
    for record in records:
        for part in record.parts:
            files.setdefault(part.source, []).append(part)
    damaged = {url: parts for url, parts in files.items() if any(part.lost != 0 for part in parts)}
    if not damaged:
        return Losses()
    counts = [sum(part.seen for part in parts) for url, parts in files.items() if url not in damaged]
    sound = [count for count in counts if count]
    usual = sum(sound) / len(sound) if sound else None
    lost, unknown = 0, None
    for url, parts in damaged.items():
        lost += sum(part.lost or 0 for part in parts)
        if any(part.lost is None for part in parts):
            if usual is None:
                unknown = unknown or url
            else:
                lost += max(round(usual) - sum(part.seen for part in parts), 0)
    return Losses(lost, len(damaged), unknown)
