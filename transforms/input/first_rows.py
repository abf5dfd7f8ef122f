"""The first rows of a part of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow.compute as pc

from .formats.base import Chunk

__all__ = ["first_rows"]


def first_rows(chunks: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
    """The chunks up to so many rows, good and bad."""
    seen = 0
    for chunk in chunks:
        if limit is not None and chunk.seen > limit:
            positions = sorted([*chunk.rows.to_pylist(), *(reject.row or 0 for reject in chunk.rejects)])
            last = positions[limit - seen - 1]
            good = pc.less_equal(chunk.rows, last)
            rejects = tuple(reject for reject in chunk.rejects if (reject.row or 0) <= last)
            batch, rows = chunk.batch.filter(good), chunk.rows.filter(good)
            chunk = replace(chunk, batch=batch, rows=rows, rejects=rejects, seen=limit)
        yield chunk
        seen = chunk.seen
        if seen == limit:
            return
