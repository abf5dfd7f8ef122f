"""Cutting a buffer of rows into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["micro_batches"]


def micro_batches(lengths: npt.NDArray[np.int64], token_budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Sort rows by length and cut them into micro-batches of at most ``token_budget`` tokens.

    Rows are packed, so a micro-batch costs the sum of its lengths and no padding. Rows of equal length lie side by
    side and keep their order; a row longer than the budget is alone.

    Args:
        lengths: int64[rows], tokens in each row.
        token_budget: tokens in a micro-batch, at least 1.

    Yields:
        int64[n], positions of the rows of one micro-batch, longest first. Every row is in exactly one.
    """
    # Longest first: the largest allocations come first and are reused by all that follow.
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start, spent = 0, 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, spent + token_budget, side="right")))
        yield order[start:stop]
        start, spent = stop, int(ends[stop - 1])
